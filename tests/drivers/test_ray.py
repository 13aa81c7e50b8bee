"""A real Ray cluster: two workers walk the local trajectory, a killed worker loses nothing, `ray job submit` works."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sslmed_dist import checkpoint, config, plain_yaml
from sslmed_dist.training import job
from tests import tiny
from tests.drivers.ray_nodes import START_S, Nodes, environment, started_nodes
from tests.drivers.steps import steps_of, wait_for_step
from tests.methods import test_jigsaw as jigsaw

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """One node of four CPUs that takes jobs."""
    pytest.importorskip("ray")
    with started_nodes(tmp_path_factory.mktemp("ray"), others=0, cpus=4, jobs=True) as started:
        yield started


@pytest.fixture(scope="module")
def cluster(nodes: Nodes) -> dict[str, str]:
    """The environment that reaches it."""
    return nodes.env


def write(folder: Path, workers: int, **plan: object) -> Path:
    """A float64 run for Ray workers."""
    ray = {"num_workers": workers, "max_failures": 2}
    tree = tiny.tree(folder, plan={"precision": "float64", "checkpoint_every": 2, **plan}, ray=ray)
    path = folder / "tiny.yaml"
    path.write_text(plain_yaml.write(tree | {"driver": "ray"}))
    return path


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    """The method state of the last checkpoint."""
    latest = checkpoint.Checkpoints(folder / "checkpoints").latest()
    assert latest is not None
    method: dict[str, torch.Tensor] = checkpoint.load(latest)["method"]
    return method


def sslmed(path: Path, *overrides: str, **env: str) -> "subprocess.Popen[str]":
    """``sslmed train`` in a process of its own."""
    command = [sys.executable, "-m", "sslmed_dist.cli", "train", str(path), *overrides]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, env=environment(**env), text=True, cwd=path.parent, **pipe)  # type: ignore[call-overload, no-any-return]


def relative(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Norm-wise difference over the floating-point tensors."""
    keys = [key for key, value in b.items() if value.is_floating_point()]
    gap = sum(float((a[k].double() - b[k].double()).square().sum()) for k in keys)
    return float((gap / sum(float(b[k].double().square().sum()) for k in keys)) ** 0.5)


def test_two_workers_walk_the_local_trajectory_as_a_job(tmp_path: Path, nodes: Nodes) -> None:
    """Submitted with ``ray job submit``: the float64 parameters are those of one process."""
    path = write(tmp_path, 2)
    submitted = nodes.submit("--", sys.executable, "-m", "sslmed_dist.cli", "train", str(path), folder=tmp_path)
    assert submitted.returncode == 0, submitted.stdout[-3000:] + submitted.stderr[-2000:]
    alone = job.train(config.load(path, ["driver=local", "run.name=alone"]))
    assert relative(state_of(tmp_path / "runs" / "tiny"), alone.method.state_dict()) < 1e-9


def test_two_workers_solve_the_puzzle_of_one(tmp_path: Path, cluster: dict[str, str]) -> None:
    """Jigsaw pretraining with validation and patience: parameters, best weights and the watch are those of one
    process."""
    plan = {"precision": "float64", "checkpoint_every": 2, "slices_per_exam": 4, "validate": "val", "patience": 2}
    settings = jigsaw.tree(tmp_path, "skid", plan=plan, ray={"num_workers": 2, "max_failures": 0})
    path = tmp_path / "tiny.yaml"
    path.write_text(plain_yaml.write(settings | {"driver": "ray"}))
    process = sslmed(path, **cluster)
    assert process.wait(300) == 0, process.stdout and process.stdout.read()[-3000:]
    alone = job.train(config.load(path, ["driver=local", "run.name=alone"]))
    latest = checkpoint.Checkpoints(tmp_path / "runs" / "tiny" / "checkpoints").latest()
    assert latest is not None and alone.best is not None
    saved = checkpoint.load(latest)
    assert relative(saved["method"], alone.method.state_dict()) < 1e-9
    assert relative(saved["best"], alone.best) < 1e-9
    assert saved["state"]["watch"]["lowest"] == pytest.approx(alone.state.watch.lowest, rel=1e-9)


