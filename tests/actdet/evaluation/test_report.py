"""The report shows every clip, the wrong ones first, needs no other file, and has the figures of the evaluation."""

from __future__ import annotations

import html
import json
import math
import os
import re
import time
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
from actdet_kernels import Targets

from actdet import run_log
from actdet.data.clips import Clip, ClipIndex
from actdet.data.index import load_index
from actdet.errors import DataError
from actdet.evaluation import report
from actdet.evaluation.clips import Evaluation
from actdet.evaluation.metrics import ReliabilityBin, decided_iou, measure, true_labels
from actdet.evaluation.report import reliability_curve, write_report
from actdet.models.detr.assessment import assess
from actdet.models.detr.config import LossConfig, ModelConfig
from actdet.models.detr.decision import actions, decide
from actdet.run_folder import check_replaceable
from actdet.training.config import TrainConfig
from actdet.video.decoding import decode_frames
from actdet.video.info import probe
from tests.actdet.video.videos import corrupt, write_video

NAMES = ("fight", "collapse")
SCRIPT = "<script>alert(1)<script>"
WANTED = (0.5, 0.5, 0.5, 0.5)

# The annotated class, the decided class and the decided box of each clip. Class 2 is no action.
CASES = {
    "a right": (0, 0, WANTED),
    "b wrong class": (1, 0, WANTED),
    "c right none": (2, 2, WANTED),
    "d box off": (1, 1, (0.2, 0.2, 0.1, 0.1)),
    "e missed": (0, 2, WANTED),
    SCRIPT: (1, 1, WANTED),
    'z 100%25 #1 & "q"?': (2, 0, WANTED),
}
WRONG = ["b wrong class", "d box off", "e missed", 'z 100%25 #1 & "q"?']


