"""The Slurm scripts on two "nodes" of this machine: stand-ins for ``srun``, ``scontrol`` and ``hostname`` start real
processes, Ray's and torchrun's, which train a tiny run to its end, or save when the job is asked to go."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sslmed_dist import checkpoint, config
from tests import tiny
from tests.drivers import family
from tests.drivers.ray_nodes import ROOT, environment, short_folder

pytestmark = [pytest.mark.slow, pytest.mark.ray]
CLUSTER = ROOT / "deploy" / "cluster"
PATIENCE_S = 500.0
# Nodes of the job: a loopback address each.
NODES = {"node-a": "127.0.0.3", "node-b": "127.0.0.2"}
SRUN = """
import os, subprocess, sys

NODES = dict(NODES)
words, chosen, left_out, tasks = sys.argv[1:], None, None, None
while words and words[0].startswith("--"):
    name, _, value = words.pop(0).partition("=")
    assert name in ("--overlap", "--nodes", "--ntasks", "--ntasks-per-node", "--nodelist", "--exclude"), name
    chosen, left_out = (value if name == "--nodelist" else chosen), (value if name == "--exclude" else left_out)
    tasks = int(value) if name == "--ntasks" else tasks
names = [name for name in NODES if name != left_out and chosen in (None, name)]
assert tasks == len(names), (tasks, names)
running = []
for number, name in enumerate(names):
    env = {"SLURM_NODEID": str(number), "SLURM_PROCID": str(number), "NODE_ADDRESS": NODES[name]}
    running.append(subprocess.Popen(words, env={**os.environ, **env}))
import signal
signal.signal(signal.SIGTERM, lambda *_: [process.terminate() for process in running])
sys.exit(max(abs(process.wait()) for process in running))
"""
STAND_INS = {
    "srun": f"#!{sys.executable}\n{SRUN.replace('dict(NODES)', repr(NODES))}",
    "hostname": '#!/bin/bash\n[ "$1" = --ip-address ] || exit 1\necho "$NODE_ADDRESS 10.9.9.9"\n',
    "scontrol": (
        '#!/bin/bash\ncase "$1 $2" in\n"show hostnames") tr , "\\n" <<<"$3" ;;\n'
        'requeue*) echo "$2" >> "$REQUEUED" ;;\n*) exit 1 ;;\nesac\n'
    ),
    "sslmed": f'#!/bin/bash\nexec {sys.executable} -m sslmed_dist.cli "$@"\n',
}


class Batch:
    """A batch script as Slurm would run it: on the first of two nodes, in an environment of Slurm's."""

    def __init__(self, folder: Path, rays: Path) -> None:
        self.folder, self.requeued = folder, folder / "requeued"
        self.programs: list[subprocess.Popen[bytes]] = []
        (folder / "bin").mkdir()
        for name, text in STAND_INS.items():
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)
        path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
        slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": ",".join(NODES), "SLURM_JOB_NUM_NODES": "2"}
        slurm |= {"SLURM_CPUS_PER_TASK": "1", "REQUEUED": str(self.requeued), "SSLMED_WAIT_S": "400"}
        self.env = environment(PATH=path, RAY_TMPDIR=str(rays)) | slurm

    def start(self, script: str, *words: str, **env: str) -> "subprocess.Popen[bytes]":
        """Begin to run a script; its output is in the file ``log``."""
        command = ["bash", str(CLUSTER / script), *words]
        with (self.folder / "log").open("ab") as log:
            program = subprocess.Popen(command, env=self.env | env, stdout=log, stderr=log, cwd=self.folder)
        self.programs.append(program)
        return program

    def log(self) -> str:
        """What was said."""
        return (self.folder / "log").read_text()


@pytest.fixture
def batch(tmp_path: Path) -> Iterator[Batch]:
    """Two nodes. What was started is ended."""
    with short_folder() as rays:
        made = Batch(tmp_path, rays)
        yield made
        for program in made.programs:
            started = family.descendants(program.pid)
            program.terminate()
            try:
                program.wait(20)
            except subprocess.TimeoutExpired:
                program.kill()
            family.end(started)


def recipe(folder: Path, **plan: int) -> tuple[Path, config.Config]:
    """A tiny run of two workers."""
    settings = tiny.settings(folder, driver="ray", ray={"num_workers": 2}, plan=plan)  # type: ignore[arg-type]
    path = folder / "tiny.yaml"
    path.write_text(config.dump(settings))
    return path, settings


def last_step(folder: Path) -> int:
    """The step of the newest checkpoint; 0 without one."""
    return max(checkpoint.Checkpoints(folder / "checkpoints").steps(), default=0)


def test_ray_on_two_nodes_to_the_end(batch: Batch, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    path, settings = recipe(tmp_path)
    assert batch.start("slurm_ray.sh", str(path)).wait(PATIENCE_S) == 0, batch.log()
    assert last_step(settings.folder) == 6 and "ray: 2 workers have started" in batch.log()
    assert not batch.requeued.exists()
    assert "127.0.0.2" in (settings.folder / "logs" / "ray.log").read_text(), "a worker on the second node"


def test_torchrun_saves_is_queued_again_and_goes_on_to_the_end(batch: Batch, tmp_path: Path) -> None:
    """3,000 epochs would take long: at SIGTERM the run saves. The same command with fewer left goes on from there."""
    path, settings = recipe(tmp_path, epochs=3000, checkpoint_every=3)
    runs = {"RUNS": settings.run.dir, "NAME": "tiny", "SLURM_GPUS_ON_NODE": "1"}
    program = batch.start("slurm_torchrun.sh", str(path), **runs)
    end = time.monotonic() + PATIENCE_S
    while last_step(settings.folder) < 3:
        assert program.poll() is None and time.monotonic() < end, batch.log()
        time.sleep(0.2)
    program.send_signal(signal.SIGTERM)
    assert program.wait(PATIENCE_S) == 0, batch.log()
    saved = last_step(settings.folder)
    assert 3 <= saved < 9000 and batch.requeued.read_text().split() == [batch.env["SLURM_JOB_ID"]]
    assert "stopped at step" in batch.log()
    program = batch.start("slurm_torchrun.sh", str(path), **runs)
    while last_step(settings.folder) <= saved:
        assert program.poll() is None and time.monotonic() < end, batch.log()
        time.sleep(0.2)
    program.send_signal(signal.SIGTERM)
    assert program.wait(PATIENCE_S) == 0, batch.log()