def test_killed_worker_among_four_and_killed_driver(tmp_path: Path, nodes: Nodes, cluster: dict[str, str]) -> None:
    """kill -9 of one of four workers, later of the driver: Ray, then the user, start again, and the bits are those of
    an undisturbed run of four workers (gloo, the same arithmetic)."""
    path = write(tmp_path, 4, epochs=40)
    folder = tmp_path / "runs" / "disturbed"
    process = sslmed(path, "run.name=disturbed", **cluster)
    wait_for_step(folder, 6, process)
    assert nodes.signal_worker(signal.SIGKILL)
    wait_for_step(folder, max(steps_of(folder)) + 12, process)
    process.kill()
    process.communicate()
    again = sslmed(path, "run.name=disturbed", **cluster)
    said = again.communicate(timeout=300)[0]
    assert again.returncode == 0, said[-3000:]
    whole = sslmed(path, "run.name=whole", **cluster)
    said = whole.communicate(timeout=300)[0]
    assert whole.returncode == 0, said[-3000:]
    one, other = state_of(folder), state_of(tmp_path / "runs" / "whole")
    assert steps_of(folder)[-1] == steps_of(tmp_path / "runs" / "whole")[-1] == 120
    assert all(torch.equal(one[key], other[key]) for key in other)


HOLD = """import ray, time
ray.init(log_to_driver=False)
held = ray.remote(num_cpus=4)(lambda: time.sleep(600)).remote()
while ray.available_resources().get("CPU", 0) > 0: time.sleep(0.1)
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def full_cluster(cluster: dict[str, str]) -> Iterator[dict[str, str]]:
    """The cluster while another job has all of its CPUs."""
    command = [sys.executable, "-c", HOLD]
    process = subprocess.Popen(command, env=environment(**cluster), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield cluster
    process.kill()
    process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_acts_at_once_while_no_worker_is_there(
    tmp_path: Path, full_cluster: dict[str, str], number: signal.Signals
) -> None:
    process = sslmed(write(tmp_path, 4), **full_cluster)
    folder = tmp_path / "runs" / "tiny"
    deadline = time.monotonic() + START_S
    while not list(folder.glob("ray/*/*")):  # Ray's own folder: the trainer has begun
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    started = time.monotonic()
    process.send_signal(number)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 0, said
    assert "stopped before the workers had started; run the same command again" in said
    assert time.monotonic() - started < 30 and steps_of(folder) == []


def test_ctrl_c_saves_and_the_cluster_goes_on(tmp_path: Path, cluster: dict[str, str]) -> None:
    path = write(tmp_path, 2, epochs=100000, checkpoint_every=5)  # no machine is at its end before the stop
    process = sslmed(path, **cluster)
    folder = tmp_path / "runs" / "tiny"
    wait_for_step(folder, 5, process)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said[-3000:]
    last = steps_of(folder)[-1]
    assert f"stopped at step {last}; run the same command again to go on" in said


def test_what_the_cluster_can_never_give_is_refused(tmp_path: Path, cluster: dict[str, str]) -> None:
    process = sslmed(write(tmp_path, 4), "ray.cpus_per_worker=2", **cluster)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 2
    line = "sslmed train: ray.num_workers: 4 workers of 2 CPUs and 0 GPUs each; there are 4 CPUs and 0 GPUs, room for 2"
    assert f"{line}; smaller numbers, or more nodes (`ray status` shows them)" in said
    assert not (tmp_path / "runs").exists()


def test_a_run_folder_in_the_jobs_temporary_package_is_refused(tmp_path: Path, nodes: Nodes) -> None:
    write(tmp_path, 2)
    command = ["--working-dir", str(tmp_path), "--", sys.executable, "-m", "sslmed_dist.cli"]
    submitted = nodes.submit(*command, "train", "tiny.yaml", "run.dir=runs", folder=tmp_path)
    assert submitted.returncode != 0
    said = submitted.stdout + submitted.stderr
    assert "run.dir: 'runs' lies in the temporary folder of this Ray job" in said, said[-3000:]
    assert "allowed: run.dir=/absolute/path" in said
