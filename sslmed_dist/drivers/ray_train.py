"""Ray Train as a driver: the same ``training.job.train`` in every worker. Only this file and ``ray_tasks`` import ray.

Ray starts workers, puts them in a process group and starts them again after a failure. How far the run has come is
read from our own run folder, not from Ray: ``ray.train.report`` may return before a checkpoint is registered, and local
mode registers none. Every worker resumes from the newest checkpoint of the run folder, which therefore has to be on a
disk that all nodes see. ``ray.num_workers: 0`` runs in this process, and under torchrun as one rank of its group.
"""

import atexit
import importlib.util
import json
import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sslmed_dist import config, distributed, run_folder
from sslmed_dist.atomic_files import appending
from sslmed_dist.data.dataset import Dataset
from sslmed_dist.drivers.ray_room import bundle, refuse_too_little, too_little
from sslmed_dist.endings import STOPPED, Stopped
from sslmed_dist.printable import say, speaks
from sslmed_dist.training import job, same_data
from sslmed_dist.training.allocation import ONE_ARENA
from sslmed_dist.training.build import resolve_auto
from sslmed_dist.training.check import check_training
from sslmed_dist.training.precision import NonFinite
from sslmed_dist.training.stopping import Stop

NEWS = "ray.json"  # in the run folder, from the workers: {"state": "working"}, or how they ended, see ``worker``
PACKAGE = "_ray_pkg_"  # begins the name of the temporary folder to which Ray copies a job's working directory
GROUP = "ray.io/node-group"  # Ray's label of nodes that an autoscaler may add to
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

    settings = config.from_tree(tree, "ray worker")

    def tell(state: str, **details: Any) -> None:
        if distributed.rank() == 0:
            run_folder.write_json(settings.folder / NEWS, {"state": state, **details})

    tell("working")
    try:
        ended_job = job.train(settings)
    except NonFinite as error:
        # Every rank meets it at the same step and a restart would meet it again, so it must not look like a failure
        # that Ray answers with one.
        tell("not finite", line=str(error))
        return
    if ended_job.state.stopped:
        tell("stopped", step=ended_job.state.step)
    # A barrier that also tells Ray's dashboard how far we came; checkpoints are ours.
    ray.train.report({"step": ended_job.state.step, "stopped": float(ended_job.state.stopped)})


def train(settings: config.Config, resume: str = "auto") -> int | None:
    """Run ``settings`` on ``ray.num_workers`` workers. Returns the step at which the run was stopped, by a signal or
    the file ``stop`` in the run folder; None where it reached its end. ``Stopped`` where that happened before a worker
    was there. ``ValueError`` when ray is missing, a setting does not fit, or the cluster cannot have that many workers.
    ``RuntimeError`` when the workers failed more often than ``ray.max_failures``. ``NonFinite`` when a loss or gradient
    was not finite."""
    require_ray()
    os.environ.update({key: value for key, value in ENVIRONMENT.items() if key not in os.environ})
    options = settings.ray
    if settings.plan.batch_size % max(options.num_workers, 1):
        raise ValueError(
            f"plan.batch_size: {settings.plan.batch_size} is not a multiple of {options.num_workers} workers"
        )
    refuse_package(settings)
    if cluster_address(options) is None:  # one will be started here, as large as asked for but with this machine's GPUs
        refuse_too_little(options, [{"Alive": True, "Resources": {"CPU": math.inf, "GPU": torch.cuda.device_count()}}])
    # A user's mistake should end here, in one line, and not as a failure that Ray tries to heal by a restart.
    checked = check_training(resolve_auto(settings, settings.folder))
    resolved = checked.settings
    with cluster(options), Stop(settings.folder) as stop:
        require_room(options, stop)
        if options.num_workers > 0 or speaks():  # ranks of torchrun share one folder, and have no group yet
            open_folder(resolved, checked.dataset, resume)
        launch(absolute_paths(resolved), stop)  # workers run in folders of Ray's
    told = news(settings.folder)
    if told.get("state") == "not finite":
        raise NonFinite(told["line"])
    return int(told["step"]) if told.get("state") == "stopped" else None


def open_folder(settings: config.Config, dataset: Dataset, resume: str) -> None:
    """Make or accept the run folder, as ``RunFolder.open`` does, and delete what an earlier start left for this one.
    ``ValueError`` where the folder's run was trained on other samples than those of ``dataset``."""
    folder = run_folder.RunFolder(settings.folder, settings)
    same_data.open_folder(folder, dataset, resume)
    try:
        same_data.recognise(settings.folder, dataset, same_data.known_of(folder))
    finally:
        folder.close()
    for name in (NEWS, "stop"):
        (settings.folder / name).unlink(missing_ok=True)


def news(folder: Path) -> dict[str, Any]:
    """What the workers last said; empty before they are there."""
    file = folder / NEWS
    return dict(json.loads(file.read_text())) if file.exists() else {}


def load() -> None:
    """Import what a worker, or the process that starts Ray, imports of it. ``ValueError`` where it is missing."""
    require_ray()
    import ray.train.torch  # noqa: F401


