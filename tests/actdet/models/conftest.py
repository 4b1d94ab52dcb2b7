"""A backbone to copy; and one thread: beside other work, threads that wait for each other take ten times as long."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from actdet.models.backbones.r2plus1d import Backbone


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def fresh() -> Backbone:
    """To copy, which is quicker than drawing new weights."""
    return Backbone()
