"""A plugin of pytest, `-p junit_as_it_goes`: writes the file of --junitxml after every test, not only at the end.

What a hanging kernel brings about ends without an end: the process that waits for it must be killed.
"""

from __future__ import annotations

import pytest
from _pytest.junitxml import xml_key


class _AsItGoes:
    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    # Last, since the test's own line comes from the same hook.
    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown":
            self._config.stash[xml_key].pytest_sessionfinish()


# Last, since the plugin that writes the file must have begun.
@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    # Only the process that writes the file has it: none of xdist's workers.
    if config.stash.get(xml_key, None) is not None:
        config.pluginmanager.register(_AsItGoes(config))