class Page(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ClipIndex:
    root = tmp_path_factory.mktemp("set")
    (root / "videos").mkdir()
    (root / "annotations").mkdir()
    for number, (name, (truth, _, _)) in enumerate(CASES.items()):
        size, frames = [((97, 55), 5), ((64, 48), 1), ((480, 320), 9)][number % 3]
        write_video(root / "videos" / f"{name}.mkv", "mjpeg", frames=frames, size=size)
        box = f"{size[0] / 4} {size[1] / 4} {size[0] * 3 / 4} {size[1] * 3 / 4}"
        (root / "annotations" / f"{name}.txt").write_text(f"{truth} {box}\n" if truth < 2 else "")
    return load_index(root)


def _evaluation(index: ClipIndex, ids: list[int]) -> Evaluation:
    cases = [CASES[index.clips[i].name] for i in ids]
    logits = torch.zeros(len(cases), 2, 3)

    # By default, a query says no_object.
    logits[..., 2] = 6.0
    boxes = torch.full((len(cases), 2, 4), 0.3)
    for row, (_, decided, box) in enumerate(cases):
        logits[row, 1, 2] = 6.0 if decided == 2 else 0.0
        logits[row, 1, decided] = 6.0
        boxes[row, 1] = torch.tensor(box)
    labels, wanted, counts = map(torch.from_numpy, index.targets())
    return _evaluated(ids, logits, boxes, Targets(labels[ids], wanted[ids], counts[ids]))


def _evaluated(ids: list[int], logits: torch.Tensor, boxes: torch.Tensor, targets: Targets) -> Evaluation:
    decision = decide(logits, boxes, no_object_weight=0.1)
    return Evaluation(
        ids,
        measure(assess(logits, boxes, targets, LossConfig()), NAMES, LossConfig().term_weights()),
        decision,
        actions(logits, boxes, no_object_weight=0.1),
        [False] * len(ids),
        true_labels(targets, 2),
        decided_iou(decision, targets),
        targets,
        frames=8,
    )


@pytest.fixture(scope="module")
def written(index: ClipIndex, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "new"
    ids = list(range(len(index.clips)))
    log = out.with_name("log.jsonl")
    loss = {"total": 3.5, "cls": 1.0, "l1": 1.5, "giou": 1.0, "auxiliary": 2.0}
    figures = {"video_accuracy": 0.5, "detection_accuracy": 0.25, "mean_iou": 0.4}
    records = [{"epoch": 0.5, "step": 10, "lr": 1e-4, "loss": loss}, {"epoch": 1, "step": 20, "validation": figures}]
    log.write_text("".join(json.dumps(record) + "\n" for record in records))
    write_report(
        out,
        f"All & <b>{SCRIPT}",
        _evaluation(index, ids),
        index,
        started=time.monotonic() - 50,
        notes=["<i>note</i>"],
        log=log,
    )
    return out


@pytest.fixture(scope="module")
def page(written: Path) -> Page:
    return Page((written / "report.html").read_text())


def test_figures_are_those_that_the_cases_give(written: Path) -> None:
    metrics = json.loads((written / "metrics.json").read_text())
    assert metrics["clips"] == 7
    assert 50 <= metrics["seconds"] < 200
    assert metrics["video_accuracy"] == pytest.approx(4 / 7)
    assert metrics["detection_accuracy"] == pytest.approx(3 / 7)
    assert 0 < metrics["mean_iou"] < 1
    assert 0 <= metrics["average_precision"] <= metrics["average_precision_50"] <= 1
    assert metrics["confusion"] == [[1, 0, 1], [1, 2, 0], [1, 0, 1]]


def test_what_has_no_denominator_is_not_a_figure(index: ClipIndex, tmp_path: Path) -> None:
    """Clips without an action say nothing about boxes, or about the recall of classes."""
    ids = [i for i, clip in enumerate(index.clips) if CASES[clip.name][0] == 2]
    write_report(tmp_path, "t", _evaluation(index, ids), index, started=time.monotonic())
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["mean_iou"], metrics["located_iou"], metrics["average_precision"]) == (None, None, None)
    assert metrics["classes"]["collapse"] == {"precision": None, "recall": None, "f1": None, "support": 0}
    html = (tmp_path / "report.html").read_text()
    assert "<b>n/a</b>mean IoU" in html
    assert "<td>collapse</td><td>n/a</td><td>n/a</td><td>n/a</td><td>0</td>" in html
    assert "None" not in Page(html).text


def test_every_clip_is_there_and_wrong_ones_come_first(page: Page, written: Path) -> None:
    pictures = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    order = list(dict.fromkeys(pictures))
    assert len(pictures) == 4 * 7
    names = [str(alt).removeprefix("frame of ") for alt in order]
    assert sorted(names) == sorted(CASES)
    assert names[:4] == sorted(WRONG)
    text = (written / "report.html").read_text()
    tags = re.findall(r'class="tag( wrong| loose|)"', text)
    assert tags == [" wrong", " loose", " wrong", " wrong", "", "", ""]


def test_nothing_from_outside_is_markup(page: Page) -> None:
    assert "script" not in {tag for tag, _ in page.tags}
    assert "i" not in {tag for tag, _ in page.tags}
    assert SCRIPT in page.text
    assert f"All & <b>{SCRIPT}" in page.text
    assert "<i>note</i>" in page.text


def test_the_page_needs_no_other_file(page: Page, written: Path) -> None:
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "script"}
        for name in ("src", "href", "xlink:href"):
            value = str(attributes.get(name) or "")
            assert not value.startswith(("http", "//", "/", "file:")), value
    assert str(written) not in (written / "report.html").read_text()


def test_links_lead_to_the_videos(page: Page, written: Path) -> None:
    links = [str(attributes["href"]) for tag, attributes in page.tags if tag == "a"]
    assert len(links) == 7
    for link in links:
        path, _, rest = link.partition("#")
        assert not rest
        assert "?" not in path
        assert (written / unquote(path)).is_file(), link


def test_annotated_videos_have_the_frames_of_their_source(written: Path, index: ClipIndex) -> None:
    for clip in index.clips:
        assert len(probe(written / "videos" / f"{clip.name}.mp4").pts) == len(clip.video.pts)


def test_the_annotated_box_is_white_and_the_decided_one_has_the_color_of_its_class(written: Path) -> None:
    """The clip "d box off": annotated from a quarter to three quarters, decided at 0.15 to 0.25."""
    video = probe(written / "videos" / "d box off.mp4")
    picture = decode_frames(video, [0])[0].astype(int)
    height, width = picture.shape[:2]

    def around(x: float, y: float) -> torch.Tensor:
        column = round(x * width)
        row = round(y * height)
        return torch.tensor(picture[row - 3 : row + 4, column - 3 : column + 4].reshape(-1, 3))

    # The annotated box has white edges.
    assert around(0.75, 0.625).min(1).values.max() > 190
    assert around(0.5, 0.75).min(1).values.max() > 190

    # The decided box has the color of the second class.
    decided = around(0.15, 0.23)
    color = torch.tensor([0xFF, 0xB0, 0x00])
    assert (decided - color).abs().sum(1).min() < 120

    # Nothing is drawn inside of the annotated box.
    assert around(0.5, 0.6).float().std(0).max() < 12


