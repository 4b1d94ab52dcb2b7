"""The training of a detector: clips in, checkpoints out.

    loader -> detector -> match -> set loss -> clip -> AdamW        (`Trainer._step`, sections 3.3 and 3.4)

With `auxiliary_weight` the averaged features of the backbone must also say, by one linear layer, what happens in the
clip and where (`Trainer._auxiliary_loss`). A backbone without pretrained weights learns by that in half the time.

`Trainer.steps()` runs it and yields after every step, so that the caller may show progress or stop and `save()`;
nothing is printed here. A run's folder holds
    log.jsonl               one line for every LOG_EVERY steps and for every evaluation
    last.safetensors        the state to go on from (`resume`), written every few minutes and when stopped
    model.safetensors       the trained detector, written at the end
Everything random in a step follows from (seed, epoch, number of the step), so a resumed run repeats the numbers of
an uninterrupted one.
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
from actdet_kernels import MatchWeights, SetLoss, Targets, match, set_loss
from torch import Tensor, nn

from actdet.checkpoints import About, load_weights, read_checkpoint, save_checkpoint
from actdet.config import ModelConfig, TrainConfig
from actdet.data.augment import Batch
from actdet.data.loader import ClipLoader
from actdet.device import choose_precision
from actdet.errors import ActdetError, DataError
from actdet.evaluation import Evaluation, evaluate
from actdet.files import write_bytes
from actdet.models import ActionDetector, load_backbone_weights
from actdet.models.backbone import FEATURES

LOG_EVERY = 10  # steps between two reads of the losses from the device
MODEL, LAST = "model.safetensors", "last.safetensors"
SAVE_SECONDS = 300  # least time between two training checkpoints
LOSSES = (*SetLoss._fields, "auxiliary")
AUXILIARY_WEIGHTS = MatchWeights(8.0, 5.0, 2.0)  # classes are slower to learn than boxes: docs/LOG.md


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
    ) -> None:
        self.model, self.config, self.loader, self.out, self.device = model, config, loader, out, device
        self.train_ids, self.val_ids = train_ids, val_ids
        self.dtype, _ = choose_precision(config.precision, device)
        torch.manual_seed(config.seed)
        self.detector = ActionDetector(model)
        load_backbone_weights(self.detector.backbone, config.backbone_weights)
        self.detector.to(device).to(memory_format=torch.channels_last_3d)
        self.detector.backbone.requires_grad_(not config.freeze_backbone)
        self.clip_head = nn.Linear(FEATURES, len(model.class_names) + 1 + 4).to(device)  # for the auxiliary loss
        self.parameters = [p for p in self.detector.parameters() if p.requires_grad]
        if config.auxiliary_weight:
            self.parameters += self.clip_head.parameters()
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.lr, betas=(0.9, 0.999), weight_decay=config.weight_decay, fused=True
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.steps_per_epoch = math.ceil(len(train_ids) / config.batch_size)
        self.total_steps = config.epochs * self.steps_per_epoch
        self.step = 0
        self._losses = torch.zeros(len(LOSSES), device=device)  # summed since the last log line
        self._summed = 0

    def steps(self) -> Iterator[Progress]:
        """Run from where the trainer stands to the end. Raises ActdetError when the loss is not finite."""
        saved = time.monotonic()
        for epoch in range(self.step // self.steps_per_epoch, self.config.epochs):
            done = self.step % self.steps_per_epoch
            if self.val_ids and epoch and not done and epoch % self.config.eval_every == 0:
                self._check_finite()
                self._log({"epoch": epoch, "step": self.step, "validation": asdict(self.evaluate().metrics)})
            for batch in self.loader.train_batches(self.train_ids, self.config, epoch, skip=done):
                self._step(batch)
                due = self.step % LOG_EVERY == 0 or self.step % self.steps_per_epoch == 0
                record = self._log_losses() if due else None
                yield Progress(epoch, self.step, self.total_steps, record)
            if epoch + 1 < self.config.epochs and time.monotonic() - saved > SAVE_SECONDS:
                self.save()
                saved = time.monotonic()

    def finish(self) -> Evaluation | None:
        """Write the trained detector; evaluate it on the held-out clips, where there are any.

        Raises ActdetError, and writes nothing, where it is not finite.
        """
        self._check_finite()
        save_checkpoint(self.out / MODEL, self._model_tensors(), self._about())
        (self.out / LAST).unlink(missing_ok=True)
        if not self.val_ids:
            return None
        evaluation = self.evaluate()
        self._log({"epoch": self.config.epochs, "step": self.step, "validation": asdict(evaluation.metrics)})
        return evaluation

    def evaluate(self) -> Evaluation:
        """What the detector, as it stands, makes of the held-out clips."""
        return evaluate(self.detector, self.loader, self.val_ids, self.config.loss, self.dtype)

    def _step(self, batch: Batch) -> None:
        self.detector.train()
        if self.config.freeze_backbone:
            self.detector.backbone.eval()
        torch.manual_seed(hash((self.config.seed, self.step)))  # dropout
        self._set_learning_rate()
        losses = self._batch_losses(batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(losses[0]).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._losses += torch.stack(losses).detach()
        self._summed += 1
        self.step += 1

    def _batch_losses(self, batch: Batch) -> list[Tensor]:
        """The values of LOSSES for a batch; the first is what is minimised."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            features = self.detector.backbone(batch.clips)
            logits, boxes = self.detector.detect(features)
        loss, weights = self.config.loss, self.config.loss.match_weights
        matched = match(logits, boxes, batch.targets, weights=weights)
        losses = set_loss(
            logits, boxes, batch.targets, matched, weights=weights, no_object_weight=loss.no_object_weight
        )
        if not self.config.auxiliary_weight:
            return [*losses, torch.zeros_like(losses.total)]
        auxiliary = self._auxiliary_loss(features, batch.targets)
        return [losses.total + self.config.auxiliary_weight * auxiliary, *losses[1:], auxiliary]

    def _auxiliary_loss(self, features: Tensor, targets: Targets) -> Tensor:
        """The set loss of a set of one, class and box, read off the averaged features by one linear layer."""
        said = self.clip_head(features.float().mean((2, 3, 4)))[:, None]
        logits, boxes = said[..., :-4], said[..., -4:].sigmoid()
        matched = match(logits, boxes, targets, weights=AUXILIARY_WEIGHTS)
        return set_loss(logits, boxes, targets, matched, weights=AUXILIARY_WEIGHTS, no_object_weight=1.0).total

    def _set_learning_rate(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step / self.steps_per_epoch)

    def _log_losses(self) -> dict[str, Any]:
        """Read the mean losses since the last line from the device; the only place where a step waits for it."""
        values = (self._losses / self._summed).tolist()
        self._losses.zero_()
        self._summed = 0
        record = {
            "epoch": self.step / self.steps_per_epoch,
            "step": self.step,
            "lr": self.optimizer.param_groups[0]["lr"],
            "loss": dict(zip(LOSSES, values, strict=True)),
        }
        if not all(map(math.isfinite, values)):
            raise self._not_finite()
        self._log(record)
        return record

    def _log(self, record: dict[str, Any]) -> None:
        path = self.out / "log.jsonl"
        try:
            with open(path, "a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise DataError(path, f"cannot be written: {error.strerror}") from error

    def save(self) -> None:
        """Write the state to go on from. Raises ActdetError, and keeps the one before, where it is not finite."""
        self._check_finite()
        tensors = self._model_tensors()
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
        tensors |= {f"clip_head.{name}": tensor for name, tensor in self.clip_head.state_dict().items()}
        tensors["losses"] = self._losses
        training = {
            "step": self.step,
            "summed": self._summed,
            "scaler": self.scaler.state_dict(),
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
        load_weights(self.detector, tensors, path)
        self.clip_head.load_state_dict({name: tensors[f"clip_head.{name}"] for name in self.clip_head.state_dict()})
        optimizer = self.optimizer.state_dict()
        for number, parameter in enumerate(self.parameters):
            prefix = f"optimizer.{number}."
            optimizer["state"][number] = {
                # Fused AdamW walks memory, not indices: its averages must lie as the parameter does (channels last).
                name.removeprefix(prefix): torch.empty_like(parameter).copy_(value) if value.ndim else value
                for name, value in tensors.items()
                if name.startswith(prefix)
            }
        self.optimizer.load_state_dict(optimizer)
        self.scaler.load_state_dict(state["scaler"])
        self._losses.copy_(tensors["losses"])
        self._summed, self.step = state["summed"], state["step"]
        self._cut_log()

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a resumed run to be the same run."""
        names = [clip.name for clip in self.loader.index.clips]
        return {
            "model": asdict(self.model),
            "settings": asdict(self.config),
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
        norm = nn.utils.get_total_norm(p.detach() for p in self.parameters)
        if not (norm + self._losses.sum()).isfinite():
            raise self._not_finite()

    def _not_finite(self) -> ActdetError:
        last = self.out / LAST
        kept = f"the state before it is in {last}" if last.exists() else "no checkpoint had been written before it"
        return ActdetError(
            f"the loss or the weights are not finite at step {self.step} of {self.total_steps}: "
            f"lower --lr, or use --precision fp32; {kept}"
        )


def learning_rate(config: TrainConfig, epoch: float) -> float:
    """Cosine from `lr` to `min_lr` over the epochs (eq. 15), after a linear rise over the first `warmup` of them."""
    if epoch < config.warmup:
        return config.lr * epoch / config.warmup
    share = (epoch - config.warmup) / (config.epochs - config.warmup)
    return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * share)) / 2
