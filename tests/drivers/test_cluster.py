"""Failure drills on two Ray nodes: whatever is lost, the run ends with the bits of one that nothing disturbed."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from sslmed_dist import checkpoint, config, plain_yaml
from sslmed_dist.drivers.processes import end_process
from sslmed_dist.json_files import Lines
from sslmed_dist.training import job
from tests import tiny
from tests.drivers.ray_nodes import Nodes, environment, started_nodes
from tests.drivers.steps import steps_of, wait_for_step

pytestmark = [pytest.mark.ray, pytest.mark.slow]
STEPS = 180


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Two nodes of two CPUs."""
    pytest.importorskip("ray")
    with started_nodes(tmp_path_factory.mktemp("nodes")) as nodes:
        yield nodes


def write(folder: Path, **ray: object) -> Path:
    """A float64 run of two workers, one on each node, that saves every second step."""
    below = {"num_workers": 2, "placement": "strict_spread", "max_failures": 3, "wait_nodes_s": 120.0, **ray}
    plan = {"epochs": STEPS // 3, "precision": "float64", "checkpoint_every": 2, "keep_last": 1000}
    path = folder / "tiny.yaml"
    optim = {"schedule": {"name": "constant"}}  # so that a longer run begins as a shorter one
    path.write_text(plain_yaml.write(tiny.tree(folder, plan=plan, ray=below, optim=optim) | {"driver": "ray"}))
    return path


def start(path: Path, nodes: Nodes, *overrides: str) -> "subprocess.Popen[str]":
    """``sslmed train`` on the cluster, in a process of its own; what it says goes to a file beside the recipe."""
    command = [sys.executable, "-m", "sslmed_dist.cli", "train", str(path), *overrides]
    with (path.parent / "said.txt").open("a") as said:
        return subprocess.Popen(command, env=environment(**nodes.env), text=True, stdout=said, stderr=said)


def finish(process: "subprocess.Popen[str]", path: Path, seconds: float = 400.0) -> str:
    """Wait until it has ended well; what it said."""
    code = process.wait(seconds)
    said = (path.parent / "said.txt").read_text()
    assert code == 0, said[-4000:]
    return said


def wait_for_workers(path: Path, numbers: list[int], process: "subprocess.Popen[str]", seconds: float = 240.0) -> None:
    """Until an elastic run has said that it trains on these numbers of workers, in this order, whatever else it said:
    it may begin on one where the nodes are still held by what ran before."""
    deadline = time.monotonic() + seconds
    while True:
        said = (path.parent / "said.txt").read_text()
        told = iter(re.findall(r"trains on (\d) of at most", said))
        if all(str(number) in told for number in numbers):
            return
        assert time.monotonic() < deadline and process.poll() is None, said[-3000:]
        time.sleep(0.2)


def final(folder: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    """The method's state at a step, the last one."""
    saved = checkpoint.load(checkpoint.Checkpoints(folder / "checkpoints").path(step))
    method: dict[str, torch.Tensor] = saved["method"]
    return method


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The method's state after ``STEPS`` steps that nobody disturbs."""
    return trained(tmp_path_factory.mktemp("undisturbed"), STEPS)


def trained(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """The method's state when two workers of torchrun, which have the same bits, have trained so many steps."""
    path = write(folder)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "-m", "sslmed_dist.cli", "train", str(path), "driver=local", "plan.checkpoint_every=1"]
    command += [f"plan.epochs={-(-step // 3)}"]
    done = subprocess.run(command, env=environment(), text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return final(folder / "runs" / "tiny", step)


def require_bits(folder: Path, undisturbed: dict[str, torch.Tensor], step: int = STEPS) -> None:
    """The run's parameters and its metrics are those of the undisturbed run, bit for bit and step for step."""
    ended = final(folder, step)
    assert ended.keys() == undisturbed.keys()
    assert [key for key in ended if not torch.equal(ended[key], undisturbed[key])] == []
    lines = Lines(folder / "metrics.jsonl", {"name": str})
    assert [row["step"] for _, row in lines if row["name"] == "loss"] == list(range(1, step + 1))


Drill = Callable[[Nodes, Path], None]


def worker_is_killed(nodes: Nodes, folder: Path) -> None:
    assert nodes.signal_worker(signal.SIGKILL)


def wait_for_line(text: str, folder: Path, seconds: float = 120.0) -> None:
    """Until the run has said it."""
    said, deadline = folder.parents[1] / "said.txt", time.monotonic() + seconds
    while text not in said.read_text():
        assert time.monotonic() < deadline, said.read_text()[-3000:]
        time.sleep(0.1)


def worker_raises(nodes: Nodes, folder: Path) -> None:
    """Rank 0 cannot write its next checkpoint: a file stands in the way until that was seen."""
    checkpoints, away = folder / "checkpoints", folder / "away"
    workers = nodes.workers()
    for worker in workers:  # between the two it would make the folder anew
        end_process(*worker, signal.SIGSTOP)
    time.sleep(0.1)  # until all their threads have stopped
    checkpoints.rename(away)
    checkpoints.write_text("")
    for worker in workers:
        end_process(*worker, signal.SIGCONT)
    wait_for_line("ray: workers failed, failure 1", folder)
    checkpoints.unlink()
    away.rename(checkpoints)


def worker_hangs(nodes: Nodes, folder: Path) -> None:
    assert nodes.signal_worker(signal.SIGSTOP)
    wait_for_line("hangs after step", folder)


def node_is_lost_and_returns(nodes: Nodes, folder: Path) -> None:
    nodes.lose()
    time.sleep(3.0)
    nodes.join()


@pytest.mark.parametrize("disturb", [worker_is_killed, worker_raises, worker_hangs, node_is_lost_and_returns])
def test_ray_starts_again_and_the_bits_are_the_same(
    tmp_path: Path, nodes: Nodes, undisturbed: dict[str, torch.Tensor], disturb: Drill
) -> None:
    path, folder = write(tmp_path), tmp_path / "runs" / "tiny"
    process = start(path, nodes)
    wait_for_step(folder, 6, process)
    disturb(nodes, folder)
    finish(process, path)
    require_bits(folder, undisturbed)


def test_a_killed_driver_and_a_torn_checkpoint(
    tmp_path: Path, nodes: Nodes, undisturbed: dict[str, torch.Tensor]
) -> None:
    """A torn newest checkpoint is refused by name; without it the run goes on from the one before."""
    path, folder = write(tmp_path), tmp_path / "runs" / "tiny"
    process = start(path, nodes)
    wait_for_step(folder, 6, process)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 120
    while nodes.workers():  # Ray ends them
        assert time.monotonic() < deadline, nodes.workers()
        time.sleep(0.2)
    torn = checkpoint.Checkpoints(folder / "checkpoints").path(steps_of(folder)[-1])
    torn.write_bytes(torn.read_bytes()[:-100])
    process = start(path, nodes)
    assert process.wait(240) == 2
    assert f"{torn}: torn or damaged checkpoint" in (tmp_path / "said.txt").read_text()
    torn.unlink()
    finish(start(path, nodes), path)
    require_bits(folder, undisturbed)


def mount(*arguments: str) -> bool:
    """Whether a mount succeeded."""
    return subprocess.run(["mount", *arguments], capture_output=True).returncode == 0


def test_storage_that_is_away_for_a_while(tmp_path: Path, nodes: Nodes, undisturbed: dict[str, torch.Tensor]) -> None:
    """Unmounted lazily for 20 s: nothing is written below the mount point, and the run goes on when it is back."""
    real, shared = tmp_path / "real", tmp_path / "shared"
    (real / "store").mkdir(parents=True)
    shared.mkdir()
    if not mount("--bind", str(real), str(shared)):
        pytest.skip("this user may not mount")
    try:
        path, folder = write(tmp_path), shared / "store" / "tiny"
        process = start(path, nodes, f"run.dir={shared / 'store'}")
        wait_for_step(folder, 6, process)
        subprocess.run(["umount", "--lazy", str(shared)], check=True)
        time.sleep(20.0)
        assert list(shared.iterdir()) == []
        assert mount("--bind", str(real), str(shared))
        finish(process, path)
        require_bits(folder, undisturbed)
    finally:
        subprocess.run(["umount", "--lazy", str(shared)], capture_output=True)


def test_elastic_workers_follow_the_nodes(tmp_path: Path, nodes: Nodes) -> None:
    """Two workers, one after a node is lost, two after it is back: the same samples in the same order, and the losses
    of one process within 1e-9 in float64."""
    path = write(tmp_path, num_workers=[1, 2], placement="spread", cpus_per_worker=2, resize_s=5.0)
    folder = tmp_path / "runs" / "tiny"
    process = start(path, nodes, "plan.epochs=100000")  # a fast machine must not reach its end before the node is back
    wait_for_workers(path, [2], process)
    wait_for_step(folder, max(steps_of(folder), default=0) + 6, process)
    nodes.lose()
    wait_for_workers(path, [2, 1], process)
    wait_for_step(folder, max(steps_of(folder)) + 60, process)
    nodes.join()
    wait_for_workers(path, [2, 1, 2], process)
    process.send_signal(signal.SIGTERM)
    finish(process, path)
    last = steps_of(folder)[-1]
    alone = config.load(path, ["driver=local", "run.name=alone", f"plan.epochs={-(-last // 3)}"])
    job.train(alone)
    losses = [
        [row["value"] for _, row in Lines(run / "metrics.jsonl", {"name": str}) if row["name"] == "loss"][:last]
        for run in (folder, tmp_path / "runs" / "alone")
    ]
    assert len(losses[0]) == last
    assert torch.allclose(torch.tensor(losses[0]).double(), torch.tensor(losses[1]).double(), rtol=1e-9, atol=0)


REPORT = """import ray, sys
from ray import _raylet
from ray.core.generated.autoscaler_pb2 import ClusterConfig
from ray.experimental import internal_kv
ray.init(log_to_driver=False)
config = ClusterConfig()
if sys.argv[1] == "report":
    config.node_group_configs.add(name="workers", max_count=3, resources={"CPU": 2})
key, namespace = _raylet.GCS_AUTOSCALER_CLUSTER_CONFIG_KEY, _raylet.GCS_AUTOSCALER_STATE_NAMESPACE
internal_kv._internal_kv_put(key.encode(), config.SerializeToString(), namespace=namespace.encode())
"""


def test_more_than_the_autoscaler_can_add_is_refused_at_once(tmp_path: Path, nodes: Nodes) -> None:
    """Nobody runs an autoscaler here; what one would report is written in its place."""
    path = write(tmp_path, placement="pack", num_workers=11)
    report = [sys.executable, "-c", REPORT]
    subprocess.run([*report, "report"], env=environment(**nodes.env), check=True, timeout=200)
    try:
        process = start(path, nodes, "plan.batch_size=22")
        assert process.wait(200) == 2
    finally:
        subprocess.run([*report, "forget"], env=environment(**nodes.env), check=True, timeout=200)
    said = (tmp_path / "said.txt").read_text()
    assert "room for 4; its autoscaler can make room for 10; smaller numbers, or larger groups" in said
    assert not (tmp_path / "runs").exists()
