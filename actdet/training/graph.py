"""A training step as one CUDA graph: run operator by operator at first, then captured, then replayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from actdet.data.augment import Batch
from actdet.errors import ActdetError

# Steps of a shape before its capture. Libraries set themselves up when they are first called, which no graph can hold.
WARM_UP = 3


class StepGraph:
    """The step for batches of one shape.

    Args:
        step: The step, operator by operator.
        batch: A batch of the shape. Every step runs on this object's own copy of it, which a graph's kernels address.
        stream: Where the step warms up and is captured.
    """

    def __init__(self, step: Callable[[Batch], None], batch: Batch, stream: torch.cuda.Stream) -> None:
        self._step = step
        self._stream = stream
        self._batch = Batch(batch.clips.clone(), type(batch.targets)(*(field.clone() for field in batch.targets)))
        self._graph: torch.cuda.CUDAGraph | None = None
        self._runs = 0

    @property
    def is_captured(self) -> bool:
        return self._graph is not None

    @property
    def warms_up(self) -> bool:
        """Whether the next run launches operator by operator."""
        return self._runs < WARM_UP

    def release(self) -> None:
        """Give back the memory of what was captured; the next run captures it again."""
        if self._graph is not None:
            self._graph.reset()
            self._graph = None

    def run(self, batch: Batch, pool: Any) -> None:
        """Do one step.

        Args:
            batch: Its clips and targets, which are copied.
            pool: The handle of the memory that a capture takes.

        Raises:
            torch.OutOfMemoryError: If the memory does not suffice for the capture.
            ActdetError: If the step cannot be captured for another reason.
        """
        for own, given in zip((self._batch.clips, *self._batch.targets), (batch.clips, *batch.targets), strict=True):
            own.copy_(given)

        if self.warms_up:
            self._runs += 1
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                self._step(self._batch)
            torch.cuda.current_stream().wait_stream(self._stream)
            return

        if self._graph is None:
            self._graph = self._capture(pool)
        self._graph.replay()

    def _capture(self, pool: Any) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        try:
            # Only this thread must not wait for the device during the capture: those of a reader may.
            with torch.cuda.graph(graph, pool, self._stream, capture_error_mode="thread_local"):
                self._step(self._batch)
        except RuntimeError as error:
            # Ending a capture that failed raises a second error, which hides the first.
            first = error.__context__ or error
            if isinstance(first, torch.OutOfMemoryError) or "out of memory" in str(first):
                raise torch.OutOfMemoryError(str(first)) from error
            reason = str(first).partition("\n")[0]
            raise ActdetError(f"the step cannot be captured ({reason}): choose step eager") from error
        return graph
