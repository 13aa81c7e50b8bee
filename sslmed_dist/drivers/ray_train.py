"""Ray Train as a driver: the same ``training.job.train`` in every worker. Of the files that
import ray this one trains; ``ray_cluster`` joins a cluster and ``ray_tasks`` has other work done there.

Ray starts workers, puts them in a process group and starts them again after a failure. How far the run has come is
read from our own run folder, not from Ray: ``ray.train.report`` may return before a checkpoint is registered, and local
mode registers none. Every worker resumes from the newest checkpoint of the run folder, which therefore has to be on a
disk that all nodes see. ``ray.num_workers: 0`` runs in this process, and under torchrun as one rank of its group.
"""

import itertools
import json
import math
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

from sslmed_dist import config, distributed, run_folder
from sslmed_dist.data.dataset import Dataset
from sslmed_dist.drivers.ray_cluster import cluster, cluster_address, require_ray, require_room, set_environment
from sslmed_dist.drivers.ray_log import apart
from sslmed_dist.drivers.ray_room import bundle, refuse_too_little
from sslmed_dist.drivers.ray_watch import Speaker, Watch
from sslmed_dist.endings import Stopped
from sslmed_dist.printable import plural, said_lines, say, speaks
from sslmed_dist.training import job, same_data
from sslmed_dist.training.allocation import ONE_ARENA
from sslmed_dist.training.build import resolve_auto
from sslmed_dist.training.check import check_training, require_even
from sslmed_dist.training.precision import NonFinite
from sslmed_dist.training.pulse import Pulse
from sslmed_dist.training.stopping import Stop

# In the run folder, from the workers: {"state": "working"}, or how they ended, see ``worker``.
NEWS = "ray.json"
PACKAGE = "_ray_pkg_"  # begins the name of the temporary folder to which Ray copies a job's working directory


def worker(given: dict[str, Any]) -> None:
    """What every Ray worker runs. It is given the configuration with absolute paths, ``tree``, and the name of the
    ``ledger`` that it tells how it goes, None where nobody watches. It resumes from the newest
    checkpoint of the run folder, where there is one."""
    import ray.train

    settings, pulse = config.from_tree(given["tree"], "ray worker"), Pulse()
    if given["ledger"] is not None:
        Speaker(given["ledger"], pulse).start()
        await_folder(settings)

    def tell(state: str, **details: Any) -> None:
        if distributed.rank() == 0:
            run_folder.write_json(settings.folder / NEWS, {"state": state, **details})

    tell("working")
    try:
        ended_job = job.train(settings, pulse=pulse)
    except NonFinite as error:
        # Every rank meets it at the same step and a restart would meet it again, so it must not look like a failure
        # that Ray answers with one.
        tell("not finite", line=str(error))
        return
    tell("stopped" if ended_job.state.stopped else "finished", step=ended_job.state.step)
    # A barrier that also tells Ray's dashboard how far we came; checkpoints are ours.
    ray.train.report({"step": ended_job.state.step, "stopped": float(ended_job.state.stopped)})


def await_folder(settings: config.Config) -> None:
    """Wait ``ray.wait_s`` seconds at most for the run folder, which the driver has made: the storage of this node may
    be away for a while. One made anew below its mount point would be another run. ``RuntimeError`` afterwards."""
    end, told, patience = time.monotonic() + settings.ray.wait_s, False, settings.ray.wait_s
    while not (settings.folder / ".lock").exists():
        if time.monotonic() > end:
            raise RuntimeError(f"{settings.folder}: is not there; run.dir has to be on a disk that all nodes see")
        if not told:
            say(f"{settings.folder}: is not there; waiting up to {patience:g} s for its storage (ray.wait_s)")
        told = True
        time.sleep(0.5)


def train(settings: config.Config, resume: str = "auto") -> int | None:
    """Run ``settings`` on ``ray.num_workers`` workers. Returns the step at which the run was stopped, by a signal or
    the file ``stop`` in the run folder; None where it reached its end. ``Stopped`` where that happened before a worker
    was there. ``ValueError`` when ray is missing, a setting does not fit, or the cluster cannot have that many workers.
    ``RuntimeError`` when the workers failed more often than ``ray.max_failures``. ``NonFinite`` when a loss or gradient
    was not finite."""
    require_ray()
    set_environment(settings.ray)
    options = settings.ray
    require_even(settings)
    refuse_package(settings)
    if cluster_address(options) is None:  # one will be started here, as large as asked for but with this machine's GPUs
        refuse_too_little(options, [{"Alive": True, "Resources": {"CPU": math.inf, "GPU": torch.cuda.device_count()}}])
    # A user's mistake should end here, in one line, and not as a failure that Ray tries to heal by a restart.
    checked = check_training(resolve_auto(settings, settings.folder))
    resolved = checked.settings
    began = began_since(settings.folder)
    with apart(settings, began), Stop(settings.folder) as stop, cluster(options, stop):
        require_room(options, stop)
        if options.most > 0 or speaks():  # ranks of torchrun share one folder, and have no group yet
            with stop.at_once("stopped before the workers had started; run the same command again"):
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


