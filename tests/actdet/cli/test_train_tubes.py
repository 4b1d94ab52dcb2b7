"""actdet train --family tubelet: from rendered videos with tubes to a detector that follows actors, and its figures."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from actdet import TrainConfig, pictures, train
from actdet.data.index import load_index
from actdet.data.windows import cut_windows
from actdet.evaluation import plots
from actdet.models.backbones.efficientnet_lite import EfficientNetLite0
from actdet.models.checkpoints import load_model, read_info
from actdet.models.tubelet.config import TubeletConfig, TubeletLoss
from actdet.models.tubelet.detector import TubeletDetector
from actdet.synthetic.rendered import RenderConfig, render_dataset
from tests.actdet.command import Actdet
from tests.actdet.prediction.followers import PARTS, answer_in_parts, save_follower
from tests.actdet.tiny import MODEL_OPTIONS, TRAIN_OPTIONS, TUBELET_OPTIONS

OPTIONS = [*TUBELET_OPTIONS, *TRAIN_OPTIONS, "--batch-size", 4]


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def tubes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight videos of about four seconds, with at most three actors in one."""
    out = tmp_path_factory.mktemp("tubes") / "set"
    render_dataset(out, RenderConfig(clips=8, width=64, height=64, frames=32, fps=8, workers=1, tubes=True))
    return out


def _count_tubes(data: Path, videos: Iterable[str]) -> int:
    """How many tubes the tables of these videos have: different pairs of a track and a class."""
    tables = [(data / "annotations" / f"{name}.csv").read_text().splitlines()[1:] for name in videos]
    return sum(len({tuple(line.split(",")[1:3]) for line in table}) for table in tables)


def _figures(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if name != "seconds"}


@pytest.mark.usefixtures("no_bf16_units")
def test_a_detector_is_trained_evaluated_and_predicts(actdet_command: Actdet, tubes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    trained = actdet_command("train", tubes, "--out", run, "--epochs", 2, "--val-share", 0.4, *OPTIONS)
    assert trained.code == 0, trained.err
    detector, info = load_model(run / "model.safetensors")
    assert isinstance(detector, TubeletDetector)
    assert (info.family, info.window) == ("tubelet", 0)
    assert detector.config.slots == 3
    assert isinstance(info.loss, TubeletLoss)

    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if "loss" in record]
    assert losses
    for loss in losses:
        terms = 2 * loss["cls"] + 5 * loss["l1"] + 2 * loss["giou"] + loss["denoising"]
        assert loss["total"] == pytest.approx(terms, rel=1e-4)

    metrics = _json(run / "metrics.json")
    of_tubes = metrics["tubes"]
    assert of_tubes["tubes"] == _count_tubes(tubes, info.held_out) > 0
    assert set(of_tubes["classes"]) == {"fight", "collapse"}
    assert list(of_tubes["video_map"]) == ["0.2", "0.5", "0.75", "0.5:0.95"]
    assert 0 <= of_tubes["frame_map"] <= 1
    assert f"{of_tubes['tubes']} tubes: frame-mAP {of_tubes['frame_map']:.3f} at IoU 0.5" in trained.out
    assert f"identities: {of_tubes['switches']} switches" in trained.out

    report = (run / "report.html").read_text()
    assert f"{of_tubes['tubes']} tubes: frame-mAP {of_tubes['frame_map']:.3f}" in report
    assert TubeletDetector.rule in report
    assert {path.stem for path in (run / "videos").iterdir()} == set(info.held_out)

    again = tmp_path / "again"
    words = ["evaluate", run / "model.safetensors", tubes, "--held-out", "--workers", 0, "--no-videos", "--out", again]
    evaluated = actdet_command(*words)
    assert evaluated.code == 0, evaluated.err
    assert _figures(_json(again / "metrics.json")) == _figures(metrics)

    video = min((tubes / "videos").iterdir())
    predicted = actdet_command("predict", run / "model.safetensors", video, "--out", tmp_path / "p", "--no-annotate")
    assert predicted.code == 0, predicted.err
    assert _json(tmp_path / "p" / f"{video.stem}.tubes.json")["complete"]


