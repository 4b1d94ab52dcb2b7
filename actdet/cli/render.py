"""`actdet render`: a data set of drawn people, to try everything on."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from actdet.cli.progress import ProgressBar
from actdet.cli.terminal import print_line
from actdet.synthetic.rendered import RenderConfig, render_dataset


def render(out: Positional[Path], /, config: RenderConfig = RenderConfig()) -> None:
    """Write the embedded data set: rendered people who fight, collapse, or do something that looks alike.

    For instance: actdet render data/rendered --clips 300 --seed 7
    If it is interrupted, run the same command again to resume.

    Args:
        out: Folder to make, with videos/ and annotations/.
    """
    with ProgressBar(desc="render", unit="clip") as bar:
        render_dataset(out, config, progress=bar.show)

    print_line(f"data set: {out}")