def began_since(folder: Path) -> Callable[[], bool]:
    """Whether workers of this start have said that they work in the run folder: before, it may be another run's."""

    def said() -> int | None:
        file = folder / NEWS
        return file.stat().st_mtime_ns if file.exists() else None

    before = said()
    return lambda: said() not in (None, before)


def news(folder: Path) -> dict[str, Any]:
    """What the workers last said; empty before they are there."""
    file = folder / NEWS
    return dict(json.loads(file.read_text())) if file.exists() else {}


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


def trainer_of(settings: config.Config, name: str, ledger: str | None = None) -> Any:
    """Ray's TorchTrainer that runs ``worker`` with ``settings``, under a ``name`` of its own."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    options = settings.ray
    return TorchTrainer(
        worker,
        train_loop_config={"tree": config.to_tree(settings), "ledger": ledger},
        torch_config=TorchConfig(timeout_s=int(options.timeout_s)),
        scaling_config=ScalingConfig(
            num_workers=(options.fewest, options.most) if options.elastic else options.most,
            elastic_resize_monitor_interval_s=options.resize_s,
            placement_strategy=options.placement.upper(),
            use_gpu=options.gpus_per_worker > 0,
            resources_per_worker=bundle(options),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(settings.folder / "ray"),
            failure_config=FailureConfig(max_failures=options.max_failures),
            worker_runtime_env={"env_vars": ONE_ARENA},
        ),
    )


def launch(settings: config.Config, stop: Stop) -> None:
    """Run the trainer and wait for its end, under watch. ``Stopped`` at once where a stop is asked for and no worker is
    past its start; others are asked to save first. ``RuntimeError`` when workers failed too often, or when none was
    heard of for ``ray.wait_s`` seconds."""
    # A new name each time: under a known one Ray would look for checkpoints of its own; the truth is ours.
    name = f"{settings.run.name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    if settings.ray.most == 0:  # in this process: the job itself listens for signals
        trainer_of(settings, name).fit()
        return
    errors: list[BaseException] = []

    def fit() -> None:
        try:
            again(lambda turn: trainer_of(settings, f"{name}-{turn}", name).fit(), settings.ray.max_failures, stop)
        except BaseException as error:
            errors.append(error)

    watch = Watch(name)
    # Not in the main thread: there Ray would take SIGINT for itself and abort the workers before they have saved.
    thread = threading.Thread(target=fit, name="ray-fit", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
        if watch.look() and settings.ray.elastic:
            say(f"trains on {watch.workers} of at most {plural(settings.ray.most, 'worker')} (ray.num_workers)")
        if thread.is_alive() and stop():
            watch.ask_stop()
            leave(news(settings.folder).get("state"), watch)
        watch.require_workers(settings.ray.wait_s)
    for error in errors:
        raise_failure(error, settings.ray.max_failures)


def again(fit: Callable[[int], object], most: int, stop: Callable[[], bool]) -> None:
    """Call ``fit`` with 0, and with 1, 2, ... where Ray lost a process while it was starting workers: that ends its
    trainer, whatever it may restart. At most ``most`` times (-1: without end), and not after a stop was asked for."""
    import ray.train
    from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, WorkerCrashedError

    for turn in itertools.count():
        try:
            fit(turn)
            return
        except ray.train.ControllerError as error:
            lost = isinstance(
                error.controller_failure, (RayActorError, WorkerCrashedError, NodeDiedError, ObjectLostError)
            )
            if not lost or turn == most or stop():
                raise
            of = "" if most < 0 else f" of at most {most}"
            say(f"ray: a process was lost while workers were starting; all start again ({turn + 1}{of})")


def leave(state: str | None, watch: Watch) -> None:
    """After a stop was asked for: ``Stopped`` where no worker trains, so that none has anything to save. ``state`` is
    what the workers' file says; None before they wrote it. Without a word to the ledger the file counts: work is saved
    that may be none. Workers that have told how they ended are waited for, however long Ray takes to end them."""
    if state is None:
        raise Stopped("stopped before the workers had started; run the same command again")
    if state == "working" and watch.workers and watch.idle():
        raise Stopped("stopped while no worker was training; run the same command again to go on")


def raise_failure(error: BaseException, restarts: int) -> NoReturn:
    """What Ray's trainer has raised: as it is, or, where workers have failed, or what Ray itself runs for them was
    lost, as a ``RuntimeError`` of one line."""
    import ray.train

    lines = said_lines(str(error), type(error).__name__)
    if isinstance(error, ray.train.ControllerError):
        raise RuntimeError(
            f"ray: the workers could not be started: {lines[-1]}; the same command goes on from the last checkpoint"
        ) from error
    if isinstance(error, ray.train.TrainingFailedError):
        raise RuntimeError(f"ray: training failed after {restarts} restarts: {lines[-1]}") from error
    if isinstance(error, ray.exceptions.RayError):
        raise RuntimeError(f"ray: {lines[0]}; the same command goes on from the last checkpoint") from error
    raise error
