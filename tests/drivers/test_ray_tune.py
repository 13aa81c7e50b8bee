"""The trials of a sweep by Ray Tune, on a cluster of one node: bits, a trial that fails, a stop, a lost process."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sslmed_dist import checkpoint, plain_yaml
from tests import tiny
from tests.drivers import family
from tests.drivers.ray_nodes import HEAD, Nodes, environment, started_nodes
from tests.drivers.steps import steps_of

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """A cluster of one node with two CPUs."""
    pytest.importorskip("ray")
    with started_nodes(tmp_path_factory.mktemp("nodes"), others=0) as nodes:
        yield nodes


def sweep(folder: Path, nodes: Nodes, *words: str) -> "subprocess.Popen[str]":
    """``sslmed sweep`` of the recipe in ``folder``, in a process of its own, beside the cluster of ``nodes``."""
    command = [sys.executable, "-m", "sslmed_dist.cli", "sweep", "tiny.yaml", *words]
    return subprocess.Popen(
        command, env=environment(**nodes.env), cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def ended(process: "subprocess.Popen[str]", code: int) -> str:
    """What it said, when it has ended with ``code``."""
    said = process.communicate(timeout=2000)[0]
    assert process.returncode == code, said[-3000:]
    return said


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tree = tiny.tree(
        tmp_path, run={"dir": "runs"}, data={"root": "tiny.npz"}, plan={"epochs": 1}, ray={"max_failures": 1}
    )
    (tmp_path / "tiny.yaml").write_text(plain_yaml.write(tree))
    return tmp_path


def facts(runs: Path) -> list[dict[str, Any]]:
    """The trials of the table, without their times."""
    tree = json.loads((runs / "tiny-sweep" / "sweep.json").read_text())
    return [{key: value for key, value in one.items() if key != "seconds"} for one in tree["trials"]]


def bits(runs: Path) -> dict[str, object]:
    """The newest checkpoint's tensors of every trial, and what was measured on it."""
    found: dict[str, object] = {}
    for run in sorted((runs / "tiny-sweep").glob("trial-*/")):
        latest = checkpoint.Checkpoints(run / "checkpoints").latest()
        assert latest is not None
        state = checkpoint.load(latest)["method"]
        found[run.name] = {name: value.tolist() for name, value in state.items()}
    return found


def test_trials_of_tune_have_the_table_and_the_bits_of_the_local_sweep(folder: Path, nodes: Nodes) -> None:
    words = ["optim.lr=0.06,0.1", "run.threads=1"]
    said = ended(sweep(folder, nodes, *words, "--ray"), 0)
    log = folder / "runs/tiny-sweep/logs/ray.log"
    assert log.is_file() and f"goes to {log}" in said
    assert "pid=" not in said and "Trial " not in said and "trial 2 of 2: optim.lr=0.1" in said, said
    ended(sweep(folder, nodes, *words, "run.dir=alone"), 0)
    assert facts(folder / "runs") == facts(folder / "alone") and bits(folder / "runs") == bits(folder / "alone")
    assert len(bits(folder / "runs")) == 2
    again = ended(sweep(folder, nodes, *words, "--ray"), 0)
    assert "2 done" in again and "trial 1 of" not in again, "finished trials are not run again, nor is Ray started"


def test_a_trial_that_fails_is_named_and_the_others_go_on(folder: Path, nodes: Nodes) -> None:
    said = ended(sweep(folder, nodes, "optim.lr=0.06,1e30", "plan.epochs=8", "--ray", "--metric", "loss", "--lower"), 1)
    lines = said.splitlines()
    assert any(line.split()[:1] == ["1e30"] and "not finite" in line for line in lines), said
    worths = facts(folder / "runs")
    assert "1 of 2 trials is not done" in said and [one["value"] is None for one in worths] == [False, True]


def test_a_stop_saves_and_a_lost_process_begins_again(folder: Path, nodes: Nodes) -> None:
    """The trial whose process is killed goes on from its checkpoint; a stop saves the steps since the last one."""
    words = ["optim.lr=0.06,0.1", "plan.epochs=100000", "plan.checkpoint_every=50", "--ray", "--metric", "loss"]
    process = sweep(folder, nodes, *words)
    sweep_folder = folder / "runs" / "tiny-sweep"
    wait_for(lambda: len([one for one in sweep_folder.glob("trial-*/") if steps_of(one)]) == 2, process)
    runs = sorted(sweep_folder.glob("trial-*/"))
    actors = [pid for pid, _ in nodes.nodes[HEAD].ours() if "ImplicitFunc" in family.command_line(pid)]
    assert actors, "Tune's processes"
    os.kill(actors[0], signal.SIGKILL)
    wait_for(lambda: any("goes on after step" in log.read_text() for log in sweep_folder.glob("trial-*.log")), process)
    before = {run: steps_of(run)[-1] for run in runs}
    wait_for(lambda: all(steps_of(run)[-1] > before[run] for run in runs), process)
    process.send_signal(signal.SIGTERM)
    said = ended(process, 0)
    assert "its process was lost; it begins again" in said and "stopped; run the same command again to go on" in said
    for run in runs:
        steps = [row["step"] for row in tiny.computed(run) if row["name"] == "loss"]
        assert steps == list(range(1, steps_of(run)[-1] + 1)), "each step once, and the last one is saved"


def wait_for(what: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    """Until ``what`` is true, which the process brings about."""
    deadline = time.monotonic() + 600
    while not what():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.1)
