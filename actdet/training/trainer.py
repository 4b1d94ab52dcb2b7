"""The training of a detector: clips in, checkpoints out.

    loader -> one step after another (`train_step.TrainStep`) -> log, evaluations, checkpoints

`Trainer.steps()` runs it and yields after every step, so that the caller may show progress or stop and `save()`;
nothing is printed here. The run's folder gets log.jsonl (`run_log`) and checkpoints (`run_state`).

Everything random in a step follows from the seed, the epoch, the number of the step and the process, so on a CPU a
resumed run repeats the numbers of an uninterrupted one. If there are several processes, all run the same steps on their
shares of the batches, and the first one writes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from actdet.data.augment import Batch
from actdet.data.loader import ClipLoader
from actdet.errors import ActdetError, DataError
from actdet.evaluation.clips import Evaluation, evaluate
from actdet.evaluation.metrics import Metrics
from actdet.models.backbones.convolution import set_flat
from actdet.models.checkpoints import CheckpointInfo, load_weights, read_checkpoint, save_checkpoint
from actdet.models.families import build_network
from actdet.run_log import LOG, append_record, cut_log
from actdet.training.plan import Plan
from actdet.training.run_state import (
    BEST,
    LAST,
    LAUNCH,
    MODEL,
    check_same_run,
    restore_step,
    run_identity,
    state_path,
    step_tensors,
)
from actdet.training.schedule import check_last_batch, dropout_seed, last_batch, learning_rate
from actdet.training.speed import Speedometer
from actdet.training.start_weights import load_start_weights
from actdet.training.train_step import TrainStep

# Steps between two reads of the losses from the device.
LOG_EVERY = 10

# The least time between two checkpoints of the state, in seconds.
SAVE_SECONDS = 300


@dataclass(frozen=True)
class Progress:
    """Where a run is, after a step."""

    epoch: int
    step_number: int
    """Steps done, this one included."""
    total_steps: int
    record: dict[str, Any] | None
    """The line that this step wrote to the log, if it wrote one."""


class Trainer:
    """One training run: `for progress in trainer.steps(): ...`, then `trainer.finish()`.

    Args:
        plan: The settings, and every choice.
        loader: The clips.
        train_ids: The clips to train on, by their numbers in the loader's index.
        val_ids: The clips to evaluate on, likewise; there may be none.
        out: The run's folder.
        to_restore: Whether `restore` follows, so that the weights to start from need not be read.

    Raises:
        ActdetError: If the last batch of an epoch would have fewer clips than there are processes, or if the weights to
            start from cannot be had.
    """

    def __init__(
        self,
        plan: Plan,
        loader: ClipLoader,
        train_ids: list[int],
        val_ids: list[int],
        out: Path,
        *,
        to_restore: bool = False,
    ) -> None:
        self.plan = plan
        self.config = plan.config
        self.processes = plan.processes
        self.loader = loader
        self.train_ids = train_ids
        self.val_ids = val_ids
        self.out = out
        self.steps_per_epoch = math.ceil(len(train_ids) / self.config.batch_size)
        self.total_steps = self.config.epochs * self.steps_per_epoch
        check_last_batch(len(train_ids), self.config.batch_size, self.processes.count)
        # What must be the same for a resumed run to be the same run.
        self._identity = run_identity(plan, loader.index, train_ids, val_ids)

        torch.manual_seed(self.config.seed)
        detector = build_network(plan.model)
        if not to_restore:
            load_start_weights(detector, self.config)
        set_flat(detector.backbone, plan.flat.value)
        self.train_step = TrainStep(
            detector, self.config, plan.device, plan.dtype.value, plan.launch.value, self.processes
        )
        self.detector = self.train_step.detector

        self.step_number = 0
        self.speedometer = Speedometer(plan)
        self._best: list[float] | None = None
        self._trained = False
        # Steps whose losses are in the sums that the next line of the log divides by their number.
        self._summed = 0

    def steps(self) -> Iterator[Progress]:
        """Run from where the trainer stands to the end.

        Yields:
            The progress, after every step.

        Raises:
            ActdetError: If the loss is not finite.
        """
        saved = time.monotonic()
        # Any of several processes may die at any time, and there must be something to go on from.
        if self.processes.count > 1:
            self.save()

        for epoch in range(self.step_number // self.steps_per_epoch, self.config.epochs):
            done = self.step_number % self.steps_per_epoch
            self.share_left_out()
            if self.val_ids and epoch and not done and epoch % self.config.eval_every == 0:
                self._check_finite()
                self._note(epoch, self.evaluate().metrics)

            self.speedometer.restart()
            self.detector.backbone.shallow = epoch < self.config.shallow_epochs
            for batch in self.speedometer.timed(self._batches(epoch, done)):
                self.speedometer.count(self._clips_of_step())
                self.train_step.run(
                    batch,
                    lr=learning_rate(self.config, self.step_number / self.steps_per_epoch),
                    seed=dropout_seed(self.config.seed, self.step_number, self.processes.rank),
                    number=self.step_number,
                )
                self.step_number += 1
                self._summed += 1
                due = self.step_number % LOG_EVERY == 0 or self.step_number % self.steps_per_epoch == 0
                record = self._log_losses() if due else None
                yield Progress(epoch, self.step_number, self.total_steps, record)

            if epoch + 1 < self.config.epochs and self.processes.any(time.monotonic() - saved > SAVE_SECONDS):
                self.save()
                saved = time.monotonic()

    def finish(self) -> Evaluation | None:
        """Write the trained detector, and evaluate it on the held-out clips, if there are any.

        Returns:
            The evaluation, or None.

        Raises:
            ActdetError: If the detector is not finite; then nothing is written.
        """
        self._check_finite()
        if self.processes.rank == 0 and not self._trained:
            with self.train_step.averaged():
                save_checkpoint(self.out / MODEL, self._model_tensors(), self._info(self._training()))
        evaluation = self.evaluate() if self.val_ids else None
        if evaluation is not None:
            self._note(self.config.epochs, evaluation.metrics)
        if self.processes.rank == 0:
            (self.out / LAST).unlink(missing_ok=True)
        return evaluation

    def share_left_out(self) -> None:
        """Have all processes skip the clips that one of them could not decode."""
        for others in self.processes.gather(self.loader.left_out):
            self.loader.left_out |= others

    def evaluate(self) -> Evaluation:
        """Evaluate the detector as it stands, or its running average if there is one, on the held-out clips."""
        with self.train_step.averaged():
            return evaluate(
                self.detector, self.loader, self.val_ids, self.config.loss, self.plan.dtype.value, self.processes
            )

    def save(self) -> None:
        """Write the state to go on from.

        Raises:
            ActdetError: If the state is not finite; then the one before is kept.
        """
        self._check_finite()
        losses = self.processes.sum(self.train_step.losses.clone()) / self.processes.count
        if self.processes.rank == 0:
            tensors = self._model_tensors() | {"losses": losses} | step_tensors(self.train_step)
            save_checkpoint(self.out / LAST, tensors, self._info(self._training()))

    def keep(self) -> Path:
        """Save the state, unless the trained detector holds it already, and return the file that holds it."""
        if self.processes.rank == 0 and (self.out / MODEL).exists():
            return self.out / MODEL
        self.save()
        return self.out / LAST

    def restore(self) -> None:
        """Go on from the state in the run's folder: the trained detector, if it is there already, or what was saved.

        Raises:
            DataError: If there is no state, or if it is not whole, or belongs to other settings or other clips.
        """
        path = state_path(self.out)
        tensors, info = read_checkpoint(path)
        state = check_same_run(path, info, self.plan, self._identity)
        trained = path.name == MODEL
        if not trained and "losses" not in tensors:
            raise DataError(path, "holds a trained detector, not the state of a training")
        reader = self.loader.reader.name
        if info.reader != reader:
            problem = f"its clips were decoded by {info.reader}, here they would be by {reader}: take the same reader"
            raise DataError(path, problem)
        if state["step"] > self.total_steps or (trained and state["step"] < self.total_steps):
            raise DataError(path, f"its step {state['step']} is not one of a run of {self.total_steps} steps")

        load_weights(self.detector, tensors, path)
        if trained:
            live = self.train_step.live()
            for name, value in self.train_step.average.items():
                value.copy_(live[name])
        else:
            restore_step(self.train_step, tensors, state["scaler"], path)

        self._trained = trained
        self._best = state["best"]
        self._summed = state["summed"]
        self.step_number = state["step"]
        numbers = {clip.name: number for number, clip in enumerate(self.loader.index.clips)}
        self.loader.left_out = {
            numbers[name]: DataError(*error) for name, error in state["left_out"].items() if name in numbers
        }
        if self.processes.rank == 0:
            cut_log(self.out / LOG, self.step_number)

    def _batches(self, epoch: int, skip: int) -> Iterator[Batch]:
        """This process's shares of an epoch's batches, without the first ones that a resumed run has done."""
        return self.loader.train_batches(
            self.train_ids,
            self.config.batch_size,
            self.config.augment,
            seed=self.config.seed,
            epoch=epoch,
            skip=skip,
            half_pixels=epoch < self.config.small_epochs,
            processes=self.processes,
        )

    def _clips_of_step(self) -> int:
        """How many clips the next step shows, in all processes."""
        if self.step_number % self.steps_per_epoch == self.steps_per_epoch - 1:
            return last_batch(len(self.train_ids), self.config.batch_size)
        return self.config.batch_size

    def _note(self, epoch: int, metrics: Metrics) -> None:
        """Log an evaluation, and keep the detector that it is of, if it is the best one yet."""
        self._log({"epoch": epoch, "step": self.step_number, "validation": asdict(metrics)})
        figures = (metrics.detection_accuracy, metrics.video_accuracy, metrics.mean_iou)
        reached = [-1.0 if figure is None else figure for figure in figures]
        if self._best is not None and reached <= self._best:
            return

        # A folder that holds the best detector holds a state, too, so that its run can always go on.
        if not self._trained and self.step_number < self.total_steps:
            self.save()
        self._best = reached
        if self.processes.rank == 0:
            with self.train_step.averaged():
                save_checkpoint(self.out / BEST, self._model_tensors(), self._info())

    def _log_losses(self) -> dict[str, Any]:
        """Read the mean losses since the last line from the device. Only here does a step wait for the device."""
        losses = self.train_step.losses
        mean = self.processes.sum(losses / (self._summed * self.processes.count))
        values = mean.tolist()
        losses.zero_()
        self._summed = 0
        if not all(map(math.isfinite, values)):
            raise self._not_finite()

        partial_epochs = max(self.config.small_epochs, self.config.shallow_epochs)
        record = {
            "epoch": self.step_number / self.steps_per_epoch,
            "step": self.step_number,
            "lr": learning_rate(self.config, (self.step_number - 1) / self.steps_per_epoch),
            "loss": dict(zip(self.detector.loss_names, values, strict=True)),
            # The first loss is the sum of the others, each by its weight.
            "loss_weights": self._loss_weights(),
            "speed": self.speedometer.read(whole=self.step_number > self.steps_per_epoch * partial_epochs),
        }
        self._log(record)
        return record

    def _loss_weights(self) -> dict[str, float]:
        """The weight of each term in the first loss, by name."""
        weights = self.config.loss.term_weights()
        if self.train_step.auxiliary_head is not None:
            weights["auxiliary"] = self.config.auxiliary_weight
        # What only training has, such as the loss of hints, is a whole loss by itself.
        return {name: weights.get(name, 1.0) for name in self.detector.loss_names[1:]}

    def _log(self, record: dict[str, Any]) -> None:
        if self.processes.rank == 0:
            append_record(self.out / LOG, record)

    def _training(self) -> dict[str, Any]:
        """What a checkpoint says of the run, beside its tensors."""
        settings = asdict(self.config)
        return {
            "step": self.step_number,
            "summed": self._summed,
            "scaler": self.train_step.scaler.state_dict(),
            "best": self._best,
            "left_out": {
                self.loader.index.clips[clip].name: (error.path, error.problem, error.line)
                for clip, error in self.loader.left_out.items()
            },
            "launch": {name: settings[name] for name in LAUNCH},
            **self._identity,
        }

    def _info(self, training: dict[str, Any] | None = None) -> CheckpointInfo:
        index = self.loader.index
        return CheckpointInfo(
            model=self.plan.model,
            reader=self.loader.reader.name,
            clip_seconds=index.median_seconds(),
            loss=self.config.loss,
            held_out=tuple(index.clips[i].name for i in self.val_ids),
            training=training,
            window=self.config.window,
        )

    def _model_tensors(self) -> dict[str, Tensor]:
        return {f"model.{name}": tensor for name, tensor in self.detector.state_dict().items()}

    def _check_finite(self) -> None:
        norm = nn.utils.get_total_norm(p.detach() for p in self.train_step.parameters)
        if not self.processes.sum(norm + self.train_step.losses.sum()).isfinite():
            raise self._not_finite()

    def _not_finite(self) -> ActdetError:
        last = self.out / LAST
        kept = f"the state before it is in {last}" if last.exists() else "no checkpoint had been written before it"
        return ActdetError(
            f"the loss or the weights are not finite at step {self.step_number} of {self.total_steps}: "
            f"lower lr, or use precision fp32; {kept}"
        )
