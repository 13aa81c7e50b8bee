"""The parts of a diagnosis as tasks of a real Ray: bits, a part that fails, a stop."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sslmed_dist import checkpoint
from tests import knees
from tests.drivers.ray_nodes import environment
from tests.verbs.diagnose.conftest import PLANES, recipe

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def diagnose(path: Path, *overrides: str) -> "subprocess.Popen[str]":
    """``sslmed diagnose`` on two tasks at a time, in a process of its own."""
    command = [sys.executable, "-m", "sslmed_dist.cli", "diagnose", str(path), *overrides]
    return subprocess.Popen(
        command, env=environment(), cwd=path.parent, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    pytest.importorskip("ray")
    knees.write_exams(tmp_path / "knees", train=12, valid=8, planes=PLANES)
    return recipe(tmp_path, driver="ray", run={"threads": 1}, ray={"num_workers": 2, "max_failures": 1})


def test_tasks_have_the_bits_of_one_process(asked: Path) -> None:
    process = diagnose(asked, "run.name=tasks", "data.root=knees")
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said[-3000:]
    log = asked.parent / "runs" / "tasks" / "logs" / "ray.log"
    assert "pid=" not in said and "Started a local Ray instance" in log.read_text() and f"goes to {log}" in said
    alone = diagnose(asked, "driver=local", "run.name=alone")
    said = alone.communicate(timeout=300)[0]
    assert alone.returncode == 0, said[-3000:]
    first, second = (asked.parent / "runs" / name for name in ("tasks", "alone"))
    for name in ("predictions.csv", "diagnosis.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_a_part_that_fails_leaves_the_other_one_alone(asked: Path) -> None:
    process = diagnose(asked, "diagnose.parts.axial.optim.lr=1e30", "diagnose.parts.axial.plan.epochs=20")
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 1, said[-3000:]
    last = said.strip().splitlines()[-1]
    assert last.startswith("sslmed diagnose: RuntimeError: axial: NonFinite: ") and "run again to go on" in last
    assert steps(asked, "sagittal") == [2]
    assert not (asked.parent / "runs" / "knee" / "diagnosis.json").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_saves_every_part(asked: Path, number: signal.Signals) -> None:
    process = diagnose(asked, "plan.epochs=100000", "plan.checkpoint_every=1000000")
    deadline = time.monotonic() + 240
    while not all((asked.parent / "runs/knee/parts" / plane / "metrics.jsonl").exists() for plane in PLANES):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(number)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said[-3000:]
    assert "stopped; run the same command again to go on" in said
    assert all(0 < steps(asked, plane)[0] < 300000 for plane in PLANES)


def steps(path: Path, plane: str) -> list[int]:
    """The steps of which a part keeps checkpoints."""
    return checkpoint.Checkpoints(path.parent / "runs/knee/parts" / plane / "checkpoints").steps()
