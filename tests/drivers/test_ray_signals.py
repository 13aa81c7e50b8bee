"""A stop at every stage of a run of Ray's workers: how soon the command ends, with which code, and what is saved."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sslmed_dist import checkpoint, plain_yaml
from sslmed_dist.endings import Stopped
from sslmed_dist.training.stopping import BURST_S, Stop
from tests import tiny
from tests.drills import machine
from tests.drivers.ray_nodes import environment

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.fixture(autouse=True)
def a_terminal() -> Iterator[None]:
    """As from a terminal: whoever runs the tests under nohup has SIGHUP ignored, here and in what is started."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_stop_is_obeyed_at_once_where_nothing_is_to_be_saved(tmp_path: Path, number: signal.Signals) -> None:
    begun = time.monotonic()
    with Stop(tmp_path) as stop, pytest.raises(Stopped, match="nothing yet"), stop.at_once("nothing yet"):
        os.kill(os.getpid(), number)
        time.sleep(30)
    assert stop.asked and time.monotonic() - begun < 5


def test_one_that_came_before_or_was_swallowed_is_obeyed_too(tmp_path: Path) -> None:
    with Stop(tmp_path) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped, match="before"), stop.at_once("before"):
            raise AssertionError("the block was entered")
    with Stop(tmp_path) as stop, pytest.raises(Stopped, match="swallowed"), stop.at_once("swallowed"):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
        except Exception:
            pass


def test_a_second_signal_interrupts_and_handlers_are_put_back(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(KeyboardInterrupt), Stop(tmp_path) as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop()
        stop.signalled -= BURST_S
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_under_nohup_a_closed_terminal_stops_nothing(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop(tmp_path) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop()
    finally:
        signal.signal(signal.SIGHUP, before)


def start(folder: Path, driver: str = "ray", **env: str) -> "subprocess.Popen[str]":
    """A run without an end, of two workers of Ray's or in one process, in a session of its own; what it says goes to
    ``said.txt``."""
    plan = {"epochs": 100000, "checkpoint_every": 5}
    tree = tiny.tree(folder, plan=plan, ray={"num_workers": 2}) | {"driver": driver}
    (folder / "tiny.yaml").write_text(plain_yaml.write(tree))
    command = [sys.executable, "-m", "sslmed_dist.cli", "train", str(folder / "tiny.yaml")]
    with (folder / "said.txt").open("w") as said:
        return subprocess.Popen(
            command, env=environment(**env), text=True, stdout=said, stderr=said, start_new_session=True
        )


def until(there: Callable[[], bool], process: "subprocess.Popen[str]", seconds: float = 240.0) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + seconds
    while not there():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


def hears(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler of its own for a signal."""
    caught = re.search(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert caught is not None
    return bool(int(caught[1], 16) >> (number - 1) & 1)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_stop_while_the_cluster_is_joined(tmp_path: Path, number: signal.Signals) -> None:
    """Nobody answers there, and Ray itself hears no signal for half a minute."""
    pytest.importorskip("ray")
    process = start(tmp_path, RAY_ADDRESS="127.0.0.9:6399")
    # What Ray says of itself is not printed: that its library is there tells that it is about to connect.
    until(lambda: "_raylet" in Path(f"/proc/{process.pid}/maps").read_text(), process)
    until(lambda: hears(process.pid, signal.SIGTERM), process)  # and that the command has begun to listen
    time.sleep(3)
    begun = time.monotonic()
    process.send_signal(number)
    assert process.wait(60) == 0 and time.monotonic() - begun < 30
    said = (tmp_path / "said.txt").read_text()
    assert "stopped before the cluster was there; run the same command again" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(("number", "whole"), [(signal.SIGTERM, False), (signal.SIGHUP, True)])
def test_a_stop_while_workers_train_saves(tmp_path: Path, number: signal.Signals, whole: bool) -> None:
    """Also where a closed terminal tells the whole process group, Ray's own programs on this machine among it."""
    pytest.importorskip("ray")
    process = start(tmp_path)
    saved = checkpoint.Checkpoints(tmp_path / "runs" / "tiny" / "checkpoints")
    until(lambda: max(saved.steps(), default=0) >= 10, process)
    begun = time.monotonic()
    (os.killpg if whole else os.kill)(process.pid, number)
    code, spent = process.wait(60), time.monotonic() - begun
    said = (tmp_path / "said.txt").read_text()
    assert code == 0 and spent < 30, said[-3000:]
    assert f"stopped at step {saved.steps()[-1]}; run the same command again to go on" in said


@pytest.mark.parametrize("driver", ["local", pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.slow])])
def test_a_stop_while_a_checkpoint_is_saved(tmp_path: Path, driver: str) -> None:
    """On storage whose every fsync takes 0.4 s, a checkpoint and ``latest.json`` 1.6 s: the one that is being written
    is finished, one more step is made and saved, and within 10 s the command has said so. Nothing half-written is
    left. (How long Python takes to end after that is the machine's affair.)"""
    library = machine.compiled(tmp_path)
    if library is None:
        pytest.skip("no C compiler (cc): the disk of a program cannot be made slow")
    storage = machine.Machine(tmp_path / "machine", library)
    storage.is_so()
    process = start(tmp_path, driver, **storage.env)
    folder = tmp_path / "runs" / "tiny" / "checkpoints"
    saved = checkpoint.Checkpoints(folder)
    until(lambda: max(saved.steps(), default=0) >= 5, process)
    storage.is_so(slower=0.4)
    done = saved.steps()[-1]
    until(lambda: saved.steps()[-1] > done and any(folder.glob(".step_*.tmp")), process)
    begun, last = time.monotonic(), saved.steps()[-1]
    process.send_signal(signal.SIGTERM)
    until(lambda: "stopped at step" in (tmp_path / "said.txt").read_text(), process, 60.0)
    spent = time.monotonic() - begun
    code, said = process.wait(60), (tmp_path / "said.txt").read_text()
    assert code == 0 and spent < 10, (spent, said[-3000:])
    newest = saved.steps()[-1]
    assert newest > last and f"stopped at step {newest}; run the same command again to go on" in said
    assert (
        checkpoint.load(saved.path(newest))["step"]
        == newest
        == json.loads((folder / "latest.json").read_text())["step"]
    )
    assert not [path for path in folder.parent.rglob(".*") if path.suffix == ".tmp"]
