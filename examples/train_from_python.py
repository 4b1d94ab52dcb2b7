"""Renders clips of people who fight or collapse, trains a small detector on them, and measures it on other clips.

    python examples/train_from_python.py --out runs/example --clips 60 --epochs 20

It takes a few minutes on a CPU. Your own videos need a folder as `actdet check` describes it.
"""

import argparse
from pathlib import Path

from actdet import ModelConfig, TrainConfig, evaluate, train
from actdet.synthetic.rendered import RenderConfig, render_dataset


def main(out: Path, clips: int, epochs: int) -> None:
    render_dataset(out / "clips", RenderConfig(clips=clips, seed=0))
    render_dataset(out / "other_clips", RenderConfig(clips=clips // 2, seed=1))

    model = ModelConfig(image_size=64, frames=8, encoder_layers=0, decoder_layers=1, dropout=0.0)

    # So few small clips are decoded quickly enough without a process of their own.
    config = TrainConfig(epochs=epochs, lr=5e-4, backbone_weights="none", auxiliary_weight=2.0, workers=0)
    train(out / "clips", out / "run", model=model, config=config, val_share=0, progress=show)

    metrics = evaluate(out / "run" / "model.safetensors", out / "other_clips", out / "report", workers=0)
    print("\n".join(metrics.describe()))


def show(step: int, steps: int) -> None:
    print(f"step {step} of {steps}", end="\r")


# The processes that decode and render import this script again, so it must begin only here.
if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("runs/example"))
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=20)
    arguments = parser.parse_args()
    main(arguments.out, arguments.clips, arguments.epochs)
