"""Nothing is compiled again for other numbers of targets, samples, layers and frames, or other pictures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="there is no Triton for this platform")


NORM_KERNELS = (
    *("feature_sums_kernel", "statistics_kernel", "normalize_kernel"),
    *("gradient_sums_kernel", "weight_gradient_kernel", "feature_gradient_kernel"),
)

ATTENTION_KERNELS = ("deformable_attention_kernel", "deformable_gradient_kernel", "from_integers_kernel")
CENTER_KERNELS = ("actors_kernel", "center_loss_kernel", "center_total_kernel", "center_gradient_kernel")


def test_few_kernels_serve_all_sizes() -> None:
    """M from 1 to 100, at 12 and at 100 queries, with other numbers of samples, layers and frames each time; pools of 1
    to 100 frames, and pictures of as many rows; features of 1 to 100 times 8 channels; levels of 1 to 100 columns;
    maps of 1 to 100 rows, of which as many peaks are asked for; 1 to 100 boxes to suppress.
    """
    script = Path(__file__).parent / "specializations.py"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    # The total of one layer, and of several.
    losses = {"set_loss_kernel": 1, "total_kernel": 2, "gradient_kernel": 1}
    assert json.loads(done.stdout) == {
        "boxes": {"match_kernel": 3, **losses},  # a block of 32, 64 and 128
        "tubelets": {"pairwise_cost_kernel": 1, "assign_kernel": 3, **losses},
        "frame logits": {"pairwise_cost_kernel": 1, "assign_kernel": 3, **losses},
        "clips": {"gather_clips_kernel": 1},
        "norm": dict.fromkeys(NORM_KERNELS, 1),
        "attention": dict.fromkeys(ATTENTION_KERNELS, 1),
        "centers": dict.fromkeys(CENTER_KERNELS, 1),
        "peaks": {"center_peaks_kernel": 1},
        "suppression": {"suppress_overlaps_kernel": 3},
    }
