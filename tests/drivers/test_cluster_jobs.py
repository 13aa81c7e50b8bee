"""`ray job stop` and submitting again, from another folder and with another package."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.drivers.ray_nodes import RAY, Nodes, environment
from tests.drivers.test_cluster import STEPS, require_bits, steps_of, undisturbed, write

__all__ = ["undisturbed"]
pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """One node that takes jobs."""
    pytest.importorskip("ray")
    head = Nodes(tmp_path_factory.mktemp("head"), cpus=4, jobs=True)
    try:
        head.wait()
        yield head
    finally:
        head.close()


def submit(nodes: Nodes, name: str, folder: Path, *arguments: str, wait: bool) -> subprocess.CompletedProcess[str]:
    """``ray job submit`` of ``sslmed train`` with the working directory ``folder``."""
    command = [RAY, "job", "submit", f"--submission-id={name}", *([] if wait else ["--no-wait"])]
    command += ["--working-dir", str(folder), "--", sys.executable, "-m", "sslmed_dist.cli", "train", *arguments]
    deadline = time.monotonic() + 120
    while True:
        done = subprocess.run(
            command, env=environment(**nodes.env), text=True, capture_output=True, timeout=400, cwd=folder
        )
        # The head's job agent comes up some seconds after its dashboard.
        if "No available agent" not in done.stdout + done.stderr or time.monotonic() > deadline:
            return done
        time.sleep(2)


def test_a_stopped_job_goes_on_from_another_folder_with_an_edited_package(
    tmp_path: Path, head: Nodes, undisturbed: dict[str, torch.Tensor]
) -> None:
    """``ray job stop`` ends the driver; the same command from another working directory, whose package was edited, goes
    on: the run folder is an absolute path."""
    path, folder = write(tmp_path, placement="pack"), tmp_path / "runs" / "tiny"
    for name in ("first", "second"):
        shutil.copytree(
            Path(__file__).parents[2] / "sslmed_dist",
            tmp_path / name / "sslmed_dist",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        shutil.copy(path, tmp_path / name / "tiny.yaml")
    edited = tmp_path / "second" / "sslmed_dist" / "__init__.py"
    edited.write_text(edited.read_text() + "\nprint('the edited package', file=__import__('sys').stderr)\n")
    done = submit(head, "first", tmp_path / "first", "tiny.yaml", wait=False)
    assert done.returncode == 0, done.stdout + done.stderr
    deadline = time.monotonic() + 240
    while max(steps_of(folder), default=0) < 6:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    subprocess.run([RAY, "job", "stop", "first"], env=environment(**head.env), check=True, capture_output=True)
    assert steps_of(folder)[-1] < STEPS
    done = submit(head, "second", tmp_path / "second", "tiny.yaml", wait=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "the edited package" in done.stdout + done.stderr
    require_bits(folder, undisturbed)
