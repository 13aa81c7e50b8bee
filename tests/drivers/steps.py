"""How far a run that trains in another process has come, by its checkpoints."""

import subprocess
import time
from concurrent.futures import Future
from pathlib import Path

from sslmed_dist.checkpoint import Checkpoints


def steps_of(folder: Path) -> list[int]:
    """Steps of a run folder with a checkpoint."""
    return Checkpoints(folder / "checkpoints").steps()


def wait_for_step(
    folder: Path, step: int, process: "subprocess.Popen[str] | Future[object] | None" = None, seconds: float = 240.0
) -> None:
    """Until the run has saved ``step`` or a later one. ``process``: what trains, which must not end before that."""
    deadline = time.monotonic() + seconds
    while max(steps_of(folder), default=0) < step:
        assert time.monotonic() < deadline, f"no step {step} after {seconds} s"
        if isinstance(process, Future):
            assert not process.done(), process.result()
        elif process is not None:
            assert process.poll() is None, [(text or "")[-3000:] for text in process.communicate()]
        time.sleep(0.02)
