"""The training of a detector: clips in, checkpoints out.

    loader -> one step after another (`step.TrainStep`) -> log, evaluations, checkpoints

`Trainer.steps()` runs it and yields after every step, so that the caller may show progress or stop and `save()`;
nothing is printed here. A run's folder holds
    log.jsonl               one line for every LOG_EVERY steps and for every evaluation
    last.safetensors        the state to go on from (`restore`), written every few minutes and when stopped
    best.safetensors        the detector as it was at the best evaluation, where clips are held out
    model.safetensors       the trained detector, written at the end, from which a missing evaluation can be made
Everything random in a step follows from (seed, epoch, number of the step), so on a CPU a resumed run repeats the
numbers of an uninterrupted one. Of several processes, all run the same steps on their shares of the batches, and the
first writes.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from actdet.data.augment import Batch
from actdet.data.loader import ClipLoader
from actdet.device import choose_precision, choose_step, prepare_device
from actdet.distributed import ALONE, Processes
from actdet.errors import ActdetError, DataError
from actdet.evaluation.clips import Evaluation, evaluate
from actdet.evaluation.metrics import Metrics
from actdet.files import to_json, write_bytes
from actdet.models.backbones.convolution import set_flat
from actdet.models.backbones.r2plus1d import choose_convolutions, load_backbone_weights
from actdet.models.checkpoints import (
    About,
    from_json,
    load_detector,
    load_weights,
    read_about,
    read_checkpoint,
    save_checkpoint,
    take_tensor,
)
from actdet.models.detr.config import ModelConfig
from actdet.models.detr.detector import ActionDetector
from actdet.training.config import TrainConfig
from actdet.training.cost import find_card, step_flop
from actdet.training.train_step import LOSSES, TrainStep

LOG_EVERY = 10  # steps between two reads of the losses from the device
MODEL, LAST, BEST, LOG = "model.safetensors", "last.safetensors", "best.safetensors", "log.jsonl"
# Settings that change no result of the clips that can be read.
LAUNCH = ("step", "checkpointing", "workers", "cache", "disk_cache", "bad_files")
# What of an evaluation is compared between trainings, and drawn.
FIGURES = ("video_accuracy", "detection_accuracy", "mean_iou", "average_precision", "located_iou")
SAVE_SECONDS = 300  # least time between two training checkpoints


@dataclass(frozen=True)
class Progress:
    """Where a run is, after a step."""

    epoch: int
    step: int
    total_steps: int
    record: dict[str, Any] | None
    """The line that this step wrote to the log, if it wrote one."""


@dataclass(frozen=True)
class StoredRun:
    """What the state in a run's folder says of the run, so that it can go on with nothing else but the data."""

    model: ModelConfig
    config: TrainConfig
    training_clips: tuple[str, ...]
    held_out_clips: tuple[str, ...]


def read_run(out: Path) -> StoredRun:
    """What the run in `out` is. Raises DataError where there is no state to go on from, or none that can be read."""
    path = _state_path(out)
    state = _state_of(path, read_about(path))
    try:
        return StoredRun(
            from_json(ModelConfig, state["model"]),
            from_json(TrainConfig, state["settings"] | state.get("launch", {})),
            tuple(state["training_clips"]),
            tuple(state["held_out_clips"]),
        )
    except (TypeError, ActdetError) as error:
        raise DataError(path, f"its description cannot be read: {error}") from error


def _state_path(out: Path) -> Path:
    """The file in `out` from which its run goes on."""
    # The trained detector is whole, written at the end: what may be missing after it is evaluation and report.
    for name in (MODEL, LAST):
        if (out / name).exists():
            return out / name
    raise DataError(out, "nothing to resume: it holds no state of a training; begin it without --resume")


def _state_of(path: Path, about: About) -> dict[str, Any]:
    """The state that a checkpoint describes. Raises DataError where it describes none, or one that cannot be."""
    state = about.training
    if state is None:
        raise DataError(path, "holds a trained detector, not the state of a training")

    def texts(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(part, str) for part in value)

    def count(value: Any) -> bool:
        return type(value) is int and 0 <= value < 2**63

    def number(value: Any) -> bool:
        return type(value) in (int, float) and math.isfinite(value)

    def left_out(value: Any) -> bool:
        return isinstance(value, dict) and all(
            isinstance(error, list) and len(error) == 3 and texts(error[:2]) and (error[2] is None or count(error[2]))
            for error in value.values()
        )

    optional: dict[str, Any] = {"left_out": {}, "launch": {}, "best": None, **state}
    for name, holds in {
        "step": count,
        "summed": count,
        "model": lambda value: isinstance(value, dict),
        "settings": lambda value: isinstance(value, dict),
        "launch": lambda value: isinstance(value, dict),
        "training_clips": texts,
        "held_out_clips": texts,
        "left_out": left_out,
        "scaler": lambda value: isinstance(value, dict) and all(map(number, value.values())),
        "best": lambda value: value is None or (isinstance(value, list) and all(map(number, value))),
    }.items():
        if name not in optional or not holds(optional[name]):
            raise DataError(path, f"its description cannot be read: {name} of its training is missing or wrong")
    return optional


