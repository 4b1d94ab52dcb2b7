"""Trains predictions for random targets with the kernels: match queries with targets, then compute the set loss.

    python examples/matching_and_loss.py 200

The number is how many steps it takes. It needs only the package actdet-kernels, and uses a GPU if there is one.
"""

import sys

import torch
from actdet_kernels import match, pad_targets, set_loss

CLASSES = 3
QUERIES = 8


def main(steps: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)

    # Four samples with one to four targets. Boxes are center x, center y, width, height as shares of the picture.
    samples = [{"labels": torch.randint(CLASSES, (n,)), "boxes": 0.3 + 0.2 * torch.rand(n, 4)} for n in (1, 2, 3, 4)]
    targets = pad_targets(samples, device)

    # A network would compute these from its input. The last class is "no object".
    logits = torch.zeros(4, QUERIES, CLASSES + 1, device=device, requires_grad=True)
    raw_boxes = torch.randn(4, QUERIES, 4, device=device, requires_grad=True)

    optimizer = torch.optim.Adam([logits, raw_boxes], lr=0.05)
    for step in range(1, steps + 1):
        matched = match(logits, raw_boxes.sigmoid(), targets)
        loss = set_loss(logits, raw_boxes.sigmoid(), targets, matched)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        print(f"step {step}: loss {loss.total.item():.4f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
