"""Makes the tube of one person's action from two annotated frames, and compares an answer with it in space and time.

    python examples/tubes.py

A tube is one actor's action: a box in each frame that it lasts.
"""

import numpy as np

from actdet import Tube
from actdet.data.tubes import format_tubes, interpolate
from actdet.evaluation.tubes import tube_iou


def main() -> None:
    # Somebody annotated frames 10 and 20. Boxes are x1, y1, x2, y2 in pixels.
    annotated = Tube(
        label=0,
        frames=np.array([10, 20]),
        boxes=np.array([[100, 50, 160, 200], [140, 60, 200, 210]], np.float32),
    )

    # In the frames between them the box moves on a straight line.
    truth = interpolate(annotated)
    for frame, box in zip(truth.frames, truth.boxes, strict=True):
        print(f"frame {frame}: {box.tolist()}")

    # A detector found the action from frame 12 on, two pixels too far to the right.
    found = Tube(label=0, frames=truth.frames[2:], boxes=truth.boxes[2:] + np.array([2, 0, 2, 0], np.float32))
    overlap = tube_iou(truth.frames, truth.boxes, found.frames, found.boxes, inclusive=False)
    print(f"space-time IoU: {overlap:.3f}")

    # A tube file, which `actdet train` reads and a spreadsheet opens.
    print(format_tubes([annotated], class_names=["fight"]))


if __name__ == "__main__":
    main()
