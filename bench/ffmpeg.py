"""Gives torchcodec, which brings no FFmpeg, that of PyAV's wheel: links its libraries under their usual names.

LD_LIBRARY_PATH=$(python -m bench.ffmpeg DIR) pytest bench/test_decode.py

prints DIR, its full path. A process reads LD_LIBRARY_PATH when it starts, and never again.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import av


def link_libraries(folder: Path) -> None:
    """libavcodec-HASH.so.62.28.102 of the wheel becomes libavcodec.so.62; a PyAV of the system's FFmpeg gives none."""
    folder.mkdir(parents=True, exist_ok=True)
    for library in Path(av.__file__).parents[1].joinpath("av.libs").glob("lib[as][vw]*.so.*"):
        if found := re.fullmatch(r"(lib(?:av|sw)[a-z]+)-\w+(\.so\.\d+)[.\d]*", library.name):
            link = folder / "".join(found.groups())
            link.unlink(missing_ok=True)
            link.symlink_to(library)


if __name__ == "__main__":
    link_libraries(Path(sys.argv[1]))
    print(Path(sys.argv[1]).resolve())