def test_answers_in_parts_have_the_figures_of_whole_ones(
    actdet_command: Actdet, tubes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an actor who is the same in all frames; the report shows the same pictures of him."""
    # Of a probability of 1 every mean is 1, so that rounding puts no frame before another one.
    follower = save_follower(tmp_path / "follower.safetensors", 1.0, boxes=[(0.75, 0.53, 0.19, 0.34)], odds=40.0)
    options = ["evaluate", follower, tubes, "--workers", 0, "--no-videos", "--out"]
    assert actdet_command(*options, tmp_path / "whole").code == 0
    wanted = _figures(_json(tmp_path / "whole" / "metrics.json"))
    assert wanted["tubes"]["frame_map"] > 0
    for name in ("overlap", "gaps", "one in the middle"):
        with monkeypatch.context() as patch:
            answer_in_parts(patch, PARTS[name])
            assert actdet_command(*options, tmp_path / name).code == 0
        assert _figures(_json(tmp_path / name / "metrics.json")) == wanted, name
        pictures_of = [
            re.findall('data:image[^"]*', (tmp_path / out / "report.html").read_text()) for out in ("whole", name)
        ]
        assert pictures_of[0] == pictures_of[1]
        assert pictures_of[0]


def test_a_detector_of_whole_clips_learns_from_the_same_videos(
    actdet_command: Actdet, tubes: Path, tmp_path: Path
) -> None:
    """But it has no figures of tubes."""
    run = tmp_path / "run"
    outcome = actdet_command("train", tubes, "--out", run, "--epochs", 1, *MODEL_OPTIONS, *TRAIN_OPTIONS)
    assert outcome.code == 0, outcome.err
    assert _json(run / "metrics.json")["tubes"] is None
    assert "frame-mAP" not in outcome.out
    assert "frame-mAP" not in (run / "report.html").read_text()


@pytest.mark.usefixtures("no_bf16_units")
def test_a_backbone_of_pictures_trains_and_is_evaluated(actdet_command: Actdet, tubes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["--backbone", "efficientnet-lite0", "--backbone-weights", "imagenet", "--auxiliary-weight", 1]
    trained = actdet_command("train", tubes, "--out", run, "--epochs", 1, *OPTIONS, *words)
    assert trained.code == 0, trained.err
    detector, info = load_model(run / "model.safetensors")
    assert isinstance(info.model, TubeletConfig)
    assert info.model.backbone == "efficientnet-lite0"
    assert isinstance(detector.backbone, EfficientNetLite0)

    again = tmp_path / "again"
    evaluated = actdet_command(
        "evaluate", run / "model.safetensors", tubes, "--held-out", "--workers", 0, "--no-videos", "--out", again
    )
    assert evaluated.code == 0, evaluated.err
    assert _figures(_json(again / "metrics.json")) == _figures(_json(run / "metrics.json"))


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--shallow-epochs", 1], "shallow_epochs is not for the backbone efficientnet-lite0: leave it out"),
        (
            ["--temporal-strides", 1],
            "temporal_strides is not for the backbone efficientnet-lite0, which keeps all frames: leave it out",
        ),
        (["--checkpointing"], "checkpointing is not for the backbone efficientnet-lite0: leave it out"),
        (
            ["--backbone-weights", "kinetics"],
            "EfficientNet-Lite0 has no weights of Kinetics: use --backbone-weights imagenet, a file, or none",
        ),
    ],
)
def test_what_a_backbone_of_pictures_cannot_do_is_one_line(
    actdet_command: Actdet, tubes: Path, tmp_path: Path, words: list[object], complaint: str
) -> None:
    options = [*OPTIONS, "--backbone", "efficientnet-lite0", *words]
    outcome = actdet_command("train", tubes, "--out", tmp_path / "run", "--epochs", 2, *options)
    assert outcome.complaint() == complaint


@pytest.mark.parametrize(
    "changes",
    [
        ["--query-form", "free", "--attention", "plain", "--no-pyramid", "--matching", "frame", "--dropout", 0.1],
        ["--multi-label", "--all-frames", "--temporal-strides", 0, "--denoising-groups", 0, "--small-epochs", 1],
        ["--mixup", 0.5, "--ema-decay", 0.9, "--checkpointing", "--shallow-epochs", 1],
    ],
    ids=lambda changes: changes[0],
)
def test_other_settings_train(actdet_command: Actdet, tubes: Path, tmp_path: Path, changes: list[object]) -> None:
    run = tmp_path / "run"
    outcome = actdet_command("train", tubes, "--out", run, "--epochs", 2, *OPTIONS, *changes)
    assert outcome.code == 0, outcome.err
    assert _json(run / "metrics.json")["tubes"]["tubes"] > 0
    model = read_info(run / "model.safetensors").model
    assert isinstance(model, TubeletConfig)
    assert model.multi_label == ("--multi-label" in changes)
    assert (model.attention == "plain") == ("plain" in changes)


def test_an_interrupted_training_goes_on_as_it_would_have(
    tiny_backbone: None, tubes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same noisy copies, whatever was drawn in between."""
    monkeypatch.setattr(plots, "_svg", lambda figure: "<svg></svg>")
    monkeypatch.setattr(pictures, "_LEAST_WIDTH", 64)
    model = TubeletConfig(image_size=32, frames=8, decoder_layers=1, slots=3)
    config = TrainConfig(
        epochs=3, batch_size=4, loss=TubeletLoss(), backbone_weights="none", workers=0, precision="fp32"
    )
    whole = train(tubes, tmp_path / "whole", model=model, config=config)

    class Interrupted(Exception):
        pass

    def interrupt(done: int, total: int) -> None:
        if done == total - 1:
            raise Interrupted

    # The state is saved after every epoch if it need not be so old.
    monkeypatch.setattr("actdet.training.trainer.SAVE_SECONDS", -1)
    parts = tmp_path / "parts"
    with pytest.raises(Interrupted):
        train(tubes, parts, model=model, config=config, progress=interrupt)
    resumed = train(tubes, parts, model=model, config=config, resume=True)
    assert whole is not None
    assert resumed is not None
    assert resumed.metrics.tubes is not None
    assert resumed.metrics == whole.metrics
    (one, _), (other, _) = (load_model(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    for name, value in one.state_dict().items():
        assert other.state_dict()[name].equal(value), name


def test_videos_are_trained_on_in_windows(actdet_command: Actdet, tubes: Path, tmp_path: Path) -> None:
    """Training, a resumed training, and an evaluation of the model cut the videos alike."""
    run = tmp_path / "run"
    outcome = actdet_command("train", tubes, "--out", run, "--epochs", 1, "--window", 1, *OPTIONS)
    assert outcome.code == 0, outcome.err
    info = read_info(run / "model.safetensors")
    assert info.window == 1
    assert info.clip_seconds == pytest.approx(1, abs=0.2)
    assert all(re.fullmatch(r"\w+@\d\.\d\d", name) for name in info.held_out)
    first = _json(run / "metrics.json")
    assert first["clips"] == len(info.held_out)

    # Tubes are those of whole videos, so that a video's windows are linked first.
    videos = {name.partition("@")[0] for name in info.held_out}
    assert first["tubes"]["tubes"] == _count_tubes(tubes, videos)

    (run / "metrics.json").unlink()
    outcome = actdet_command("train", tubes, "--out", run, "--resume")
    assert outcome.code == 0, outcome.err
    assert _figures(_json(run / "metrics.json")) == _figures(first)

    words = ["evaluate", run / "model.safetensors", tubes, "--held-out", "--workers", 0, "--no-videos"]
    outcome = actdet_command(*words, "--out", tmp_path / "e")
    assert outcome.code == 0, outcome.err
    assert _json(tmp_path / "e" / "metrics.json")["tubes"] == first["tubes"]


@pytest.mark.parametrize("window", [0, 2])
def test_more_actors_than_slots_are_one_line(
    actdet_command: Actdet, tubes: Path, tmp_path: Path, window: float
) -> None:
    """Also those of whom a window shows too little for the annotations of whole clips."""
    options = [*TUBELET_OPTIONS[:-1], 1, *TRAIN_OPTIONS, "--window", window]
    complaint = actdet_command("train", tubes, "--out", tmp_path / "run", *options).complaint()
    found = re.fullmatch(
        r"clip (\S+) has (\d) annotations, more than the 1 slot of the model: use --slots (\d) or more", complaint
    )
    assert found is not None, complaint
    name, count, wanted = found.groups()
    tables = {clip.name: clip.tubes for clip in cut_windows(load_index(tubes), window).clips}
    assert count == wanted == str(len(tables[name])) == str(max(map(len, tables.values())))
    assert not (tmp_path / "run").exists()


def test_actors_who_do_several_things_take_one_slot(actdet_command: Actdet, tubes: Path, tmp_path: Path) -> None:
    """Everybody collapses, too, in the middle of each of his actions."""
    data = tmp_path / "set"
    shutil.copytree(tubes, data)
    most = 0
    for table in (data / "annotations").glob("*.csv"):
        header, *lines = table.read_text().splitlines()
        rows = [line.split(",") for line in lines]
        tracks = {row[1] for row in rows}
        most = max(most, len(tracks))
        doubled = [[*row[:2], {"fight": "collapse", "collapse": "fight"}[row[2]], *row[3:]] for row in rows]
        table.write_text("\n".join([header, *lines, *map(",".join, doubled)]) + "\n")

    # One slot for each actor is enough, although there are twice as many tubes.
    words = [*TUBELET_OPTIONS[:-1], most, *TRAIN_OPTIONS, "--batch-size", 4, "--epochs", 1, "--val-share", 0.4]
    alone = actdet_command("train", data, "--out", tmp_path / "a", *words)
    assert "more than the" in alone.complaint()
    run = tmp_path / "run"
    trained = actdet_command("train", data, "--out", run, "--multi-label", *words)
    assert trained.code == 0, trained.err
    metrics = _json(run / "metrics.json")
    assert metrics["tubes"]["tubes"] == _count_tubes(data, load_model(run / "model.safetensors")[1].held_out)


def test_the_family_has_its_own_options(actdet_command: Actdet) -> None:
    shown = actdet_command("train", "--family", "tubelet", "--help").out
    for option in ("--slots", "--query-form", "--attention", "--all-frames", "--matching", "--denoising-groups"):
        assert option in shown, option
    assert "--queries" not in shown
    assert "--encoder-layers" not in shown
