"""Data know nothing of the models that learn from them: the room imports none of those that build on it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import actdet.data

FOLDER = Path(actdet.data.__file__).parent
BUILT_ON_IT = ("cli", "evaluation", "models", "prediction", "synthetic", "training")


def imported_modules(source: str) -> Iterator[str]:
    """Yield the modules that a source imports, at the top, in functions, and for type checkers only."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.py")), ids=lambda path: str(path.relative_to(FOLDER)))
def test_a_file_imports_no_room_that_builds_on_data(path: Path) -> None:
    rooms = {name.split(".")[1] for name in imported_modules(path.read_text()) if name.startswith("actdet.")}
    assert rooms.isdisjoint(BUILT_ON_IT)


def test_every_kind_of_import_is_seen() -> None:
    source = "import actdet.models\ndef f():\n    from actdet.training import config\nfrom actdet import cli\n"
    assert list(imported_modules(source)) == ["actdet.models", "actdet.cli", "actdet.training.config"]
