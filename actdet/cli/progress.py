"""Progress bars, and what the commands that train show before and while a training runs."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from actdet.cli.signals import deferred_signals
from actdet.cli.terminal import print_line, tqdm
from actdet.errors import Stopped

# Importing PyTorch takes seconds, so what needs it is imported only by the functions that use it.
if TYPE_CHECKING:
    from actdet.training.plan import Plan
    from actdet.training.session import Session
    from actdet.training.trainer import Progress


class ProgressBar(tqdm):
    """A progress bar on stderr, which may follow one kind of work after another.

    Its methods are what long work calls as it goes on.
    """

    def show(self, done: int, total: int) -> None:
        """Show that `done` of `total` units are done."""
        self.total = total
        self.update(done - self.n)

    def show_drawing(self, done: int, total: int) -> None:
        """Show that `done` of `total` frames are drawn; the first call makes this a new bar."""
        if self.disable:
            return
        if not self._is_about("draw"):
            self.set_postfix(refresh=False)
            self._start_over("draw", "frame", total)
        self.show(done, total)

    def show_step(self, name: str, progress: Progress) -> None:
        """Show that the training `name` has done a step; the first call of each training makes this a new bar."""
        if self.disable:
            return
        if not self._is_about(name) or self.total != progress.total_steps:
            self._start_over(name, "step", progress.total_steps)
            # The steps that a resumed training did earlier took no time now.
            self.initial = progress.step_number - 1
            self.n = progress.step_number - 1
        self.update()

        if progress.record:
            loss = progress.record["loss"]["total"]
            self.set_postfix(epoch=progress.epoch + 1, loss=f"{loss:.3f}")

    def print_above(self, line: object) -> None:
        """Print a line of the command's output at once, above the bar."""
        with self.external_write_mode():
            print_line(line, flush=True)

    def close(self) -> None:
        """Take the bar away if its work never began, so that an error is all that is left on the screen."""
        if self.total is None:
            self.leave = False
        super().close()

    def _is_about(self, name: str) -> bool:
        return self.desc == f"{name}: "

    def _start_over(self, name: str, unit: str, total: int) -> None:
        self.unit = unit
        self.set_description(name, refresh=False)
        self.reset(total)


def announce_training(plan: Plan, train_clips: int) -> None:
    """Say how a training will run and why so, and how long it takes if that is long on this CPU.

    Args:
        plan: The plan of the training.
        train_clips: How many clips an epoch has.
    """
    from actdet.device import memory_for
    from actdet.training.duration import describe_duration, is_short, seconds_per_clip

    print_line(plan.describe())

    # The estimate comes from steps that one process tries on a CPU. A short training is over before they would be.
    if plan.device.type != "cpu" or plan.processes.count > 1 or is_short(plan.model, train_clips):
        return

    with memory_for("a step of training"):
        epoch_seconds = train_clips * seconds_per_clip(plan.model, plan.config, plan.dtype.value)

    duration = describe_duration(plan.model, plan.config, epoch_seconds)
    if duration:
        print_line(duration)


def watch(
    session: Session, start: Callable[[Session], Generator[Any, bool | None, Any]], *, quiet: bool = False
) -> Any:
    """Run trainings and write their reports behind a progress bar; a signal makes them save their state and stop.

    Args:
        session: What the trainings share.
        start: Begins them with a session. The generator that it returns yields after every training step, either the
            step's `Progress` or a pair of the training's name and that. Sending True asks it to save and stop.
        quiet: Whether to show no bar.

    Returns:
        What the generator returns at its end.

    Raises:
        Stopped: A signal has stopped them.
    """
    with ProgressBar(unit="step", smoothing=0.1, disable=quiet) as bar, deferred_signals() as asked_to_stop:

        def show_drawing(done: int, total: int) -> None:
            # A report is drawn after the detector is saved, so stopping there loses nothing.
            if asked_to_stop():
                raise Stopped(f"stopped before its report was written: run {session.again} to go on")
            bar.show_drawing(done, total)

        trainings = start(replace(session, drawing=show_drawing))
        try:
            event = next(trainings)
            while True:
                name, progress = event if isinstance(event, tuple) else ("train", event)
                bar.show_step(name, progress)
                event = trainings.send(asked_to_stop())
        except StopIteration as end:
            return end.value
