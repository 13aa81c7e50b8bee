"""A real Ray cluster: two workers walk the local trajectory, a killed worker loses nothing, `ray job submit` works."""

import os
import shutil
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
from tests.drivers import family
from tests.methods import test_jigsaw as jigsaw

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
START_S = 180.0
API = "http://127.0.0.1:8276"


def environment(**more: str) -> dict[str, str]:
    """This process's environment with quiet Ray settings and the package importable."""
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "OMP_NUM_THREADS": "1"}
    return os.environ | quiet | {"PYTHONPATH": str(ROOT)} | more


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """One head on its own ports, stopped by pid; yields the environment that reaches it."""
    pytest.importorskip("ray")
    folder = tmp_path_factory.mktemp("ray")
    # Ray's socket paths must stay under 108 characters, so its folder is a short one.
    temporary = Path("/tmp") / f"sslmed-ray-{os.getpid()}"
    ports = ["--port=6391", "--dashboard-port=8276", "--ray-client-server-port=6392"]
    command = [
        str(Path(sys.executable).parent / "ray"),
        "start",
        "--head",
        "--block",
        "--node-ip-address=127.0.0.3",
        *ports,
    ]
    command += ["--num-cpus=4", "--object-store-memory=200000000", f"--temp-dir={temporary}", "--disable-usage-stats"]
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(command, env=environment(), stdout=log, stderr=log, start_new_session=True, cwd=folder)
    try:
        wait_for_dashboard(API, head)
        yield {"RAY_ADDRESS": "127.0.0.3:6391", "RAY_API_SERVER_ADDRESS": API, "HEAD": str(head.pid)}
    finally:
        started = family.descendants(head.pid)
        head.terminate()
        try:
            head.wait(30)
        except subprocess.TimeoutExpired:
            head.kill()
        family.end(started)
        shutil.rmtree(temporary, ignore_errors=True)


def wait_for_dashboard(url: str, head: "subprocess.Popen[bytes]") -> None:
    """Until the jobs API answers."""
    import urllib.error
    import urllib.request

    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert head.poll() is None, "ray start ended"
        try:
            urllib.request.urlopen(f"{url}/api/version", timeout=2)
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(f"no Ray dashboard after {START_S} s")


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


def test_two_workers_walk_the_local_trajectory_as_a_job(tmp_path: Path, cluster: dict[str, str]) -> None:
    """Submitted with ``ray job submit``: the float64 parameters are those of one process."""
    path = write(tmp_path, 2)
    ray = str(Path(sys.executable).parent / "ray")
    command = [ray, "job", "submit", "--", sys.executable, "-m", "sslmed_dist.cli", "train", str(path)]
    deadline = time.monotonic() + START_S
    while True:
        submitted = subprocess.run(
            command, env=environment(**cluster), text=True, capture_output=True, timeout=300, cwd=tmp_path
        )
        # The head's job agent comes up some seconds after its dashboard.
        if "No available agent" not in submitted.stdout + submitted.stderr or time.monotonic() > deadline:
            break
        time.sleep(2)
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


def test_killed_worker_among_four_and_killed_driver(tmp_path: Path, cluster: dict[str, str]) -> None:
    """kill -9 of one of four workers, later of the driver: Ray, then the user, start again, and the bits are those of
    an undisturbed run of four workers (gloo, the same arithmetic)."""
    path = write(tmp_path, 4, epochs=40)
    folder = tmp_path / "runs" / "disturbed"
    process = sslmed(path, "run.name=disturbed", **cluster)
    wait_for_step(folder, 6, process)
    kill_one_worker(int(cluster["HEAD"]))
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
    path = write(tmp_path, 2, epochs=400, checkpoint_every=5)
    process = sslmed(path, **cluster)
    folder = tmp_path / "runs" / "tiny"
    wait_for_step(folder, 5, process)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said[-3000:]
    last = steps_of(folder)[-1]
    assert f"stopped at step {last}; run the same command again to go on" in said and last < 1200


def test_what_the_cluster_can_never_give_is_refused(tmp_path: Path, cluster: dict[str, str]) -> None:
    process = sslmed(write(tmp_path, 4), "ray.cpus_per_worker=2", **cluster)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 2
    line = "sslmed train: ray.num_workers: 4 workers of 2 CPUs and 0 GPUs each; there are 4 CPUs and 0 GPUs, room for 2"
    assert f"{line}; smaller numbers, or more nodes (`ray status` shows them)" in said
    assert not (tmp_path / "runs").exists()


def test_a_run_folder_in_the_jobs_temporary_package_is_refused(tmp_path: Path, cluster: dict[str, str]) -> None:
    write(tmp_path, 2)
    ray = str(Path(sys.executable).parent / "ray")
    command = [ray, "job", "submit", "--working-dir", str(tmp_path), "--", sys.executable, "-m", "sslmed_dist.cli"]
    command += ["train", "tiny.yaml", "run.dir=runs"]
    submitted = subprocess.run(command, env=environment(**cluster), text=True, capture_output=True, timeout=300)
    assert submitted.returncode != 0
    said = submitted.stdout + submitted.stderr
    assert "run.dir: 'runs' lies in the temporary folder of this Ray job" in said, said[-3000:]
    assert "allowed: run.dir=/absolute/path" in said


def steps_of(folder: Path) -> list[int]:
    """Steps with a checkpoint."""
    return checkpoint.Checkpoints(folder / "checkpoints").steps()


def wait_for_step(folder: Path, step: int, process: "subprocess.Popen[str]", seconds: float = 240.0) -> None:
    """Until the run has saved ``step`` or a later one."""
    deadline = time.monotonic() + seconds
    while max(steps_of(folder), default=0) < step:
        assert time.monotonic() < deadline, f"no step {step} after {seconds} s"
        assert process.poll() is None, process.communicate()[0][-3000:]
        time.sleep(0.05)


def kill_one_worker(head: int) -> None:
    """SIGKILL to one training worker of the cluster."""
    started = family.descendants(head)
    workers = [pid for pid in started if family.command_line(pid).startswith("ray::RayTrainWorker")]
    assert len(workers) >= 4, started
    family.end({workers[1]: started[workers[1]]})
