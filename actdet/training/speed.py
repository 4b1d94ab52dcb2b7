"""How fast a training runs, from one line of its log to the next."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from actdet.data.augment import Batch
from actdet.training.cost import find_card, step_flop
from actdet.training.plan import Plan


class Speedometer:
    """Counts clips and seconds.

    Attributes:
        clip_flop: FLOP of the network for a clip, forward and backward; 0 if they are not counted.
        card: The GPU, if its data sheet is known.
    """

    def __init__(self, plan: Plan) -> None:
        self._dtype = plan.dtype.value
        self._processes = plan.processes.count
        self.clip_flop = 0
        self.card = None
        if plan.device.type == "cuda":
            self.card = find_card(torch.cuda.get_device_name(plan.device))
            # A frozen backbone has no backward pass, so the FLOP count would be wrong.
            if not plan.config.freeze_backbone:
                self.clip_flop = step_flop(plan.model)
        self.restart()

    def restart(self) -> None:
        """Begin to count anew."""
        self._restart(time.monotonic())

    def _restart(self, now: float) -> None:
        self._since = now
        self._clips = 0
        self._waited = 0.0

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the batches, and count the time that it takes to get them."""
        while True:
            began = time.monotonic()
            batch = next(batches, None)
            self._waited += time.monotonic() - began
            if batch is None:
                return
            yield batch

    def count(self, clips: int) -> None:
        """Count the clips of a step, those of all processes."""
        self._clips += clips

    def read(self, *, whole: bool) -> dict[str, float]:
        """Return the speed since the last restart, and begin to count anew.

        Args:
            whole: Whether the steps showed whole pictures to the whole backbone. Only then their FLOP are known.

        Returns:
            clips_per_second: Of all processes.
            data_share: The part of the time that this process spent in the loader. There it waits for clips and, on a
                CPU, augments them.
            tflop_per_second: Of each process, if the FLOP are counted.
            utilisation: Those FLOP, as a share of the card's own rate, if that is known (model-FLOP utilization,
                Chowdhery et al. 2022).
        """
        now = time.monotonic()
        seconds = max(now - self._since, 1e-9)
        speed = {"clips_per_second": self._clips / seconds, "data_share": self._waited / seconds}
        self._restart(now)

        rate = speed["clips_per_second"] / self._processes
        if self.clip_flop and whole:
            speed["tflop_per_second"] = 1e-12 * rate * self.clip_flop
            if self.card and self._dtype in self.card.flop_per_s:
                speed["utilisation"] = rate * self.clip_flop / self.card.flop_per_s[self._dtype]
        return speed
