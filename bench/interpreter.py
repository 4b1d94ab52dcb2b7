"""Triton's interpreter, in half of the time: for what runs kernels without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from triton.runtime.interpreter import InterpretedFunction


@contextmanager
def quick_interpreter() -> Iterator[None]:
    """Triton patches its language again at every call of a device function; within this, once for each module."""
    call = InterpretedFunction.__call__
    patched = set()

    def call_of_patched(self: Any, *arguments: Any, **options: Any) -> Any:
        module = self.fn.__module__
        if module.startswith("triton.") and module not in patched:
            patched.add(module)
            return call(self, *arguments, **options)
        return self.rewrite()(*arguments, **options)

    with mock.patch.object(InterpretedFunction, "__call__", call_of_patched):
        yield
