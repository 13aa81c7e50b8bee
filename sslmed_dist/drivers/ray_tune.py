"""Pieces of work that know nothing of each other as the trials of Ray Tune, as many at a time as the cluster has room
for: those of a sweep.

Tune is given the whole grid and decides when and where each piece runs, begins one again whose process was lost
(``ray.max_failures`` times), and lets the others go on where one fails. What is done and what is missing is read from
our own folders, not from Tune's state, so that the same command goes on after any end.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from typing import Any

from sslmed_dist import config
from sslmed_dist.atomic_files import appending
from sslmed_dist.drivers.ray_cluster import cluster, cluster_address, require_ray, require_room, set_environment
from sslmed_dist.drivers.ray_log import apart
from sslmed_dist.drivers.ray_room import bundle
from sslmed_dist.printable import note, said_lines, say
from sslmed_dist.training.stopping import Stop

Work = Callable[[], None]
TUNE = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no tables of its own for each trial: nothing is reported to it
    "RAY_AIR_NEW_OUTPUT": "0",  # whose boxes no option turns off
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
NAME = "piece"  # the one parameter of Tune's trials


def run(
    works: Mapping[str, Work], settings: config.Config, most: int | None, begun: Callable[[str], None]
) -> tuple[dict[str, str], bool]:
    """Do the picklable ``works`` on the cluster of ``settings.ray``, joined or started here, at most ``most`` at a
    time; each has the CPUs and GPUs of one worker. ``begun`` is told the name of each that begins.

    Returns why pieces were lost, by their names, and whether a stop was asked for: by a signal, or the file ``stop`` in
    the folder of ``settings``, which all nodes see and for which the works themselves have to look.
    ``ValueError`` where Ray is missing or the cluster cannot hold one of them; ``RuntimeError`` where Tune fails."""
    require_ray()
    set_environment(settings.ray)
    for key, value in TUNE.items():
        os.environ.setdefault(key, value)
    options = trial_options(settings.ray, most, len(works))
    own = config.replace(settings, ray={"num_workers": list(options), "placement": "pack"})
    with apart(own, lambda: True), Stop.anew(own.folder) as stop, cluster(own.ray, stop):
        require_room(own.ray, stop)
        lost = watched(works, own, most, begun, stop)
    stop.file.unlink(missing_ok=True)
    return lost, stop.asked


def trial_options(options: config.Ray, most: int | None, count: int) -> tuple[int, int]:
    """(fewest, most) workers' room: one trial's is enough, and a cluster that is started here is as large as they can
    use, or as this machine is."""
    if cluster_address(options) is not None:
        return (1, most or count)
    cores = len(os.sched_getaffinity(0))
    return (1, min(count, most or max(1, cores // max(1, options.cpus_per_worker))))


def watched(
    works: Mapping[str, Work], settings: config.Config, most: int | None, begun: Callable[[str], None], stop: Stop
) -> dict[str, str]:
    """``fit`` in another thread, for in the main one Tune would take SIGINT for itself. A stop becomes the file."""
    results: list[dict[str, str]] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            results.append(fit(works, settings, most, begun, stop))
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="ray-tune", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
        if stop():
            stop.file.touch()
    for error in errors:
        said = said_lines(str(error), type(error).__name__)[-1]
        raise RuntimeError(f"ray: {said}; the same command goes on with what is missing") from error
    return results[0]


def fit(
    works: Mapping[str, Work], settings: config.Config, most: int | None, begun: Callable[[str], None], stop: Stop
) -> dict[str, str]:
    """Run Tune to its end; why pieces were lost, by their names."""
    from ray import tune

    class Said(tune.Callback):  # type: ignore[misc]
        """Says which trial begins, and which one begins again."""

        known: set[str] = set()

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            name = trial.config[NAME]
            if name in self.known:
                say(f"{name}: its process was lost; it begins again and goes on")
            elif not stop():
                begun(name)
            self.known.add(name)

    def piece(given: Mapping[str, str]) -> None:
        works[given[NAME]]()

    (settings.folder / "logs").mkdir(exist_ok=True)
    asked = bundle(settings.ray)
    tuner = tune.Tuner(
        tune.with_resources(piece, {key.lower(): need for key, need in asked.items()}),
        param_space={NAME: tune.grid_search(list(works))},
        # After a stop the pieces that had not begun return at once: none of them needs a process of its own for that.
        tune_config=tune.TuneConfig(max_concurrent_trials=most, reuse_actors=True),
        run_config=tune.RunConfig(
            # A new name each time: under a known one Tune would go on from a state of its own; the truth is ours.
            name=f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
            storage_path=str((settings.folder / "ray").resolve()),
            failure_config=tune.FailureConfig(max_failures=settings.ray.max_failures),
            callbacks=[Said()],
            verbose=0,
        ),
    )
    # Tune prints how it is getting on, whatever ``verbose`` says.
    with appending(settings.folder / "logs" / "tune.log") as said_by_tune, redirect_stdout(said_by_tune):
        results = tuner.fit()
    lost = {}
    for number in range(len(results)):
        result = results[number]
        if result.error is not None:
            said = said_lines(str(result.error), type(result.error).__name__)[-1]
            lost[result.config[NAME]] = f"ray: {said}"
    if lost:
        note(f"what Ray lost: {', '.join(lost)}; the table says why")
    return lost
