"""The command `actdet`: parses, calls, prints."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import tyro
from tqdm import tqdm
from tyro.conf import OmitArgPrefixes, Positional

from actdet.config import LossConfig, ModelConfig, TrainConfig
from actdet.data.index import CLASS_NAMES, ClipIndex, find_problems, load_index
from actdet.data.rendered import RenderConfig, render_dataset
from actdet.data.split import hold_out
from actdet.data.video import probe
from actdet.demo import run_demo
from actdet.environment import describe_environment
from actdet.errors import ActdetError, DataError
from actdet.evaluation import evaluate_checkpoint
from actdet.experiments import FIGURES, Stopped, ablate, cross_validate, open_setup, train_run
from actdet.files import write_json
from actdet.metrics import Metrics
from actdet.models.decision import THRESHOLD
from actdet.prediction import Predictor, annotate_prediction
from actdet.report import write_report

app = tyro.extras.SubcommandApp()
Data = Annotated[Path, tyro.conf.arg(metavar="DATA", help="Folder with videos/ and annotations/.")]
Model = Annotated[ModelConfig, tyro.conf.arg(name="")]
Train = Annotated[TrainConfig, tyro.conf.arg(name="")]
