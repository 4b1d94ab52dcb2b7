"""Finds the actions in videos with a trained detector, and prints when and where they are.

    python examples/predict_video.py runs/demo/model.safetensors video.mp4

`make demo` trains a detector; `actdet predict` does the same as this script and writes files, too.
"""

import argparse

from actdet import ActdetError, Predictor


def main(checkpoint: str, videos: list[str], threshold: float) -> None:
    predictor = Predictor(checkpoint, threshold=threshold)
    for video in videos:
        print(f"{video}:")
        try:
            # A video of any length is decoded window by window, so memory stays the same.
            for window in predictor.windows(video):
                print(f"  {window.start:.1f} to {window.end:.1f} s: {window.action or 'no action'}")
                for found in window.actions:
                    x1, y1, x2, y2 = found.box
                    print(f"    {found.action} {found.score:.2f} from ({x1}, {y1}) to ({x2}, {y2}) pixels")
        except ActdetError as error:
            # A damaged file, for instance. The message is one line that names it.
            print(f"  {error}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("videos", nargs="+")
    parser.add_argument("--threshold", type=float, default=0.5)
    arguments = parser.parse_args()
    main(arguments.checkpoint, arguments.videos, arguments.threshold)
