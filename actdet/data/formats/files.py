"""Finds the videos of another tool's data set, and learns how large and how long they are."""

from __future__ import annotations

import os
from collections import defaultdict
from fractions import Fraction
from pathlib import Path

from actdet.data.formats.source import VIDEO_ENDINGS, Facts, SourceVideo, facts_at_rate, last_part
from actdet.data.tubes import frame_times
from actdet.errors import DataError
from actdet.video.images import is_numbered, picture_files, picture_size
from actdet.video.info import probe

# Data sets have their frames once more as pictures of optical flow, in folders of the same names.
_FLOW = ("flow", "brox")


class VideoFiles:
    """The video files, and the folders of numbered pictures, in and below a folder."""

    def __init__(self, folder: Path, without: Path) -> None:
        """Look through a folder, following symbolic links.

        Args:
            folder: With the videos.
            without: A folder to pass over if it lies in the other one, since copies of the videos may be in it.

        Raises:
            DataError: If it is not a folder.
        """
        if not folder.is_dir():
            raise DataError(folder, "folder not found; expected a folder with videos")
        self._folder = folder
        self._by_name: dict[str, list[Path]] = defaultdict(list)

        # Links may lead back to a folder that they lie in.
        seen: set[tuple[int, int]] = set()
        for root, folders, files in os.walk(folder, followlinks=True):
            place = os.stat(root)
            if (place.st_dev, place.st_ino) in seen:
                folders.clear()
                continue
            seen.add((place.st_dev, place.st_ino))

            path = Path(root)
            if path != folder and without.exists() and path.samefile(without):
                folders.clear()
                continue
            folders[:] = sorted(name for name in folders if not any(word in name.lower() for word in _FLOW))
            for file in files:
                if os.path.splitext(file)[1].lower() in VIDEO_ENDINGS and not file.startswith("."):
                    self._by_name[last_part(file)].append(path / file)
            if any(map(is_numbered, files)) and not any(is_video(file) for file in files):
                self._by_name[path.name].append(path)

    def find(self, video: SourceVideo) -> Path | None:
        """Return the file or the folder of a video, None if there is none.

        If several have its name, it is the one in folders that the source names, too, and rather a file.

        Raises:
            DataError: If several could be it.
        """
        for name in (video.name, *video.other_names):
            candidates = self._by_name.get(last_part(name), [])
            if not candidates:
                continue
            folders = set(name.replace("\\", "/").split("/")[:-1])
            fitness = {path: self._fitness(path, folders) for path in candidates}
            best = max(fitness.values())
            fitting = sorted(path for path in candidates if fitness[path] == best)
            if len(fitting) > 1:
                raise DataError(fitting[0], f"has the same name as {fitting[1]}; remove or rename one of them")
            return fitting[0]
        return None

    def _fitness(self, path: Path, folders: set[str]) -> tuple[int, bool]:
        """Return how well a path fits to the folders that a source names."""
        parts = path.relative_to(self._folder).parts
        return len(folders.intersection(parts)), path.is_file()


def is_video(name: str) -> bool:
    """Whether a file is called as a video."""
    return os.path.splitext(name)[1].lower() in VIDEO_ENDINGS


def facts_of(path: Path, rate: Fraction) -> Facts:
    """Read what has to be known of a video, or of a folder of pictures that are shown at `rate` per second.

    Raises:
        DataError: If it is not a whole video, or if a picture is missing.
    """
    if path.is_dir():
        pictures = picture_files(path)
        width, height = picture_size(pictures[0])
        return facts_at_rate(width, height, len(pictures), rate)

    video = probe(path)
    return Facts(video.width, video.height, frame_times(video), video.seconds)
