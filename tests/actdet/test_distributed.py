"""Two processes of torchrun train as one does. If one is killed, the other says so, and the run can be resumed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from actdet import distributed
from actdet.distributed import Processes, join_processes, synchronize_batch_norm
from actdet.errors import ActdetError
from actdet.training import session as sessions
from actdet.training.run_state import LAST, MODEL
from actdet.training.trainer import Trainer
from tests.actdet.command import Actdet
from tests.actdet.tiny import MODEL_OPTIONS, TRAIN_OPTIONS

TINY = Path(__file__).parent / "tiny.py"
PAIR = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", TINY]
OPTIONS = [*MODEL_OPTIONS, *TRAIN_OPTIONS, "--dropout", "0", "--auxiliary-weight", "0.5", "--lr", "1e-3"]


def start(data: Path, out: Path, *options: object) -> subprocess.Popen[str]:
    """Two processes of torchrun."""
    arguments = [*PAIR, "train", data, "--out", out, *OPTIONS, *options]
    # The state is saved after every epoch.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TINY_SAVE_SECONDS": "-1"}
    return subprocess.Popen(
        list(map(str, arguments)), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run(data: Path, out: Path, *options: object) -> tuple[int, str]:
    process = start(data, out, *options)
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def flat(value: Any) -> list[float]:
    """The numbers in a line of the log, without its speed."""
    if isinstance(value, dict):
        return [number for name, part in value.items() if name != "speed" for number in flat(part)]
    if isinstance(value, list):
        return [number for part in value for number in flat(part)]
    return [value] if isinstance(value, int | float) else []


def assert_same_run(one: Path, other: Path) -> None:
    """Losses, evaluations and weights, but for the order in which float32 is added up."""
    assert len(log(one)) == len(log(other))
    for first, second in zip(log(one), log(other), strict=True):
        assert flat(second) == pytest.approx(flat(first), rel=1e-4, abs=1e-5)
    first = load_file(one / MODEL)
    second = load_file(other / MODEL)
    assert any(name.endswith("running_var") for name in first)
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("shallow", "share"), [pytest.param(0, 0, marks=pytest.mark.slow), (2, 0.25)])
def test_two_processes_train_as_one_and_evaluate_no_clip_twice(
    actdet_command: Actdet, rendered: Path, tmp_path: Path, shallow: int, share: float
) -> None:
    """Batches of five, shared as 3 and 2: nine clips in batches of four would leave one for the last step."""
    options = ["--epochs", 4, "--batch-size", 5, "--val-share", share, "--eval-every", 2, "--shallow-epochs", shallow]
    assert actdet_command("train", rendered, "--out", tmp_path / "one", *OPTIONS, *options).code == 0
    code, output = run(rendered, tmp_path / "two", *options)
    assert code == 0, output
    assert "2 processes, each CPU" in output
    assert (output.count("model: "), output.count("report: ")) == (1, share > 0)
    assert_same_run(tmp_path / "one", tmp_path / "two")
    losses = [record["loss"]["total"] for record in log(tmp_path / "two") if "loss" in record]
    assert losses[-1] < 0.9 * losses[0]
    if share:
        one, two = (json.loads((tmp_path / out / "metrics.json").read_text()) for out in ("one", "two"))
        assert two["clips"] == one["clips"] == 3


def test_a_killed_process_ends_the_job_with_a_state_to_go_on_from(
    actdet_command: Actdet, rendered: Path, tmp_path: Path
) -> None:
    options = ["--epochs", 20, "--batch-size", 5, "--val-share", 0]
    process = start(rendered, tmp_path / "killed", *options)
    end = time.monotonic() + 90
    while not ((tmp_path / "killed/log.jsonl").exists() and log(tmp_path / "killed")[-1:] and second_of(process)):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    os.kill(second_of(process), signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    last = tmp_path / "killed" / LAST
    line = f"actdet: another process of this job has failed; the state is in {last}: run the same command with --resume"
    assert line in output
    assert not (tmp_path / "killed" / MODEL).exists()
    code, output = run(rendered, tmp_path / "killed", *options, "--resume")
    assert code == 0, output
    assert actdet_command("train", rendered, "--out", tmp_path / "whole", *OPTIONS, *options).code == 0
    assert [record["step"] for record in log(tmp_path / "killed")] == [r["step"] for r in log(tmp_path / "whole")]
    for first, second in zip(log(tmp_path / "whole")[:6], log(tmp_path / "killed")[:6], strict=True):
        assert flat(second) == pytest.approx(flat(first), rel=1e-3, abs=1e-4)


def test_torchrun_ending_the_others_does_not_hide_what_they_say(
    actdet_command: Actdet, rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sends SIGTERM as soon as it sees the dead one, which is when they have found out themselves."""
    opened = sessions.open_session

    @contextmanager
    def open_session(*arguments: Any, **options: Any) -> Iterator[Any]:
        try:
            with opened(*arguments, **options) as session:
                yield session
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    def steps(self: Trainer) -> Iterator[Any]:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer")
        yield

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr(sessions, "open_session", open_session)
    monkeypatch.setattr(Trainer, "steps", steps)
    outcome = actdet_command("train", rendered, "--out", tmp_path / "run", *OPTIONS)
    assert outcome.complaint() == "another process of this job has failed"


