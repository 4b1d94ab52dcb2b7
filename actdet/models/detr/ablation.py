"""The ablation of the technical report: the same training with parts of the loss left out."""

from __future__ import annotations

from actdet.models.ablation import AblationTable, Row

TABLES = {
    3: AblationTable(
        source="table 3 of the technical report",
        figures={
            "video accuracy": ("video_accuracy",),
            "detection @0.5": ("detection_accuracy",),
            "mean IoU": ("mean_iou",),
        },
        # The weights that are left out are zero in the loss and in the cost of the matching.
        rows={
            "full loss": Row((1.000, 0.833, 0.51)),
            "no GIoU loss": Row((1.000, 0.667, 0.43), loss={"giou_weight": 0.0}),
            "no L1 loss": Row((0.833, 0.500, 0.38), loss={"l1_weight": 0.0}),
            "classification only": Row((1.000, 0.167, 0.22), loss={"l1_weight": 0.0, "giou_weight": 0.0}),
        },
    )
}