class Trainer:
    """One training run: `for progress in trainer.steps(): ...`, then `trainer.finish()`.

    to_restore: `restore` follows, so that the weights to start from need not be read.
    """

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
        *,
        to_restore: bool = False,
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
        if not to_restore:
            _start_weights(detector, config)
        set_flat(detector.backbone, choose_convolutions(clip_shape(model, config, processes), device, self.dtype)[0])
        self.train_step = TrainStep(detector, config, device, self.dtype, mode, processes)
        self.detector = self.train_step.detector
        self.step = 0
        self._best: list[float] | None = None
        self._trained = False
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
                self._note(epoch, self.evaluate().metrics)
            self._since, self._clips, self._waited = time.monotonic(), 0, 0.0
            self.detector.backbone.shallow = epoch < self.config.shallow_epochs
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
        if self.processes.rank == 0 and not self._trained:
            with self.train_step.averaged():
                save_checkpoint(self.out / MODEL, self._model_tensors(), self._about(self._training()))
        evaluation = self.evaluate() if self.val_ids else None
        if evaluation is not None:
            self._note(self.config.epochs, evaluation.metrics)
        if self.processes.rank == 0:
            (self.out / LAST).unlink(missing_ok=True)
        return evaluation

    def _note(self, epoch: int, metrics: Metrics) -> None:
        """Log an evaluation, and keep the detector that it is of where it is the best one yet."""
        self._log({"epoch": epoch, "step": self.step, "validation": asdict(metrics)})
        figures = (metrics.detection_accuracy, metrics.video_accuracy, metrics.mean_iou)
        reached = [-1.0 if figure is None else figure for figure in figures]
        if self._best is not None and reached <= self._best:
            return
        # A folder that holds the best detector holds a state, too, so that its run can always go on.
        if not self._trained and self.step < self.total_steps:
            self.save()
        self._best = reached
        if self.processes.rank == 0:
            with self.train_step.averaged():
                save_checkpoint(self.out / BEST, self._model_tensors(), self._about())

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
        whole = self.step > self.steps_per_epoch * max(self.config.small_epochs, self.config.shallow_epochs)
        if self._clip_flop and whole:
            speed["tflop_per_second"] = 1e-12 * rate * self._clip_flop
            if self._card and self.dtype in self._card.flop_per_s:
                speed["utilisation"] = rate * self._clip_flop / self._card.flop_per_s[self.dtype]
        return speed

    def _log(self, record: dict[str, Any]) -> None:
        if self.processes.rank:
            return
        path = self.out / LOG
        try:
            with open(path, "a") as file:
                file.write(to_json(path, record) + "\n")
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
        save_checkpoint(self.out / LAST, tensors, self._about(self._training()))

    def keep(self) -> Path:
        """Save the state, where it is not in the trained detector already, and return the file that holds it."""
        if self.processes.rank == 0 and (self.out / MODEL).exists():
            return self.out / MODEL
        self.save()
        return self.out / LAST

    def _training(self) -> dict[str, Any]:
        """What a checkpoint says of the run, beside its tensors."""
        settings = asdict(self.config)
        return {
            "step": self.step,
            "summed": self._summed,
            "scaler": self.train_step.scaler.state_dict(),
            "best": self._best,
            "left_out": {
                self.loader.index.clips[clip].name: (error.path, error.problem, error.line)
                for clip, error in self.loader.left_out.items()
            },
            "launch": {name: settings[name] for name in LAUNCH},
            **self._identity(),
        }

    def restore(self) -> None:
        """Go on from `last.safetensors` in the run's folder, or, where it is there already, `model.safetensors`.

        Raises DataError where both are missing or not whole, or belong to other settings or other clips.
        """
        path = _state_path(self.out)
        tensors, about = read_checkpoint(path)
        state = _state_of(path, about)
        trained = path.name == MODEL
        if not trained and "losses" not in tensors:
            raise DataError(path, "holds a trained detector, not the state of a training")
        # A setting that came after the checkpoint had been written was what is the default now.
        defaults = json.loads(json.dumps({"model": asdict(ModelConfig()), "settings": asdict(TrainConfig())}))
        for name, value in json.loads(json.dumps(self._identity())).items():
            for setting in value if isinstance(value, dict) else ():
                before = state[name].get(setting, defaults[name][setting])
                if before != value[setting]:
                    raise DataError(
                        path,
                        f"a checkpoint of another configuration: {setting} was {before}, is now {value[setting]}",
                    )
            if isinstance(value, list) and state[name] != value:
                raise DataError(path, f"a checkpoint of other {name.replace('_', ' ')}: the data set has changed")
        if about.reader != (reader := self.loader.reader.name):
            raise DataError(
                path, f"its clips were decoded by {about.reader}, here they would be by {reader}: see --reader"
            )
        if state["step"] > self.total_steps or (trained and state["step"] < self.total_steps):
            raise DataError(path, f"its step {state['step']} is not one of a run of {self.total_steps} steps")
        load_weights(self.detector, tensors, path)
        if trained:
            live = self.train_step.live()
            for name, value in self.train_step.average.items():
                value.copy_(live[name])
        else:
            self._restore_state(path, tensors, state)
        self._trained, self._best = trained, state["best"]
        self._summed, self.step = state["summed"], state["step"]
        numbers = {clip.name: number for number, clip in enumerate(self.loader.index.clips)}
        self.loader.left_out = {
            numbers[name]: DataError(*error) for name, error in state["left_out"].items() if name in numbers
        }
        if self.processes.rank == 0:
            self._cut_log()

    def _restore_state(self, path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Take over what only training needs. Raises DataError for what does not fit."""
        step = self.train_step

        def take(name: str, wanted: Tensor) -> Tensor:
            return take_tensor(tensors, name, name, wanted, path)

        head = step.clip_head.state_dict()
        step.clip_head.load_state_dict({name: take(f"clip_head.{name}", value) for name, value in head.items()})
        for name, value in step.average.items():
            value.copy_(take(f"average.{name}", value))
        for number, parameter in enumerate(step.parameters):
            # A run that was saved before its first step has none.
            if f"optimizer.{number}.step" not in tensors:
                continue
            count = take(f"optimizer.{number}.step", torch.zeros(()))
            step.optimizer.state[parameter] = {"step": count.to(self.device)}
            for average in ("exp_avg", "exp_avg_sq"):
                # Fused AdamW walks memory, not indices: its averages must lie as the parameter does (channels last).
                value = torch.empty_like(parameter).copy_(take(f"optimizer.{number}.{average}", parameter))
                step.optimizer.state[parameter][average] = value
        step.losses.copy_(take("losses", step.losses))
        # Empty where the run was not in float16 before.
        if state["scaler"]:
            if step.scaler.is_enabled() and state["scaler"].keys() != step.scaler.state_dict().keys():
                raise DataError(path, "its description cannot be read: scaler of its training is wrong")
            step.scaler.load_state_dict(state["scaler"])

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
        """Drop the log lines past the restored state, which will be written again, and those that are none.

        The evaluation after an epoch's last step comes after its checkpoint.
        """
        path = self.out / LOG
        if path.exists():
            kept = [
                record
                for record in read_log(path)
                if record["step"] < self.step or (record["step"] == self.step and "loss" in record)
            ]
            write_bytes(path, "".join(to_json(path, record) + "\n" for record in kept).encode())

    def _check_finite(self) -> None:
        norm = nn.utils.get_total_norm(p.detach() for p in self.train_step.parameters)
        if not self.processes.sum(norm + self.train_step.losses.sum()).isfinite():
            raise self._not_finite()

    def _not_finite(self) -> ActdetError:
        last = self.out / LAST
        kept = f"the state before it is in {last}" if last.exists() else "no checkpoint had been written before it"
        return ActdetError(
            f"the loss or the weights are not finite at step {self.step} of {self.total_steps}: "
            f"lower lr, or use precision fp32; {kept}"
        )


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a training's log, in order, without lines that are none, such as half a last one."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError:
        return []
    records = []
    for line in lines:
        try:
            record = json.loads(line)
            # Which refuses NaN and infinity, that Python reads though JSON has neither.
            json.dumps(record, allow_nan=False)
        except (ValueError, RecursionError):
            continue
        if _is_record(record):
            records.append(record)
    return records


def _is_record(record: Any) -> bool:
    def numbers(value: Any, names: Iterable[str]) -> bool:
        return isinstance(value, dict) and all(type(value.get(name)) in (int, float) for name in names)

    if not numbers(record, ("step", "epoch")):
        return False
    if "loss" in record:
        return numbers(record["loss"], LOSSES)
    return isinstance(record.get("validation"), dict) and record["validation"].keys() >= set(FIGURES)


def _start_weights(detector: ActionDetector, config: TrainConfig) -> None:
    """Fill a new detector with what its training is to start from."""
    if config.init is None:
        load_backbone_weights(detector.backbone, config.backbone_weights)
        return
    path = Path(config.init)
    found, about = load_detector(path)
    for name, value in asdict(detector.config).items():
        stored = getattr(about.model, name)
        # These two are of the training, not of the weights.
        if name not in ("dropout", "deep_supervision") and value != stored:
            raise DataError(path, f"a detector of another configuration: {name} is {stored}, asked for is {value}")
    detector.load_state_dict(found.state_dict())


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