def test_all_actions_of_a_clip_are_told_and_drawn(index: ClipIndex, tmp_path: Path) -> None:
    """Annotated: a fight on the left, a collapse on the right. Found: these, and another fight below."""
    places = torch.tensor([[0.2, 0.5, 0.2, 0.4], [0.8, 0.5, 0.2, 0.4], [0.5, 0.8, 0.2, 0.2]])
    logits = torch.tensor([[[9.0, 0.0, 2.0], [0.0, 12.0, 2.0], [6.0, 0.0, 2.0]]])
    targets = Targets(torch.tensor([[1, 0]]), places[None, [1, 0]], torch.tensor([2]))
    large = next(number for number, clip in enumerate(index.clips) if clip.video.width == 480)
    write_report(tmp_path, "t", _evaluated([large], logits, places[None], targets), index, started=time.monotonic())

    # By the rule, 1.83 fights are expected: 0.99 and 0.84 of the queries, so that is the surest class.
    name = index.clips[large].name
    text = Page((tmp_path / "report.html").read_text()).text
    found = "fight 1.00, collapse 1.00, fight 0.83 (IoU 1.00)"
    assert f"{name}: annotated fight, collapse, predicted {found}" in text

    picture = decode_frames(probe(tmp_path / "videos" / f"{name}.mp4"), [0])[0].astype(int)
    height, width = picture.shape[:2]
    for (x, y, _, h), is_red in zip(places.tolist(), [True, False, True], strict=True):
        bottom = round((y + h / 2) * height)
        red, green, blue = picture[bottom - 3 : bottom + 4, round(x * width)].T

        # Video keeps few colors of thin lines. The other class is yellow.
        assert (red - blue).max() > 60
        assert ((red - green).max() > 60) == is_red


def test_the_videos_of_clips_with_long_names_have_shorter_ones(index: ClipIndex, tmp_path: Path) -> None:
    """Parts of one video have its name and their time, which leaves no room for the suffix."""
    clips = [replace(index.clips[0], name="x" * 248 + f"@{part}.00") for part in range(2)]
    parts = replace(index, clips=(*clips, *index.clips[2:]))
    evaluation = _evaluation(index, [0, 1])
    for _ in range(2):
        check_replaceable(tmp_path, [clip.name for clip in clips])
        write_report(tmp_path, "t", evaluation, parts, started=time.monotonic())
    page = Page((tmp_path / "report.html").read_text())
    links = {unquote(str(attributes["href"])) for tag, attributes in page.tags if tag == "a"}
    assert links == {f"videos/{name}" for name in os.listdir(tmp_path / "videos")}
    assert len(links) == 2


def test_a_cut_to_another_scene_is_told(index: ClipIndex, tmp_path: Path) -> None:
    evaluation = replace(_evaluation(index, [0, 2]), cuts=[False, True])
    write_report(tmp_path, "t", evaluation, index, started=time.monotonic())
    text = Page((tmp_path / "report.html").read_text()).text
    assert text.count("The picture changes to another scene: scores are not reliable.") == 1
    assert text.index(index.clips[2].name) < text.index("The picture changes")


def test_the_training_curve_is_drawn_where_there_is_a_log(page: Page, index: ClipIndex, tmp_path: Path) -> None:
    assert _plots(page) == {"reliability", "training"}
    assert "training loss" in page.text
    write_report(tmp_path, "t", _evaluation(index, [0]), index, started=time.monotonic())
    assert _plots(Page((tmp_path / "report.html").read_text())) == {"reliability"}


def _plots(page: Page) -> set[str]:
    """Which of the two plots are on the page."""
    titles = {"reliability": "right as often as it is sure", "training": "epoch"}
    shown = {name for name, text in titles.items() if text in page.text}
    assert sum(tag == "svg" for tag, _ in page.tags) == len(shown)
    return shown


LOSS = {"epoch": 1, "step": 10, "loss": {"total": 3.5, "cls": 1.0, "l1": 1.5, "giou": 1.0, "auxiliary": 0.0}}
FIGURES = {"epoch": 1, "step": 10, "validation": dict.fromkeys(run_log.FIGURES, 0.5)}


