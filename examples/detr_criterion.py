"""Computes DETR's losses with the kernels: only the import of matcher and criterion differs from DETR's own code.

    python examples/detr_criterion.py

It needs only the package actdet-kernels, and uses a GPU if there is one.
"""

import torch
from actdet_kernels.detr import HungarianMatcher, SetCriterion

CLASSES = 91


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)

    # What a DETR returns for two pictures: the predictions of its last decoder layer, and those of the layer before it.
    logits = torch.randn(2, 2, 100, CLASSES + 1, device=device, requires_grad=True)
    boxes = torch.rand(2, 2, 100, 4, device=device, requires_grad=True)
    before = {"pred_logits": logits[0], "pred_boxes": boxes[0]}
    outputs = {"pred_logits": logits[1], "pred_boxes": boxes[1], "aux_outputs": [before]}
    targets = [
        {"labels": torch.tensor([17], device=device), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.4]], device=device)},
        {"labels": torch.tensor([1, 3], device=device), "boxes": torch.full((2, 4), 0.4, device=device)},
    ]

    weights = {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}
    weights |= {f"{name}_0": weight for name, weight in weights.items()}
    matcher = HungarianMatcher(cost_class=1, cost_bbox=5, cost_giou=2)
    criterion = SetCriterion(CLASSES, matcher, weights, eos_coef=0.1, losses=["labels", "boxes"]).to(device)
    losses = criterion(outputs, targets)
    total = torch.stack([losses[name] * weight for name, weight in weights.items()]).sum()
    total.backward()
    print(f"loss {total.item():.3f}: " + ", ".join(f"{name} {losses[name].item():.3f}" for name in weights))


if __name__ == "__main__":
    main()