def second_of(launcher: subprocess.Popen[str]) -> int:
    """The process of rank 1; 0 while there is none."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher.pid and b"RANK=1" in (folder / "environ").read_bytes().split(b"\0"):
                return int(folder.name)
        except OSError:
            continue
    return 0


class Twins(Processes):
    """One of two processes, of which the other always says what this one says."""

    def gather(self, value: Any) -> list[Any]:
        return [value] * self.count


def test_a_last_batch_that_leaves_a_process_idle_is_refused(
    actdet_command: Actdet, rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "join_processes", lambda: nullcontext(Twins(0, 2)))
    options = ["--epochs", 1, "--batch-size", 4, "--val-share", 0.25]
    outcome = actdet_command("train", rendered, "--out", tmp_path / "run", *OPTIONS, *options)
    assert outcome.complaint() == (
        "the last of the batches of 4 has 1 of the 9 clips, fewer than the 2 processes: use --batch-size 5"
    )
    assert not (tmp_path / "run").exists()


def test_another_command_than_train_is_refused(
    actdet_command: Actdet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    complaint = actdet_command("demo", "--out", tmp_path / "demo").complaint()
    assert complaint == "only `actdet train` supports torchrun with several processes"
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("items", [0, 1, 5, 12])
def test_shares_are_disjoint_and_whole(count: int, items: int) -> None:
    shares = [Processes(rank, count).share(list(range(items))) for rank in range(count)]
    assert sorted(item for share in shares for item in share) == list(range(items))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "4", "LOCAL_RANK": "2", "TORCHELASTIC_RUN_ID": "x"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ActdetError) as caught, join_processes():
        pass
    assert str(caught.value) == "only 2 GPUs for 4 processes: use torchrun --nproc-per-node 2"


def test_processes_that_do_not_meet_say_where(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("localhost", 0)) as taken:
        port = str(taken.getsockname()[1])
        job = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "x"}
        for name, value in (job | {"MASTER_ADDR": "localhost", "MASTER_PORT": port}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
        with pytest.raises(ActdetError) as caught, join_processes():
            pass
    assert str(caught.value).startswith(f"processes could not connect at localhost:{port} (")
    assert "--master-addr" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    # Schedulers of clusters set this, too.
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with join_processes() as processes:
        assert processes == distributed.ALONE
        assert processes.gather(3) == [3]
        assert not processes.any(False)


@torch.no_grad()
def test_norms_of_pictures_are_shared_too() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=1e-3, momentum=0.01)).eval()
    network.get_buffer("1.running_mean").normal_()
    network.get_buffer("1.running_var").uniform_(0.5, 2)
    pictures = torch.randn(2, 3, 5, 7)
    wanted = network(pictures)
    shared = synchronize_batch_norm(network, torch.device("cpu"))
    assert not isinstance(shared.get_submodule("1"), nn.BatchNorm2d)
    assert torch.equal(shared(pictures), wanted)


def test_norms_of_several_processes_are_new_ones_with_the_same_parameters_and_statistics() -> None:
    network = nn.Sequential(nn.Conv3d(3, 4, 1), nn.Sequential(nn.BatchNorm3d(4, eps=1e-3, momentum=0.2), nn.ReLU()))
    network.eval()
    norm = network.get_submodule("1.0")
    state = {name: tensor.data_ptr() for name, tensor in network.state_dict().items()}
    random_state = torch.get_rng_state()
    shared = synchronize_batch_norm(network, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), random_state)

    made = shared.get_submodule("1.0")
    assert isinstance(made, nn.BatchNorm3d)
    assert (type(norm), type(made).__mro__[1]) == (nn.BatchNorm3d, nn.BatchNorm3d)
    assert (made.eps, made.momentum, made.training) == (1e-3, 0.2, False)
    assert {name: tensor.data_ptr() for name, tensor in shared.state_dict().items()} == state
    assert list(map(id, shared.parameters())) == [
        id(tensor) for part in (network.get_submodule("0"), norm) for tensor in part.parameters()
    ]
