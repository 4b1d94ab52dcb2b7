"""`actdet evaluate`: what a trained detector is worth on annotated clips."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from actdet.bounds import check_bounds
from actdet.cli.progress import ProgressBar
from actdet.cli.terminal import print_line, print_lines
from actdet.data.index import BadFiles


def evaluate(
    checkpoint: Positional[Path],
    data: Positional[Path],
    /,
    out: Path = Path("runs/evaluate"),
    held_out: bool = False,
    list: Path | None = None,
    workers: int = 1,
    device: str = "auto",
    videos: bool = True,
    bad_files: BadFiles = "stop",
) -> None:
    """Measure a trained detector on the annotated clips in DATA and write a report with pictures to --out.

    For instance: actdet evaluate runs/mine/model.safetensors data/other --out runs/other

    Args:
        checkpoint: The model.safetensors (or last.safetensors) of a run.
        data: Folder with videos/ and annotations/.
        out: Folder for metrics.json, report.html and annotated videos.
        held_out: Evaluate only the clips that the training run held out, if DATA is what it was trained on.
        list: Evaluate only the clips in this file, which has a name on each line, such as DATA/test.txt.
        workers: How many processes decode.
        device: Where the network runs: auto (the first GPU if there is one, else the CPU), cpu, cuda or cuda:N.
        videos: Whether to write annotated videos. They take most of the time; the report has pictures without them,
            too.
        bad_files: What a bad file does: stop ends the command, skip leaves out the file's clip and lists it.
    """
    check_bounds({"workers": workers})

    from actdet.device import choose_device
    from actdet.evaluation.checkpoint import evaluate_checkpoint

    place = choose_device(device)
    with ProgressBar(desc="evaluate", unit="clip") as bar:
        metrics = evaluate_checkpoint(
            checkpoint,
            data,
            out,
            place,
            held_out=held_out,
            list_file=list,
            workers=workers,
            with_videos=videos,
            bad_files=bad_files,
            say=bar.print_above,
            progress=bar.show,
            drawing=bar.show_drawing,
        )

    print_lines(metrics.describe())
    print_line(f"report: {out / 'report.html'}")
