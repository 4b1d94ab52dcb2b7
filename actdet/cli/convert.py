"""`actdet convert`: a data set of another tool or of a paper, as one of ours."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from actdet.cli.data import print_left_out
from actdet.cli.progress import ProgressBar
from actdet.cli.terminal import print_line
from actdet.data.formats.convert import Conversion, Format, VideoMode, read_dataset, write_dataset
from actdet.wording import counted


def convert(
    source: Positional[Format],
    data: Positional[Path],
    out: Positional[Path],
    /,
    videos: VideoMode = "link",
    video_folder: Path | None = None,
    class_names: tuple[str, ...] = (),
    split: str = "1",
) -> None:
    """Make a data set of ours of the annotations in DATA, which are those of another tool or of a paper.

    For instance: actdet convert cvat exports/annotations.xml data/mine --video-folder recordings
    If it is interrupted, run the same command again to resume. docs/formats.md says what each format may look like.

    Args:
        source: What DATA is: files that CVAT or Label Studio has exported, or the data set UCF101-24, JHMDB, AVA or
            Le2i.
        data: A file, or a folder with files in the layout of that format.
        out: Gets annotations/NAME.csv, classes.txt and videos/, and train.txt, test.txt and groups.txt if the source
            says which videos are for testing, or which ones belong together.
        videos: Whether OUT gets links to the videos, copies of them, or none. Folders of numbered pictures are made
            video files in both of the first two cases.
        video_folder: Where the videos are, in any folder below; by default in DATA, or beside it if it is a file.
        class_names: The classes to take, in the order of their ids; by default those of the source.
        split: Which split of the source to write, counted from 1, or a file that lists the videos to test on, one per
            line.
    """
    with ProgressBar(desc="read", unit="video") as bar:
        conversion = read_dataset(
            source,
            data,
            out,
            videos=videos,
            video_folder=video_folder,
            class_names=class_names or None,
            split=split,
            progress=bar.show,
        )
    with ProgressBar(desc="write", unit="video") as bar:
        write_dataset(conversion, out, progress=bar.show)

    print_left_out(conversion.left_out)
    print_line(f"{out}: {_describe(conversion)}")
    if conversion.split is not None:
        train, test = conversion.split
        print_line(f"split: {counted(len(train), 'video')} in train.txt, {len(test)} in test.txt")


def _describe(conversion: Conversion) -> str:
    """How much was read."""
    tubes = conversion.tubes
    parts = [
        counted(len(conversion.clips), "video"),
        counted(len(tubes), "tube"),
        counted(sum(len(tube.boxes) for tube in tubes), "box", "boxes"),
        counted(len(conversion.class_names), "class", "classes"),
    ]
    text = ", ".join(parts)
    boxless = sum(not len(tube.boxes) for tube in tubes)
    if boxless:
        text += f"; {counted(boxless, 'tube')} without boxes"
    return text