@pytest.mark.parametrize(
    ("records", "plots"),
    [
        ([LOSS], {"training loss"}),
        ([FIGURES], {"held-out clips"}),
        ([LOSS, FIGURES], {"training loss", "held-out clips"}),
        ([], set()),
    ],
)
def test_a_plot_without_data_is_left_out(
    index: ClipIndex, tmp_path: Path, records: list[dict[str, object]], plots: set[str]
) -> None:
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    write_report(tmp_path, "t", _evaluation(index, [0]), index, started=time.monotonic(), log=tmp_path / "log.jsonl")
    page = Page((tmp_path / "report.html").read_text())
    assert {title for title in ("training loss", "held-out clips") if title in page.text} == plots
    assert _plots(page) == ({"reliability", "training"} if plots else {"reliability"})
    axes = [tag for tag, attributes in page.tags if tag == "g" and (attributes.get("id") or "").startswith("axes_")]
    assert len(axes) == len(plots) + 1
    assert "none during training" not in page.text


def test_settings_are_there_as_a_person_reads_them(index: ClipIndex, tmp_path: Path) -> None:
    settings = asdict(ModelConfig(class_names=("a&b", "<i>c"))) | asdict(TrainConfig(lr=5e-5))
    write_report(tmp_path, "t", _evaluation(index, [0]), index, started=time.monotonic(), settings=settings)
    text = (tmp_path / "report.html").read_text()
    cells = re.findall(r"<tr><td>([^<]*)</td><td>([^<]*)</td></tr>", text)
    found = {name: html.unescape(value) for name, value in cells}
    assert found["image size"] == "224"
    assert found["class names"] == "a&b, <i>c"
    assert found["deep supervision"] == "no"
    assert found["lr"] == "5e-05"
    # A setting of the loss, whose settings lie within those of the training.
    assert found["no object weight"] == "0.1"
    assert found["jitter"] == "yes"


@pytest.mark.parametrize(("with_videos", "most"), [(True, 48), (True, 2), (True, 0), (False, 48)])
def test_drawing_counts_every_frame_once(
    index: ClipIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_videos: bool, most: int
) -> None:
    """Frames of pictures and of videos count, even those of a clip that turns out to be damaged."""
    monkeypatch.setattr(report, "MOST_VIDEOS", most)
    bad = write_video(tmp_path / "bad.mkv", "mjpeg", frames=9)
    clip = Clip("b wrong class", probe(bad), index.clips[2].annotations)
    corrupt(bad, range(4, 9))
    damaged = replace(index, clips=(index.clips[0], clip, index.clips[1]))
    calls: list[tuple[int, int]] = []
    write_report(
        tmp_path,
        "t",
        _evaluation(damaged, [0, 1, 2]),
        damaged,
        started=time.monotonic(),
        with_videos=with_videos,
        progress=lambda done, total: calls.append((done, total)),
    )
    videos = most if with_videos else 0

    # Wrong clips come first, and only the first clips have videos.
    shown = [clip, damaged.clips[0], damaged.clips[2]][:videos]
    frames = 3 * 4 + sum(len(clip.video.pts) for clip in shown)
    assert {total for _, total in calls} == {frames}
    done = [done for done, _ in calls]
    assert done == sorted(done)
    assert done[-1] == frames
    assert len(done) >= sum(len(clip.video.pts) for clip in shown[1:])
    written = sorted(path.stem for path in tmp_path.glob("videos/*"))
    assert written == sorted(clip.name for clip in shown[1:])


def test_without_videos_the_pictures_stay(index: ClipIndex, tmp_path: Path) -> None:
    write_report(tmp_path, "t", _evaluation(index, [0, 1]), index, started=time.monotonic(), with_videos=False)
    page = Page((tmp_path / "report.html").read_text())
    assert sum(tag == "img" for tag, _ in page.tags) == 8
    assert "a" not in {tag for tag, _ in page.tags}
    assert not (tmp_path / "videos").exists()


def test_wide_things_scroll_by_themselves(page: Page, written: Path) -> None:
    """On a phone the page is as wide as the screen, because tables and plots lie in boxes that scroll."""
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in [a for _, a in page.tags]
    for number, (tag, _) in enumerate(page.tags):
        if tag in {"table", "svg"}:
            assert page.tags[number - 1][1].get("class") == "scroll"
    assert ".scroll { overflow-x: auto; }" in (written / "report.html").read_text()


