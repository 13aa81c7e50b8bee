"""The comparison with lightly (``tests/benchmarks/peers.py``): what it says without lightly, and that our side runs."""

import importlib.metadata
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.benchmarks import peers, process_memory

PIPES: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
TINY = ["--encoder", "resnet9", "--batch", "4", "--blocks", "1"]


def test_without_lightly_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightly", None)  # an import of it fails
    with pytest.raises(SystemExit) as ended:
        peers.main(TINY)
    line = str(ended.value)
    assert line.startswith("peers: lightly cannot be imported (") and "\n" not in line
    assert line.endswith("; pip install -e '.[parity]' (or pip install 'lightly>=1.6,<1.7')")


def test_another_version_of_lightly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lightly", "lightly.loss"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.5.22")
    with pytest.raises(SystemExit, match=r"^peers: expected lightly 1\.6, got 1\.5\.22; pip install "):
        peers.main(TINY)


@pytest.mark.parametrize("channels_last", [False, True])
def test_our_side_trains_on_noise(channels_last: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peers.CASES, "tiny", peers.Case(depth=9, width=2, steps=2, target=1.0))
    monkeypatch.setattr(peers.torch, "set_num_threads", lambda threads: None)
    data = peers.write_noise(tmp_path / "noise.npz", 24)
    side = peers.build("ours", peers.Setting("tiny", str(data), 4, channels_last), tmp_path)
    assert isinstance(side, peers.Ours)
    before = [parameter.clone() for parameter in side.work.method.parameters()]
    assert 0 < peers.block(side, 2) < 60
    assert side.work.state.step == peers.UNTIMED + 2
    assert any(not old.equal(new) for old, new in zip(before, side.work.method.parameters(), strict=True))


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="no /proc/PID/smaps_rollup here")
def test_memory_is_that_of_a_process_and_its_children() -> None:
    child = subprocess.Popen([sys.executable, "-c", "print(flush=True); input()"], **PIPES)
    try:
        assert child.stdout is not None and child.stdout.readline()  # it has started
        both = process_memory.family(os.getpid())
        assert both[0] == os.getpid() and child.pid in both
        own, below = process_memory.resident(both[:1], "Rss"), process_memory.resident([child.pid], "Rss")
        assert 0 < process_memory.resident(both[:1], "Pss") <= own and below > 2**20
        peak = process_memory.peaks(os.getpid(), lambda: time.sleep(0.3))
        assert peak["Rss"] > own and 0 < peak["Pss"] <= peak["Rss"]
    finally:
        child.communicate("\n")
