"""One trial of a sweep: trained and measured by ``sslmed train`` and ``evaluate`` in processes of its own, here or on a
node of a cluster."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import sslmed_dist
from sslmed_dist import checkpoint, config
from sslmed_dist.atomic_files import appending, sha256, write_atomically
from sslmed_dist.config import Config
from sslmed_dist.downstream.rows import ALL_SITES
from sslmed_dist.json_files import read_object
from sslmed_dist.locks import held
from sslmed_dist.run_folder import Metrics
from sslmed_dist.training import pretrained
from sslmed_dist.training.stopping import Stop
from sslmed_dist.verbs.sweep.grid import Trial

LOOK_S = 0.2  # how often it is asked whether a process has ended, or a stop is asked for
# The command line, in a process that is asked to stop when the one that started it has died.
START = (
    "import sys; from sslmed_dist.drivers.processes import end_with_parent; end_with_parent(); "
    "from sslmed_dist.cli import main; sys.exit(main())"
)


@dataclass(frozen=True)
class Worth:
    """A trial's figure with its interval (none of a scalar of the training), the seconds that it took so far, and what
    is wrong: "" where nothing is. ``metric``: what the figure is called. ``done``: it was trained and measured; its
    figure is None even so where the measure is undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None
    count: int | None = None
    seconds: float = 0.0
    trouble: str = ""
    metric: str = ""
    done: bool = True


def is_scalar(metric: str | None) -> bool:
    """Whether ``metric`` is a scalar of the training, as ``loss`` is, and no EVALUATOR/MEASURE."""
    return metric is not None and "/" not in metric


def done(folder: Path, metric: str | None) -> bool:
    """Whether the run was trained to its end and, unless a scalar of the training is asked for, that checkpoint was
    measured."""
    if is_scalar(metric):
        return trained(folder)
    file = folder / "evaluate" / "last.json"
    if not file.is_file():
        return False
    tree = read_object(file)
    return tree.get("unfinished") == "" and tree["encoder"]["sha256"] == sha256(pretrained.find(folder))


def trained(folder: Path) -> bool:
    """Whether the run was trained to its end."""
    if checkpoint.Checkpoints(folder / "checkpoints").latest() is None:
        return False
    return pretrained.load(folder).unfinished == ""


def recipe_of(sweep: Path, name: str) -> Path:
    """The file that ``sslmed train`` is given for a trial: its whole configuration."""
    return sweep / f"{name}.yaml"


def log_of(sweep: Path, name: str) -> Path:
    """The file with all that a trial has said."""
    return sweep / f"{name}.log"


@dataclass(frozen=True)
class Work:
    """What is missing of the trial ``name`` of the sweep in the folder ``sweep``, which all nodes see; it may be handed
    to another process. ``measured``: it is evaluated, too. ``until``: no process begins later, in seconds of the
    clock.

    A file ``stop`` in the folder asks its process to save and stop, as Ctrl-C does. What goes wrong is in the trial's
    log, and the table says it: nothing is raised for it."""

    sweep: Path
    name: str
    threads: int
    measured: bool
    until: float | None = None

    def write(self, settings: Config) -> None:
        """Write the trial's recipe."""
        write_atomically(recipe_of(self.sweep, self.name), config.dump(settings).encode())

    def late(self) -> bool:
        """Whether no process of it may begin any more."""
        return self.until is not None and time.time() >= self.until

    def __call__(self) -> None:
        """``RuntimeError`` where the sweep's folder is not there, as on a node without its disk."""
        recipe, folder = recipe_of(self.sweep, self.name), self.sweep / self.name
        if not recipe.is_file():
            raise RuntimeError(f"{recipe}: is not there; run.dir has to be on a disk that all nodes see")
        stop, begun = Stop(self.sweep), time.monotonic()
        commands = [["train", str(recipe)], *([["evaluate", str(folder)]] if self.measured else [])]
        # The process of an attempt that was lost may still be saving.
        while folder.is_dir() and held(folder) and not stop():
            time.sleep(LOOK_S)
        try:
            for command in commands:
                if stop() or self.late():
                    return
                if call(command, log_of(self.sweep, self.name), self.threads, stop):
                    return
        finally:
            if stop() and folder.is_dir() and not done(folder, "loss" if not self.measured else None):
                say_in_log(self.sweep, self.name, "stopped; the same command goes on with it")
            add_seconds(self.sweep, self.name, time.monotonic() - begun)


def call(command: Sequence[str], log: Path, threads: int, stop: Callable[[], bool]) -> int:
    """The exit code of one ``sslmed`` command. After ``stop`` it is sent SIGTERM, and waited for. It is of a group of
    its own: Ctrl-C in the terminal reaches it in this way alone."""
    package = str(Path(sslmed_dist.__file__).parents[1])
    found = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ, "PYTHONPATH": found}
    with appending(log) as out:
        process = subprocess.Popen(
            [sys.executable, "-c", START, *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
        interrupted = False
        while True:
            try:
                return process.wait(LOOK_S)
            except subprocess.TimeoutExpired:
                if not interrupted and stop():
                    process.terminate()  # Ray's programs hand on a blocked SIGINT
                    interrupted = True


def say_in_log(sweep: Path, name: str, line: str) -> None:
    """A line of the trial's log that no process of its own has said."""
    with appending(log_of(sweep, name)) as file:
        file.write(f"{line}\n")


def add_seconds(sweep: Path, name: str, seconds: float) -> None:
    """Add to the time that a trial took; of several starts the sum counts."""
    with appending(sweep / f"{name}.seconds") as file:
        file.write(f"{seconds:.2f}\n")


def seconds_of(sweep: Path, name: str) -> float:
    """The wall time of a trial over all starts."""
    file = sweep / f"{name}.seconds"
    return sum(map(float, file.read_text().split())) if file.is_file() else 0.0


def worth(sweep: Path, trial: Trial, metric: str | None) -> Worth:
    """What a trial is worth. ``metric``: EVALUATOR/MEASURE, or the name of a scalar of the training, whose last value
    counts; None: the first measure of the encoder. ``ValueError`` for one that a finished trial has not."""
    folder, seconds = sweep / trial.name, seconds_of(sweep, trial.name)
    if not done(folder, metric):
        return Worth(None, seconds=seconds, trouble=last_line(log_of(sweep, trial.name)), done=False)
    measured, file = {}, folder / "evaluate" / "last.json"
    if file.is_file():
        rows = [row for row in read_object(file)["rows"] if row["site"] == ALL_SITES and row["arm"] == "encoder"]
        measured = {f"{row['evaluator']}/{row['metric']}": row for row in rows if not row.get("difference")}
    if metric is None or metric in measured:
        metric = metric or next(iter(measured))
        row = measured[metric]
        trouble = "" if row["value"] is not None else row["note"] or "undefined"
        return Worth(row["value"], row["low"], row["high"], row["n"], seconds, trouble, metric)
    scalars = {str(row["name"]): float(row["value"]) for row in Metrics(folder / "metrics.jsonl").read()}
    if metric not in scalars:
        raise ValueError(f"--metric: {metric}: unknown; allowed: {', '.join([*measured, *scalars])}")
    return Worth(scalars[metric], seconds=seconds, metric=metric)


def last_line(log: Path) -> str:
    """Why a trial is not done: the last line that it said; that it was not run where it said nothing."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    return lines[-1] if lines else "not run"