def require_ray() -> None:
    """``ValueError`` where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise ValueError("driver: ray is not installed: pip install 'sslmed-dist[ray]'; allowed here: local")


def refuse_package(settings: config.Config) -> None:
    """``ValueError`` where the run folder lies in the copy that ``ray job submit --working-dir`` made of the current
    folder: Ray deletes it after the job, and the run with it."""
    if any(part.startswith(PACKAGE) for part in settings.folder.parts):
        raise ValueError(
            f"run.dir: {settings.run.dir!r} lies in the temporary folder of this Ray job, which is deleted after it; "
            "allowed: run.dir=/absolute/path, on a disk that all nodes see"
        )


def absolute(path: str | None) -> str | None:
    """``path`` made absolute: a worker's current folder is a session folder of Ray's."""
    return str(Path(path).expanduser().resolve()) if path is not None else None


def absolute_paths(settings: config.Config) -> config.Config:
    """The settings with all paths made absolute, and nothing else: a text may happen to be the name of a file here."""
    sources = {key: absolute(getattr(settings.run, key)) for key in ("start_from", "continue_from")}
    changes: dict[str, Any] = {"run": {"dir": str(settings.folder.parent), **sources}}
    for dotted, path in config.paths(config.to_tree(settings)).items():
        changes = config.merge(changes, config.nested(dotted, absolute(path)))
    return config.replace(settings, **changes)


def cluster_address(options: config.Ray) -> str | None:
    """The cluster to join, ``ray.address`` or RAY_ADDRESS (which `ray job submit` sets for its job); None where there
    is none, and one is started on this machine. ``ValueError`` for the address of the jobs API."""
    address = options.address or os.environ.get("RAY_ADDRESS") or None
    if address is not None and address.startswith(("http://", "https://")):
        source = "ray.address" if options.address else "RAY_ADDRESS"
        raise ValueError(
            f"{source}={address}: jobs are submitted there (`ray job submit --address {address} -- sslmed train ...`); "
            "a driver joins at HOST:6379, or at auto on a node of the cluster"
        )
    return address


@contextmanager
def cluster(options: config.Ray) -> Iterator[None]:
    """Join the cluster, or start one on this machine; leave or stop it on exit. Nothing where Ray runs in this process
    alone, or this process has joined a cluster already."""
    import ray

    if options.num_workers == 0 or ray.is_initialized():
        yield
        return
    address = cluster_address(options)
    size = {} if address else {"num_cpus": max(options.num_workers * options.cpus_per_worker, 2)}
    try:
        ray.init(address=address, log_to_driver=True, **size)
    except SystemExit:  # what Ray makes of SIGTERM
        raise Stopped("stopped before the cluster was there; run the same command again") from None
    try:
        yield
    finally:
        ray.shutdown()


def require_room(options: config.Ray, stop: Stop) -> None:
    """``ValueError`` where the cluster can never hold the workers; Ray itself would wait for ever. Where an autoscaler
    may add nodes they are asked for, and waited for ``ray.wait_s`` seconds at most. ``Stopped`` where a stop is asked
    for meanwhile."""
    if options.num_workers == 0:
        return
    import ray
    from ray.autoscaler.sdk import request_resources

    end, asked = time.monotonic() + options.wait_s, False
    while (line := too_little(options, ray.nodes())) is not None:
        if not any(node.get("Labels", {}).get(GROUP) for node in ray.nodes()):
            refuse_too_little(options, ray.nodes())
        if time.monotonic() > end:
            raise ValueError(f"{line}; waited {options.wait_s:g} s for more nodes (ray.wait_s)")
        if stop.asked:  # by a signal; the file may be of an earlier start
            raise Stopped("stopped before the cluster had room; run the same command again")
        if not asked:
            say(f"{line}; waiting up to {options.wait_s:g} s for more nodes")
            request_resources(bundles=[bundle(options)] * options.num_workers)
            asked = True
        time.sleep(0.5)
    if asked:
        request_resources(bundles=[])  # Ray's own request follows, and nodes may go when the run has ended


def trainer_of(settings: config.Config) -> Any:
    """Ray's TorchTrainer that runs ``worker`` with ``settings``."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    options = settings.ray
    return TorchTrainer(
        worker,
        train_loop_config=config.to_tree(settings),
        torch_config=TorchConfig(timeout_s=int(options.timeout_s)),
        scaling_config=ScalingConfig(
            num_workers=options.num_workers,
            use_gpu=options.gpus_per_worker > 0,
            resources_per_worker=bundle(options),
        ),
        run_config=RunConfig(
            # A new name each time: under a known one Ray would look for checkpoints of its own; the truth is ours.
            name=f"{settings.run.name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
            storage_path=str(settings.folder / "ray"),
            failure_config=FailureConfig(max_failures=options.max_failures),
            worker_runtime_env={"env_vars": ONE_ARENA},
        ),
    )


def leave_at_once(thread: threading.Thread) -> None:
    """At the interpreter's end after ``Stopped``: end the process before Python takes down what ``thread``, still
    inside Ray, is using. On a busy machine that ended a stop by SIGSEGV, after all was said and saved."""
    if thread.is_alive():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(STOPPED)


def launch(settings: config.Config, stop: Stop) -> None:
    """Run the trainer and wait for its end. A stop is passed on to the workers as the file ``stop`` in the run folder;
    ``Stopped`` at once where no worker is there yet. ``RuntimeError`` when they failed too often."""
    import ray

    if settings.ray.num_workers == 0:  # in this process: the job itself listens for signals
        trainer_of(settings).fit()
        return
    errors: list[BaseException] = []

    def fit() -> None:
        try:
            trainer_of(settings).fit()
        except BaseException as error:
            errors.append(error)

    # Not in the main thread: there Ray would take SIGINT for itself and abort the workers before they have saved.
    thread = threading.Thread(target=fit, name="ray-fit", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
        if thread.is_alive() and stop():
            if not news(settings.folder):
                atexit.register(leave_at_once, thread)
                raise Stopped("stopped before the workers had started; run the same command again")
            # Again and again: a worker that has just started deletes the file as one of an earlier start.
            appending(settings.folder / "stop").close()
    for error in errors:
        if not isinstance(error, ray.train.TrainingFailedError):
            raise error
        lines = [line for line in str(error).splitlines() if line.strip()]
        last = lines[-1] if lines else str(error)
        raise RuntimeError(f"ray: training failed after {settings.ray.max_failures} restarts: {last}") from error
