"""kill -9 and SIGTERM at an arbitrary moment: the resumed run ends with the bits of an undisturbed one."""

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sslmed_dist import checkpoint, cli, plain_yaml
from sslmed_dist.drivers import local
from tests import tiny
from tests.drivers import family
from tests.drivers.steps import wait_for_step

ROOT = Path(__file__).parents[2]


def start(config: Path, *overrides: str, world: int = 1) -> "subprocess.Popen[str]":
    """``sslmed train`` as a process (or torchrun's group of ``world``) with a process group of its own."""
    launcher = [sys.executable, "-m", "sslmed_dist.cli"]
    if world > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
        launcher = [sys.executable, *torchrun, "-m", "sslmed_dist.cli"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [*launcher, "train", str(config), *overrides]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, text=True, start_new_session=True, cwd=config.parent, **pipes)  # type: ignore[call-overload, no-any-return]


def final(folder: Path) -> dict[str, torch.Tensor]:
    """The last checkpoint's method state and optimiser buffers, flattened by name."""
    latest = checkpoint.Checkpoints(folder / "checkpoints").latest()
    assert latest is not None
    saved = checkpoint.load(latest)
    assert saved["step"] == STEPS
    buffers = saved["state"]["optimizer"]["state"]
    return saved["method"] | {f"momentum.{key}": value["momentum_buffer"] for key, value in buffers.items()}


STEPS = 60


def configuration(folder: Path) -> Path:
    """A run of 60 short steps that saves every second one."""
    tree = tiny.tree(folder, plan={"epochs": 20, "checkpoint_every": 2, "log_every": 5}, run={"threads": 1})
    path = folder / "tiny.yaml"
    path.write_text(plain_yaml.write(tree))
    return path


def finish(process: "subprocess.Popen[str]") -> str:
    """Wait for a good end and return what it said."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err[-3000:]
    return out + err


def to_the_end(config: Path, *overrides: str, world: int = 1) -> None:
    """``sslmed train`` again, undisturbed; of one worker in this process, which spares the start of another."""
    if world > 1:
        finish(start(config, *overrides, world=world))
    else:
        assert cli.main(["train", str(config), *overrides]) == 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The run folder of an undisturbed run of so many workers, trained once."""
    folder = tmp_path_factory.mktemp("whole")

    @functools.cache
    def trained(world: int) -> Path:
        to_the_end(configuration(folder), f"run.name=whole-{world}", world=world)
        return folder / "runs" / f"whole-{world}"

    return trained


@pytest.mark.parametrize("world", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_kill_nine_loses_nothing(tmp_path: Path, whole: Callable[[int], Path], world: int) -> None:
    config = configuration(tmp_path)
    process = start(config, "run.name=killed", world=world)
    wait_for_step(tmp_path / "runs" / "killed", 13, process)
    workers = family.descendants(process.pid)  # torchrun puts them in sessions of their own
    process.kill()
    family.end(workers)
    process.communicate()
    to_the_end(config, "run.name=killed", world=world)
    undisturbed, killed = final(whole(world)), final(tmp_path / "runs" / "killed")
    assert undisturbed.keys() == killed.keys()
    assert all(torch.equal(undisturbed[key], killed[key]) for key in undisturbed)
    steps = [line for line in (tmp_path / "runs" / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == len((whole(world) / "metrics.jsonl").read_text().splitlines())


def test_sigterm_saves_and_exits_cleanly(tmp_path: Path, whole: Callable[[int], Path]) -> None:
    config = configuration(tmp_path)
    process = start(config, "run.name=stopped", "plan.checkpoint_every=1000")
    deadline = time.monotonic() + 90
    metrics = tmp_path / "runs" / "stopped" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said = finish(process)
    assert "stopped at step" in said and "run the same command again" in said
    steps = checkpoint.Checkpoints(tmp_path / "runs" / "stopped" / "checkpoints").steps()
    assert steps and 0 < steps[-1] < STEPS
    to_the_end(config, "run.name=stopped", "plan.checkpoint_every=1000")
    undisturbed, stopped = final(whole(1)), final(tmp_path / "runs" / "stopped")
    assert all(torch.equal(undisturbed[key], stopped[key]) for key in undisturbed)


STOPPED = "stopped at step 7; run the same command again to go on\n"


@pytest.mark.parametrize(("rank", "said"), [("0", STOPPED), ("1", "")])
def test_one_rank_says_where_the_run_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: str, said: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(local, "train", lambda *_: 7)
    assert cli.main(["train", str(configuration(tmp_path))]) == 0
    assert capsys.readouterr() == (f"{tmp_path / 'runs' / 'tiny'}\n" if rank == "0" else "", said)
