"""`ray job stop` and submitting again, from another folder and with another package."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.drivers.ray_nodes import RAY, ROOT, Nodes, environment, started_nodes
from tests.drivers.steps import steps_of, wait_for_step
from tests.drivers.test_cluster import require_bits, trained, write

pytestmark = [pytest.mark.ray, pytest.mark.slow]
IGNORED = shutil.ignore_patterns("__pycache__")


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """One node that takes jobs."""
    pytest.importorskip("ray")
    with started_nodes(tmp_path_factory.mktemp("head"), others=0, cpus=4, jobs=True) as head:
        yield head


def submit(nodes: Nodes, name: str, folder: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    """``ray job submit`` of a run without an end, with the working directory ``folder``."""
    command = [f"--submission-id={name}", *options, "--working-dir", str(folder), "--", sys.executable, "-m"]
    command += ["sslmed_dist.cli", "train", "tiny.yaml", "plan.epochs=100000"]
    return nodes.submit(*command, folder=folder)


def test_a_stopped_job_goes_on_from_another_folder_with_an_edited_package(tmp_path: Path, head: Nodes) -> None:
    """``ray job stop`` ends the driver; the same command from another working directory, whose package was edited, goes
    on, until a file asks it to stop: the run folder is an absolute path."""
    path, folder = write(tmp_path, placement="pack"), tmp_path / "runs" / "tiny"
    for name in ("first", "second"):
        shutil.copytree(ROOT / "sslmed_dist", tmp_path / name / "sslmed_dist", ignore=IGNORED)
        shutil.copy(path, tmp_path / name / "tiny.yaml")
    edited = tmp_path / "second" / "sslmed_dist" / "__init__.py"
    edited.write_text(edited.read_text() + "\nprint('the edited package', file=__import__('sys').stderr)\n")
    done = submit(head, "first", tmp_path / "first", "--no-wait")
    assert done.returncode == 0, done.stdout + done.stderr
    wait_for_step(folder, 6)
    subprocess.run([RAY, "job", "stop", "first"], env=environment(**head.env), check=True, capture_output=True)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(submit, head, "second", tmp_path / "second")
        try:
            wait_for_step(folder, steps_of(folder)[-1] + 6, second)
        finally:
            (folder / "stop").touch()
        done = second.result()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    last = steps_of(folder)[-1]
    assert "the edited package" in done.stdout + done.stderr and f"stopped at step {last};" in done.stdout + done.stderr
    (tmp_path / "alone").mkdir()
    require_bits(folder, trained(tmp_path / "alone", last), last)
