"""`gpu_check.sh` with a Python that only notes what it is asked: the order, the limits, what is left of a part that is
stopped, and that the tests it names are there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "bench/gpu_check.sh"
FIRST = ["correct", "capture", "step", "criterion"]
REST = ["tests", "kernels", "opponents", "train", "decode", "gates"]
TEN_MINUTES, GRACE = 600, 10

# It has a GPU and all packages; it appends the arguments of anything longer than a question to asked.jsonl.
PYTHON = """#!{python}
import json, os, sys, time
if sys.argv[1] == "-c":
    print({{True: "bf16", False: "90"}}["is_available" in sys.argv[2]])
    sys.exit({answer})
with open("{folder}/asked.jsonl", "a") as file:
    print(json.dumps(sys.argv[1:]), file=file)
out = next((a.partition("=")[2] for a in sys.argv if a.startswith("--junitxml=")), None)
if out:
    open(out, "w").write("begun")
print("a line of the log", flush=True)
{action}
"""

# It notes the seconds, and waits for one.
TIMEOUT = """#!/bin/sh
echo "$3" >> "{folder}/limits"
signal=$1; shift 3
exec {timeout} "$signal" --kill-after=1 1 "$@"
"""


class Check:
    """The script with the two above."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "out"

    def run(self, *parts: str, action: str = "", answer: int = 0) -> subprocess.CompletedProcess[str]:
        tools = self.folder / "tools"
        tools.mkdir(exist_ok=True)
        real = subprocess.run(["which", "timeout"], capture_output=True, text=True, check=True).stdout.strip()
        for name, text in (
            ("python", PYTHON.format(python=sys.executable, folder=self.folder, action=action, answer=answer)),
            ("timeout", TIMEOUT.format(folder=self.folder, timeout=real)),
        ):
            (tools / name).write_text(text)
            (tools / name).chmod(0o755)
        environment = os.environ | {"PYTHON": str(tools / "python"), "PATH": f"{tools}:{os.environ['PATH']}"}
        return subprocess.run(
            [SCRIPT, "--out", self.out, *parts], env=environment, capture_output=True, text=True, timeout=60
        )

    def asked(self) -> list[list[str]]:
        path = self.folder / "asked.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def limits(self) -> list[int]:
        return list(map(int, (self.folder / "limits").read_text().split()))


@pytest.fixture
def check(tmp_path: Path) -> Check:
    return Check(tmp_path)


