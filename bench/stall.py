"""How long training waits for its clips: runs the demo's in a process of its own; used by `test_decode.py`.

python -m bench.stall DIR

renders clips into DIR, trains for three epochs, and prints what `epochs_of` makes of the log, with the reader's name
and the shape of a batch. In the first epoch the reader's processes start and decode; they keep what they decoded.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from actdet.cli.demo_settings import demo_for
from actdet.data.index import load_index
from actdet.device import choose_device
from actdet.synthetic.rendered import render_dataset
from actdet.training.plan import make_plan
from actdet.training.run import train_run
from actdet.training.session import open_session

CLIPS, EPOCHS = 240, 3


def main(folder: Path) -> dict[str, Any]:
    device = choose_device()
    demo = demo_for(device.type, CLIPS, EPOCHS)
    render_dataset(folder / "data", demo.train_clips)
    index, model, config = load_index(folder / "data"), demo.model, demo.config
    plan = make_plan(index, model, config, device)
    with open_session(plan, index) as session:
        for _ in train_run(session, range(len(index.clips)), [], folder / "run", "stall"):
            pass
    reader = plan.reader.value
    log = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    size = f"{config.batch_size} of {model.frames}x{model.image_size}x{model.image_size}"
    return {"reader": reader, "size": size, "epochs": epochs_of(log, CLIPS)}


def epochs_of(log: Iterable[dict[str, Any]], clips: int) -> list[dict[str, float]]:
    """Of each epoch: the share of its time that the steps waited for the loader, and clips a second.

    log: lines of log.jsonl, of which each tells of the time since the one before. clips: of an epoch.
    """
    epochs: list[dict[str, float]] = []
    waited = seconds = before = 0.0
    for record in (record for record in log if "speed" in record):
        speed = record["speed"]
        spent = (record["epoch"] - before) * clips / speed["clips_per_second"]
        waited, seconds, before = waited + spent * speed["data_share"], seconds + spent, record["epoch"]
        if before == int(before):
            epochs.append({"data_share": waited / seconds, "clips_per_s": clips / seconds})
            waited = seconds = 0.0
    return epochs


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