def test_reliability_is_drawn_of_bins_with_clips() -> None:
    empty = ReliabilityBin(0, 0.0, 0.0)
    svg = reliability_curve([empty, ReliabilityBin(17, 0.3, 0.25), empty, ReliabilityBin(1234, 0.95, 1.0)])
    assert svg is not None
    shown = set(re.findall(r"<text [^>]*>([^<]*)</text>", svg))
    assert {"17", "1234", "score", "share that is right"} <= shown

    # A bin without clips has no point.
    assert "0" not in shown


@pytest.mark.parametrize("bins", [[], [ReliabilityBin(0, 0.0, 0.0)] * 10, [ReliabilityBin(0, math.nan, math.nan)]])
def test_reliability_of_no_clips_is_left_out(bins: list[ReliabilityBin]) -> None:
    assert reliability_curve(bins) is None


def test_only_so_many_videos_are_written_but_all_clips_shown(
    index: ClipIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "MOST_VIDEOS", 2)
    ids = [5, 1, 0]
    write_report(tmp_path, "t", _evaluation(index, ids), index, started=time.monotonic())
    page = Page((tmp_path / "report.html").read_text())
    assert len(list((tmp_path / "videos").iterdir())) == 2
    assert sum(tag == "img" for tag, _ in page.tags) == 12
    assert sum(tag == "a" for tag, _ in page.tags) == 2
    assert (tmp_path / "videos" / f"{index.clips[1].name}.mp4").exists() or index.clips[1].name not in WRONG


@pytest.mark.parametrize("videos", [0, 48])
def test_a_clip_that_is_damaged_has_a_row_without_pictures(
    index: ClipIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, videos: int
) -> None:
    monkeypatch.setattr(report, "MOST_VIDEOS", videos)
    bad = write_video(tmp_path / "bad.mkv", "mjpeg", frames=9)
    clip = Clip("b wrong class", probe(bad), index.clips[2].annotations)
    corrupt(bad, range(4, 9))
    damaged = replace(index, clips=(index.clips[1], clip))
    write_report(tmp_path, "t", _evaluation(damaged, [0, 1]), damaged, started=time.monotonic())
    page = Page((tmp_path / "report.html").read_text())
    assert [attributes["alt"] for tag, attributes in page.tags if tag == "img"] == ["frame of a right"] * 4
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links == ["videos/a%20right.mp4"][:videos]
    assert "The video cannot be shown: only the first 4 of its 9 frames decode" in page.text
    assert "b wrong class: annotated collapse, predicted fight" in page.text
    assert json.loads((tmp_path / "metrics.json").read_text())["clips"] == 2


def test_the_figures_are_there_where_a_video_cannot_be_written(index: ClipIndex, tmp_path: Path) -> None:
    (tmp_path / "videos").write_text("a file")
    with pytest.raises(DataError) as caught:
        write_report(tmp_path, "t", _evaluation(index, [0]), index, started=time.monotonic())
    assert caught.value.path.startswith(str(tmp_path / "videos"))
    assert json.loads((tmp_path / "metrics.json").read_text())["clips"] == 1


def test_a_folder_that_cannot_be_written_is_named(index: ClipIndex, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(DataError) as caught:
        write_report(tmp_path / "out", "t", _evaluation(index, [0]), index, started=time.monotonic())
    assert str(caught.value).startswith(str(tmp_path / "out"))
    assert "\n" not in str(caught.value)


def test_figures_stand_beside_what_they_are_compared_with(index: ClipIndex, tmp_path: Path) -> None:
    """Intervals, the majority's accuracy, the IoU of what was found before the other one, and the calibration."""
    evaluation = _evaluation(index, list(range(7)))
    write_report(tmp_path, "t", evaluation, index, started=time.monotonic())
    text = " ".join(Page((tmp_path / "report.html").read_text()).text.split())
    metrics = json.loads((tmp_path / "metrics.json").read_text())

    low, high = metrics["video_accuracy_interval"]
    assert f"57.1%video accuracy ({low:.1%} to {high:.1%} with 95 % confidence)" in text
    assert f"{metrics['majority_accuracy']:.1%}video accuracy of always answering {metrics['majority_class']}" in text
    found = f"{metrics['located_iou']:.3f}mean IoU of found actions"
    assert f"{found} ({metrics['mean_iou']:.3f} for matched candidates)" in text
    assert f"Expected calibration error: {metrics['calibration_error']:.3f}" in text
