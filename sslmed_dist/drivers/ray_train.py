"""Ray Train as a driver: the same ``training.job.train`` in every worker. The only file that imports ray.

Ray starts workers, puts them in a process group and starts them again after a failure. How far the run has come is
read from our own run folder, not from Ray: ``ray.train.report`` may return before a checkpoint is registered, and local
mode registers none. Every worker resumes from the newest checkpoint of the run folder, which therefore has to be on a
disk that all nodes see. ``ray.num_workers: 0`` runs in this process, and under torchrun as one rank of its group.
"""

import importlib.util
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from sslmed_dist import config, run_folder
from sslmed_dist.training import job
from sslmed_dist.training.allocation import ONE_ARENA
from sslmed_dist.training.check import check_training
from sslmed_dist.training.precision import NonFinite

FAILURE = "failure.txt"  # in the run folder: why a loss or gradient that is not finite ended the run
PATHS = ("root", "weights", "file", "cache")  # keys of leaves whose values are paths
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_COLOR_PREFIX": "0",
    "RAY_DEDUP_LOGS": "0",
    # Ray runs workers at niceness 15; beside its own dashboard and agents on a small machine that costs throughput.
    "RAY_worker_niceness": "0",
}


def worker(tree: dict[str, Any]) -> None:
    """What every Ray worker runs. ``tree`` is the configuration with absolute paths. It resumes from the newest
    checkpoint of the run folder, where there is one."""
    import ray.train

    from sslmed_dist import distributed
    from sslmed_dist.atomic_files import write_atomically

    settings = config.from_tree(tree, "ray worker")
    try:
        ended_job = job.train(settings)
    except NonFinite as error:
        # Every rank meets it at the same step and a restart would meet it again, so it must not look like a failure
        # that Ray answers with one.
        if distributed.rank() == 0:
            write_atomically(settings.folder / FAILURE, f"{error}\n".encode())
        return
    # A barrier that also tells Ray's dashboard how far we came; checkpoints are ours.
    ray.train.report({"step": ended_job.state.step, "stopped": float(ended_job.state.stopped)})


def train(settings: config.Config, resume: str = "auto") -> None:
    """Run ``settings`` on ``ray.num_workers`` workers. ``ValueError`` when ray is missing or a setting does not fit.
    ``RuntimeError`` when the workers failed more often than ``ray.max_failures``. ``NonFinite`` when a loss or gradient
    was not finite."""
    if importlib.util.find_spec("ray") is None:
        raise ValueError("driver: ray is not installed: pip install 'sslmed-dist[ray]'; allowed here: local")
    os.environ.update({key: value for key, value in ENVIRONMENT.items() if key not in os.environ})
    options = settings.ray
    if settings.plan.batch_size % max(options.num_workers, 1):
        raise ValueError(
            f"plan.batch_size: {settings.plan.batch_size} is not a multiple of {options.num_workers} workers"
        )
    # A user's mistake should end here, in one line, and not as a failure that Ray tries to heal by a restart.
    resolved = check_training(settings).settings
    folder = run_folder.RunFolder(settings.folder, resolved)
    folder.open(resume)
    folder.close()
    (settings.folder / FAILURE).unlink(missing_ok=True)
    # Workers run in folders of Ray's, so no path may be relative.
    run_paths = {"dir": str(settings.folder.parent), "start_from": absolute(settings.run.start_from)}
    leaves = {"data": absolute_paths(settings.data), "method": absolute_paths(settings.method)}
    launch(config.replace(resolved, run=run_paths, **leaves))
    if (settings.folder / FAILURE).exists():
        raise NonFinite((settings.folder / FAILURE).read_text().strip())


def absolute(path: str | None) -> str | None:
    """``path`` made absolute: a worker's current folder is a session folder of Ray's."""
    return str(Path(path).expanduser().resolve()) if path is not None else None


def absolute_paths(leaf: Mapping[str, Any]) -> dict[str, Any]:
    """The paths in a leaf and in the leaves within it, made absolute; other values are left out. A path is the value of
    a key in PATHS, and any text that names an existing file."""
    changed: dict[str, Any] = {}
    for key, value in leaf.items():
        if isinstance(value, Mapping):
            changed[key] = absolute_paths(value)
        elif isinstance(value, str) and value and key != "name" and (key in PATHS or Path(value).is_file()):
            changed[key] = absolute(value)
    return changed


def connect(options: config.Ray) -> bool:
    """Join the cluster of ``ray.address`` or RAY_ADDRESS (which `ray job submit` sets), else start one on this machine.
    Returns whether one was started; then it is ours to stop."""
    import ray

    if options.num_workers == 0 or ray.is_initialized():
        return False
    address = options.address or os.environ.get("RAY_ADDRESS")
    size = {} if address else {"num_cpus": max(options.num_workers * options.cpus_per_worker, 2)}
    ray.init(address=address, log_to_driver=True, **size)
    return address is None


def trainer_of(settings: config.Config) -> Any:
    """Ray's TorchTrainer that runs ``worker`` with ``settings``."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    options = settings.ray
    resources: dict[str, float] = {"CPU": options.cpus_per_worker}
    if options.gpus_per_worker:
        resources["GPU"] = options.gpus_per_worker
    return TorchTrainer(
        worker,
        train_loop_config=config.to_tree(settings),
        torch_config=TorchConfig(timeout_s=int(options.timeout_s)),
        scaling_config=ScalingConfig(
            num_workers=options.num_workers,
            use_gpu=options.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            # A new name each time: under a known one Ray would look for checkpoints of its own; the truth is ours.
            name=f"{settings.run.name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
            storage_path=str(settings.folder / "ray"),
            failure_config=FailureConfig(max_failures=options.max_failures),
            worker_runtime_env={"env_vars": ONE_ARENA},
        ),
    )


def launch(settings: config.Config) -> None:
    """Run the trainer and wait for its end. SIGTERM is passed on to the workers as the file ``stop`` in the run folder.
    A cluster that was started here is stopped."""
    import ray

    def pass_on(signal_number: int, frame: FrameType | None) -> None:
        (settings.folder / "stop").touch()

    started = connect(settings.ray)
    former = signal.signal(signal.SIGTERM, pass_on)
    try:
        trainer_of(settings).fit()
    except ray.train.TrainingFailedError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        last = lines[-1] if lines else str(error)
        raise RuntimeError(f"ray: training failed after {settings.ray.max_failures} restarts: {last}") from error
    finally:
        signal.signal(signal.SIGTERM, former)
        if started:
            ray.shutdown()