def begun(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The parts that the script says it begins, in order."""
    return [line.split()[1].rstrip(",") for line in done.stdout.splitlines() if ", at most " in line]


@pytest.mark.parametrize(
    ("asked", "parts"),
    [([], FIRST), (["rest"], REST), (["gates", "first"], ["gates", *FIRST]), (["criterion"], ["criterion"])],
)
def test_the_parts_run_in_order_each_within_its_limit(asked: list[str], parts: list[str], check: Check) -> None:
    done = check.run(*asked)
    assert done.returncode == 0, done.stderr
    assert begun(done) == parts
    assert len(check.limits()) == len(check.asked()) == len(parts)
    for part, limit in zip(parts, check.limits(), strict=True):
        assert f"{part}, at most {limit} s" in done.stdout
        assert limit + GRACE <= TEN_MINUTES
        assert (check.out / f"{part}.log").read_text().endswith("a line of the log\n")
        assert (check.out / f"{part}.xml").exists() == (part != "gates")


def test_what_comes_first_takes_ten_minutes_at_most(check: Check) -> None:
    check.run()
    assert sum(check.limits()) + GRACE * len(FIRST) < TEN_MINUTES


@pytest.mark.parametrize("obeys", [True, False])
def test_a_part_at_its_limit_is_stopped_and_the_next_one_begins(obeys: bool, check: Check) -> None:
    ignore = "" if obeys else "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    done = check.run(
        "capture", "step", action=f"{ignore}time.sleep(30 if 'test_train_step.py' in str(sys.argv) else 0)"
    )
    assert done.returncode == 1
    assert begun(done) == ["capture", "step"]
    assert "capture STOPPED at its limit of 90 s" in done.stdout
    assert "step passed" in done.stdout
    assert "not passed: capture; see" in done.stdout
    assert (check.out / "capture.xml").read_text() == "begun"


def test_a_part_that_fails_does_not_keep_the_next_one_from_beginning(check: Check) -> None:
    done = check.run("correct", "criterion", action="sys.exit('test_gpu' in str(sys.argv))")
    assert done.returncode == 1
    assert "correct FAILED (1)" in done.stdout
    assert "criterion passed" in done.stdout


def test_a_part_that_is_none_is_named(check: Check) -> None:
    done = check.run("step", "benchmarks")
    assert done.returncode == 2
    assert done.stderr.startswith(
        "gpu_check: no part 'benchmarks'; there are first correct capture step criterion rest tests"
    )
    assert check.asked() == []


def test_without_a_gpu_nothing_runs(check: Check) -> None:
    done = check.run(answer=1)
    assert done.returncode == 1
    assert "sees no CUDA device" in done.stderr
    assert check.asked() == []


# Collects for each list of arguments what pytest would run where there is a card of the given capability.
COLLECT = """
import json, sys
import pytest, torch

capability, *calls = map(json.loads, sys.stdin)
torch.cuda.is_available = lambda: True
torch.cuda.get_device_capability = lambda *_: tuple(capability)
torch.cuda.get_device_name = lambda *_: "a card"
torch.cuda.get_device_properties = lambda *_: None

class Names:
    def pytest_collection_finish(self, session):
        self.names = [item.nodeid for item in session.items]

for arguments in calls:
    names = Names()
    code = pytest.main([*arguments, "--collect-only", "-qqq"], [names])
    print("collected:", json.dumps([int(code), names.names]))
"""


def collected(calls: list[list[str]], capability: tuple[int, int]) -> list[list[str]]:
    """The names of the tests for each call of `python -m pytest`."""
    lines = "\n".join(map(json.dumps, [capability, *(call[2:] for call in calls)]))
    paths = [ROOT, ROOT / "kernels", os.environ.get("PYTHONPATH", "")]
    # The collecting pytest is none of the processes that run this test.
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment = ours | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-c", COLLECT], input=lines, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    found = [json.loads(line[11:]) for line in done.stdout.splitlines() if line.startswith("collected: ")]
    assert len(found) == len(calls), done.stderr
    assert [code for code, _ in found] == [0] * len(calls), done.stdout
    return [names for _, names in found]


# All that there is, beside what the parts run of it.
WHOLE = {
    "of the kernels": ["bench/test_kernels.py"],
    "of training": ["bench/test_train.py", "-k", "test_step"],
    "for a GPU": ["tests/kernels/test_gpu.py"],
}


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What each part runs on an H100, and WHOLE."""
    check = Check(tmp_path_factory.mktemp("check"))
    check.run("first", "rest")
    calls = dict(zip(FIRST + REST, check.asked(), strict=True))
    # Neither of them takes its tests one by one.
    for part in ("tests", "decode", "gates"):
        del calls[part]
    calls |= {what: ["-m", "pytest", *arguments] for what, arguments in WHOLE.items()}
    return dict(zip(calls, collected([*calls.values()], (9, 0)), strict=True))


def test_the_most_worth_comes_first(named: dict[str, list[str]]) -> None:
    """And every name that the script gives is one of a test: pytest would not have ended well."""
    assert len(named["correct"]) == 16
    assert all("test_gpu.py" in name for name in named["correct"])
    assert "(3, 16, 12, 4, 3, None)" in named["correct"][0]
    assert all("float64" in name for name in named["correct"][:6])
    assert {name.partition("[")[0].rpartition("::")[2] for name in named["capture"]} == {
        "test_captured_steps_give_the_losses_of_eager_ones",
        "test_no_step_waits_for_the_gpu",
        "test_a_smaller_last_batch_takes_no_memory_of_its_own",
        "test_the_peak_is_what_a_real_step_allocates_on_a_gpu",
    }
    assert [name.rpartition("-")[2] for name in named["step"]] == ["actdet]", "eager]", "plain]"]
    assert len(named["criterion"]) == 13
    assert all(name.endswith("actdet]") for name in named["criterion"][:-1])
    assert named["criterion"][-1].endswith("huggingface]")


def test_the_rest_is_the_rest(named: dict[str, list[str]]) -> None:
    """No row twice, since `report.py` refuses that, and none missing; nothing compiled for another card."""
    rows = [*named["criterion"], *named["kernels"], *named["opponents"]]
    assert sorted(rows) == sorted(named["of the kernels"])
    assert "test_criterion" in named["kernels"][0]
    assert "test_criterion" in named["opponents"][0]
    assert sorted([*named["step"], *named["train"]]) == sorted(named["of training"])
    assert set(named["correct"]) < set(named["for a GPU"])


def test_the_other_tests_are_those_that_a_gpu_runs(check: Check) -> None:
    """All files but those that compile for every card, and no test again."""
    check.run("correct", "tests")
    correct, others = check.asked()
    names = [argument for argument in correct if "::" in argument]
    assert [others[i + 1] for i, argument in enumerate(others) if argument == "--deselect"] == names
    files = [argument for argument in others if argument.endswith(".py")]
    assert files[0] == "tests/kernels/test_gpu.py"
    every = {f"tests/kernels/{path.name}" for path in (ROOT / "tests/kernels").glob("test_*.py")}
    assert every - {*files} == {"tests/kernels/test_gates.py", "tests/kernels/test_specializations.py"}
    assert len(files) == len({*files})


@pytest.mark.slow
def test_no_card_is_asked_for_units_that_it_lacks(named: dict[str, list[str]]) -> None:
    """A T4 has none for bf16."""
    calls = [
        ["-m", "pytest", "bench/test_train.py"],
        ["-m", "pytest", "-m", "gpu", "tests/actdet/training/test_train_step.py"],
    ]
    rows, tests = collected(calls, (7, 5))
    assert "bench/test_train.py::test_step[8 of 16x224x224-fp16-actdet]" in rows
    assert "bench/test_train.py::test_step[8 of 16x224x224-bf16-actdet]" in named["step"]
    assert not any("bf16" in name for name in rows)
    captured = "test_captured_steps_give_the_losses_of_eager_ones"
    assert [name.partition("[")[2] for name in tests if captured in name] == ["dtype0]", "dtype1]"]
    assert len([name for name in named["capture"] if captured in name]) == 3


HANGING = """
import signal, time

def test_one():
    pass

def test_two():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    time.sleep(60)
"""


def test_a_test_that_must_be_killed_leaves_those_before_it(tmp_path: Path) -> None:
    (tmp_path / "test_hanging.py").write_text(HANGING)
    command = ["timeout", "--signal=INT", "--kill-after=1", "5", sys.executable, "-m", "pytest", "-q"]
    command += ["-p", "bench.junit_as_it_goes", "--junitxml=results.xml", "-c", os.devnull, "test_hanging.py"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=60)
    cases = ElementTree.parse(tmp_path / "results.xml").iter("testcase")
    assert [case.get("name") for case in cases] == ["test_one"]
