"""`actdet predict`: the actions in videos of any length."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from actdet.bounds import check_bounds
from actdet.cli.progress import ProgressBar
from actdet.cli.terminal import print_line
from actdet.detections import THRESHOLD
from actdet.errors import ActdetError, DataError
from actdet.files import sole_writer_of, write_bytes
from actdet.video.info import probe

if TYPE_CHECKING:
    from actdet.prediction.predictor import Predictor
    from actdet.prediction.results import Job


def predict(
    checkpoint: Positional[Path],
    videos: Positional[tuple[Path, ...]],
    /,
    out: Path = Path("runs/predict"),
    threshold: float = THRESHOLD,
    annotate: bool = True,
    device: str = "auto",
) -> None:
    """Find actions in videos: print a line for each window as soon as it is found, and write results to --out.

    The results of each video are NAME.json, a timeline NAME.png and an annotated NAME.mp4. A detector of the family
    tubelet follows actors: NAME.tubes.json has the box of each actor in every frame, and the timeline a row for each.

    For instance: actdet predict runs/mine/model.safetensors door.mp4 yard.mkv recordings --out found

    Args:
        checkpoint: The model.safetensors of a run.
        videos: One or more video files, or folders of them.
        out: Folder for the results.
        threshold: The lowest probability at which an action counts.
        annotate: Whether to write the annotated videos.
        device: Where the network runs: auto (the first GPU if there is one, else the CPU), cpu, cuda or cuda:N.
    """
    check_bounds({"threshold": threshold})

    from actdet.device import choose_device
    from actdet.prediction.predictor import Predictor
    from actdet.prediction.results import plan_jobs

    if not videos:
        raise ActdetError("no video given: actdet predict CHECKPOINT VIDEO [VIDEO ...]")
    place = choose_device(device)
    jobs = plan_jobs(videos, out, annotate=annotate)
    predictor = Predictor(checkpoint, threshold=threshold, device=place)

    failed = 0
    for job in jobs:
        try:
            with sole_writer_of(job.json):
                _predict_video(predictor, job, annotate=annotate)
        except DataError as error:
            # If one result cannot be written, the others cannot be, either.
            if isinstance(error.__cause__, OSError):
                raise
            failed += 1
            print_line(f"actdet: {error}", file=sys.stderr)

    if any(job.json.exists() for job in jobs):
        print_line(f"results: {out}")
    if failed:
        raise ActdetError(f"{failed} of {len(jobs)} videos were not looked at whole")


def _predict_video(predictor: Predictor, job: Job, *, annotate: bool) -> None:
    """Look at one video and write what is found.

    Args:
        predictor: Looks at it.
        job: The video, and the files for its results.
        annotate: Whether to write the annotated video.

    Raises:
        DataError: The video cannot be read, or is damaged. In that case all that could be read is written first.
    """
    from actdet.data.truth import OF_TUBES
    from actdet.pictures import actor_timeline, timeline
    from actdet.prediction.actors import ActorLinker
    from actdet.prediction.predictor import Window, annotate_prediction, damage_error
    from actdet.prediction.results import Result, check_ours, describe, describe_tube

    with ProgressBar(desc=job.name, unit="window") as bar:
        video = probe(job.video)
        bar.total = len(predictor.spans(video))
        # All jobs were checked before the first one began, which may be hours ago.
        check_ours(job, annotate=annotate)

        actors = None
        if predictor.detector.truth in OF_TUBES:
            actors = ActorLinker(video, predictor.class_names, predictor.threshold)
        with Result(job, video, actors) as result, closing(predictor.findings(video)) as findings:
            for finding in findings:
                result.add(finding)
                bar.print_above(describe(job, finding))
                if isinstance(finding, Window):
                    bar.update()

    for tube in result.tubes:
        print_line(describe_tube(job, tube))
    tubes = None if actors is None else result.tubes
    damage = result.damage
    if result.windows:
        if tubes is None:
            picture = timeline(result.windows, video.seconds, predictor.class_names)
        else:
            picture = actor_timeline(tubes, result.windows, video.seconds, predictor.class_names)
        write_bytes(job.timeline, picture)
        result.timeline = job.timeline.name
        result.write()

    if annotate and result.windows:
        with ProgressBar(desc=f"draw {job.name}", unit="frame") as bar:
            lost = annotate_prediction(
                video,
                result.windows,
                predictor.class_names,
                job.annotated,
                tubes=tubes,
                gaps=result.gaps,
                progress=bar.show,
            )
        damage = damage or lost
        result.annotated = job.annotated.name
        result.write()

    if damage:
        raise damage_error(video, damage)
