"""The training of a detector: clips in, checkpoints out.

    loader -> one step after another (`step.TrainStep`) -> log, evaluations, checkpoints

`Trainer.steps()` runs it and yields after every step, so that the caller may show progress or stop and `save()`;
nothing is printed here. A run's folder holds
    log.jsonl               one line for every LOG_EVERY steps and for every evaluation
    last.safetensors        the state to go on from (`resume`), written every few minutes and when stopped
    model.safetensors       the trained detector, written at the end
Everything random in a step follows from (seed, epoch, number of the step), so on a CPU a resumed run repeats the
numbers of an uninterrupted one. Of several processes, all run the same steps on their shares of the batches, and the
first writes.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from actdet.account import find_card, step_flop
from actdet.checkpoints import About, load_weights, read_checkpoint, save_checkpoint
from actdet.config import ModelConfig, TrainConfig
from actdet.data.augment import Batch
from actdet.data.loader import ClipLoader
from actdet.device import choose_precision, choose_step, prepare_device
from actdet.distributed import ALONE, Processes
from actdet.errors import ActdetError, DataError
from actdet.evaluation import Evaluation, evaluate
from actdet.files import write_bytes
from actdet.models import ActionDetector, load_backbone_weights
from actdet.models.backbone import choose_convolutions, set_flat
from actdet.step import LOSSES, TrainStep

LOG_EVERY = 10  # steps between two reads of the losses from the device
MODEL, LAST = "model.safetensors", "last.safetensors"
# Settings that change no result of the clips that can be read.
LAUNCH = ("step", "checkpointing", "workers", "cache", "disk_cache", "bad_files")
SAVE_SECONDS = 300  # least time between two training checkpoints


@dataclass(frozen=True)
class Progress:
    """Where a run is, after a step."""

    epoch: int
    step: int
    total_steps: int
    record: dict[str, Any] | None
    """The line that this step wrote to the log, if it wrote one."""


class Trainer:
    """One training run: `for progress in trainer.steps(): ...`, then `trainer.finish()`."""

    def __init__(
        self,
        model: ModelConfig,
        config: TrainConfig,
        loader: ClipLoader,
        train_ids: list[int],
        val_ids: list[int],
        out: Path,
        device: torch.device,
        processes: Processes = ALONE,
    ) -> None:
        self.model, self.config, self.loader, self.out, self.device = model, config, loader, out, device
        self.train_ids, self.val_ids, self.processes = train_ids, val_ids, processes
        self.steps_per_epoch = math.ceil(len(train_ids) / config.batch_size)
        self.total_steps = config.epochs * self.steps_per_epoch
        if _last_batch(len(train_ids), config.batch_size) < processes.count:
            clips, sizes = len(train_ids), range(config.batch_size + 1, len(train_ids) + 1)
            fitting = [size for size in sizes if _last_batch(clips, size) >= processes.count]
            raise ActdetError(
                f"the last of the batches of {config.batch_size} has {_last_batch(clips, config.batch_size)} of the "
                f"{clips} clips, fewer than the {processes.count} processes: "
                + (f"use --batch-size {fitting[0]}" if fitting else "use fewer processes")
            )
        self.dtype, _ = choose_precision(config.precision, device)
        mode, _ = choose_step(config.step, device, processes=processes.count, checkpointing=config.checkpointing)
        prepare_device(device)
        torch.manual_seed(config.seed)
        detector = ActionDetector(model)
        load_backbone_weights(detector.backbone, config.backbone_weights)
        set_flat(detector.backbone, choose_convolutions(clip_shape(model, config, processes), device, self.dtype)[0])
        self.train_step = TrainStep(detector, config, device, self.dtype, mode, processes)
        self.detector = self.train_step.detector
        self.step = 0
        self._summed = 0  # steps since the last log line
        self._card = find_card(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        counted = device.type == "cuda" and not config.freeze_backbone  # which has no backward pass
        self._clip_flop = step_flop(model) if counted else 0
        self._since, self._clips, self._waited = time.monotonic(), 0, 0.0

    def steps(self) -> Iterator[Progress]:
        """Run from where the trainer stands to the end. Raises ActdetError when the loss is not finite."""
        saved = time.monotonic()
        if self.processes.count > 1:  # any of them may end at any time: there must be something to go on from
            self.save()
        for epoch in range(self.step // self.steps_per_epoch, self.config.epochs):
            done = self.step % self.steps_per_epoch
            self.share_left_out()
            if self.val_ids and epoch and not done and epoch % self.config.eval_every == 0:
                self._check_finite()
                self._log({"epoch": epoch, "step": self.step, "validation": asdict(self.evaluate().metrics)})
            self._since, self._clips, self._waited = time.monotonic(), 0, 0.0
            batches = self.loader.train_batches(self.train_ids, self.config, epoch, done, self.processes)
            for batch in self._timed(batches):
                last = self.step % self.steps_per_epoch == self.steps_per_epoch - 1
                size = self.config.batch_size
                self._clips += _last_batch(len(self.train_ids), size) if last else size
                self.train_step.run(
                    batch,
                    lr=self._learning_rate(),
                    seed=hash((self.config.seed, self.step, self.processes.rank)),
                    number=self.step,
                )
                self.step += 1
                self._summed += 1
                due = self.step % LOG_EVERY == 0 or self.step % self.steps_per_epoch == 0
                record = self._log_losses() if due else None
                yield Progress(epoch, self.step, self.total_steps, record)
            if epoch + 1 < self.config.epochs and self.processes.any(time.monotonic() - saved > SAVE_SECONDS):
                self.save()
                saved = time.monotonic()

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            began = time.monotonic()
            batch = next(batches, None)
            self._waited += time.monotonic() - began
            if batch is None:
                return
            yield batch

    def finish(self) -> Evaluation | None:
        """Write the trained detector; evaluate it on the held-out clips, where there are any.

        Raises ActdetError, and writes nothing, where it is not finite.
        """
        self._check_finite()
        if self.processes.rank == 0:
            with self.train_step.averaged():
                save_checkpoint(self.out / MODEL, self._model_tensors(), self._about())
        evaluation = self.evaluate() if self.val_ids else None
        if evaluation is not None:
            self._log({"epoch": self.config.epochs, "step": self.step, "validation": asdict(evaluation.metrics)})
        if self.processes.rank == 0:
            (self.out / LAST).unlink(missing_ok=True)
        return evaluation

    def share_left_out(self) -> None:
        """What one process could not read no other one shows any more."""
        for others in self.processes.gather(self.loader.left_out):
            self.loader.left_out |= others

    def evaluate(self) -> Evaluation:
        """What the detector, as it stands, makes of the held-out clips; its running average, where there is one."""
        with self.train_step.averaged():
            return evaluate(self.detector, self.loader, self.val_ids, self.config.loss, self.dtype, self.processes)

    def _learning_rate(self) -> float:
        return learning_rate(self.config, self.step / self.steps_per_epoch)

    def _log_losses(self) -> dict[str, Any]:
        """Read the mean losses since the last line from the device; the only place where a step waits for it."""
        losses = self.train_step.losses
        mean = self.processes.sum(losses / (self._summed * self.processes.count))
        values = mean.tolist()
        losses.zero_()
        self._summed = 0
        if not all(map(math.isfinite, values)):
            raise self._not_finite()
        record = {
            "epoch": self.step / self.steps_per_epoch,
            "step": self.step,
            "lr": learning_rate(self.config, (self.step - 1) / self.steps_per_epoch),
            "loss": dict(zip(LOSSES, values, strict=True)),
            # The first loss is the sum of the others, each by its weight.
            "loss_weights": {**self.config.loss.match_weights._asdict(), "auxiliary": self.config.auxiliary_weight},
            "speed": self._speed(),
        }
        self._log(record)
        return record

    def _speed(self) -> dict[str, float]:
        """Since the last line: clips a second of all processes, and on a GPU FLOP a second of each.

        data_share: of the time, this process's in the loader: waiting for clips and, on a CPU, augmenting them.
        utilisation: of the card's own rate, where that is known (model-FLOP utilisation, Chowdhery et al. 2022).
        """
        now = time.monotonic()
        seconds = max(now - self._since, 1e-9)
        speed = {"clips_per_second": self._clips / seconds, "data_share": self._waited / seconds}
        self._since, self._clips, self._waited = now, 0, 0.0
        rate = speed["clips_per_second"] / self.processes.count
        if self._clip_flop:
            speed["tflop_per_second"] = 1e-12 * rate * self._clip_flop
            if self._card and self.dtype in self._card.flop_per_s:
                speed["utilisation"] = rate * self._clip_flop / self._card.flop_per_s[self.dtype]
        return speed

    def _log(self, record: dict[str, Any]) -> None:
        if self.processes.rank:
            return
        path = self.out / "log.jsonl"
        try:
            with open(path, "a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise DataError(path, f"cannot be written: {error.strerror}") from error

    def save(self) -> None:
        """Write the state to go on from. Raises ActdetError, and keeps the one before, where it is not finite."""
        self._check_finite()
        losses = self.processes.sum(self.train_step.losses.clone()) / self.processes.count
        if self.processes.rank:
            return
        tensors = self._model_tensors() | {"losses": losses}
        for number, parameter in enumerate(self.train_step.parameters):
            state = self.train_step.optimizer.state.get(parameter, {})
            tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
        tensors |= {f"clip_head.{name}": value for name, value in self.train_step.clip_head.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.train_step.average.items()}
        training = {
            "step": self.step,
            "summed": self._summed,
            "scaler": self.train_step.scaler.state_dict(),
            "left_out": {
                self.loader.index.clips[clip].name: (error.path, error.problem, error.line)
                for clip, error in self.loader.left_out.items()
            },
            **self._identity(),
        }
        save_checkpoint(self.out / LAST, tensors, self._about(training))

    def restore(self) -> None:
        """Go on from `last.safetensors` in the run's folder.

        Raises DataError where it is missing or not whole, or belongs to other settings or other clips.
        """
        path = self.out / LAST
        if not path.exists() and (self.out / MODEL).exists():
            raise DataError(self.out, f"nothing to resume: this run is finished, its result is {MODEL}")
        tensors, about = read_checkpoint(path)
        state = about.training
        if state is None:
            raise DataError(path, "holds a trained detector, not the state of a training")
        for name, value in json.loads(json.dumps(self._identity())).items():
            for setting in value if isinstance(value, dict) else ():
                if state[name].get(setting) != value[setting]:
                    raise DataError(
                        path,
                        f"a checkpoint of another configuration: {setting} was "
                        f"{state[name].get(setting)}, is now {value[setting]}",
                    )
            if state[name] != value:
                raise DataError(path, f"a checkpoint of other {name.replace('_', ' ')}: the data set has changed")
        if about.reader != (reader := self.loader.reader.name):
            raise DataError(
                path, f"its clips were decoded by {about.reader}, here they would be by {reader}: see --reader"
            )
        step = self.train_step
        load_weights(self.detector, tensors, path)
        step.clip_head.load_state_dict({name: tensors[f"clip_head.{name}"] for name in step.clip_head.state_dict()})
        for name, value in step.average.items():
            value.copy_(tensors[f"average.{name}"])
        for number, parameter in enumerate(step.parameters):
            prefix = f"optimizer.{number}."
            step.optimizer.state[parameter] = {
                # Fused AdamW walks memory, not indices: its averages must lie as the parameter does (channels last).
                name.removeprefix(prefix): torch.empty_like(parameter).copy_(value)
                if value.ndim
                else value.to(self.device)
                for name, value in tensors.items()
                if name.startswith(prefix)
            }
        if state["scaler"]:  # empty where the run was not in float16 before
            step.scaler.load_state_dict(state["scaler"])
        step.losses.copy_(tensors["losses"])
        self._summed, self.step = state["summed"], state["step"]
        numbers = {clip.name: number for number, clip in enumerate(self.loader.index.clips)}
        self.loader.left_out = {numbers[name]: DataError(*error) for name, error in state.get("left_out", {}).items()}
        if self.processes.rank == 0:
            self._cut_log()

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a resumed run to be the same run."""
        names = [clip.name for clip in self.loader.index.clips]
        return {
            "model": asdict(self.model),
            "settings": {name: value for name, value in asdict(self.config).items() if name not in LAUNCH},
            "training_clips": [names[i] for i in self.train_ids],
            "held_out_clips": [names[i] for i in self.val_ids],
        }

    def _about(self, training: dict[str, Any] | None = None) -> About:
        index = self.loader.index
        held_out = tuple(index.clips[i].name for i in self.val_ids)
        return About(self.model, self.loader.reader.name, index.median_seconds(), self.config.loss, held_out, training)

    def _model_tensors(self) -> dict[str, Tensor]:
        return {f"model.{name}": tensor for name, tensor in self.detector.state_dict().items()}

    def _cut_log(self) -> None:
        """Drop the log lines past the restored state, which will be written again, and a last one that is not whole.

        The evaluation after an epoch's last step comes after its checkpoint.
        """
        path = self.out / "log.jsonl"
        if path.exists():
            kept = []
            for line in path.read_text().splitlines(keepends=True):
                record = json.loads(line) if line.endswith("\n") else {"step": math.inf}
                if record["step"] < self.step or (record["step"] == self.step and "loss" in record):
                    kept.append(line)
            write_bytes(path, "".join(kept).encode())

    def _check_finite(self) -> None:
        norm = nn.utils.get_total_norm(p.detach() for p in self.train_step.parameters)
        if not self.processes.sum(norm + self.train_step.losses.sum()).isfinite():
            raise self._not_finite()

    def _not_finite(self) -> ActdetError:
        last = self.out / LAST
        kept = f"the state before it is in {last}" if last.exists() else "no checkpoint had been written before it"
        return ActdetError(
            f"the loss or the weights are not finite at step {self.step} of {self.total_steps}: "
            f"lower --lr, or use --precision fp32; {kept}"
        )


def clip_shape(model: ModelConfig, config: TrainConfig, processes: Processes) -> tuple[int, ...]:
    """(B, 3, T, S, S) of the clips that a process gets at once."""
    batch = -(-config.batch_size // processes.count)
    return batch, 3, model.frames, model.image_size, model.image_size


def _last_batch(clips: int, batch_size: int) -> int:
    return (clips - 1) % batch_size + 1


def learning_rate(config: TrainConfig, epoch: float) -> float:
    """Cosine from `lr` to `min_lr` over the epochs (eq. 15), after a linear rise over the first `warmup` of them."""
    if epoch < config.warmup:
        return config.lr * epoch / config.warmup
    share = (epoch - config.warmup) / (config.epochs - config.warmup)
    return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * share)) / 2
