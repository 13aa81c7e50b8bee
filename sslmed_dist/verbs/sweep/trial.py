"""One trial of a sweep: trained and measured by ``sslmed train`` and ``evaluate`` in a process of its own."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sslmed_dist.atomic_files import appending, sha256
from sslmed_dist.downstream.rows import ALL_SITES
from sslmed_dist.json_files import read_object
from sslmed_dist.run_folder import Metrics
from sslmed_dist.training import pretrained
from sslmed_dist.verbs.sweep.grid import Trial

Steps = Callable[[], bool]


@dataclass(frozen=True)
class Worth:
    """A trial's figure with its interval (none of a scalar of the training), the seconds that it took so far, and what
    is wrong: "" where nothing is."""

    value: float | None
    low: float | None = None
    high: float | None = None
    count: int | None = None
    seconds: float = 0.0
    trouble: str = ""


def done(folder: Path) -> bool:
    """Whether the run was trained to its end, and that checkpoint measured."""
    file = folder / "evaluate" / "last.json"
    if not file.is_file():
        return False
    tree = read_object(file)
    return tree.get("unfinished") == "" and tree["encoder"]["sha256"] == sha256(pretrained.find(folder))


def run(config: Path, trial: Trial, sweep: Path, fixed: Sequence[str], threads: int, stopped: Steps) -> None:
    """Train and measure what is missing of a trial; what it says goes to ``NAME.log`` beside its folder."""
    folder = sweep / trial.name
    words = [str(config), *fixed, *trial.choices, f"run.dir={sweep}", f"run.name={trial.name}"]
    begun = time.monotonic()
    try:
        for command in (["train", *words], ["evaluate", str(folder)]):
            if stopped() or call(command, sweep / f"{trial.name}.log", threads):
                return
    finally:
        add_seconds(sweep, trial, time.monotonic() - begun)


def call(command: Sequence[str], log: Path, threads: int) -> int:
    """The exit code of one ``sslmed`` command. Its process is of this one's group: Ctrl-C reaches it, too."""
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    with appending(log) as out:
        words = [sys.executable, "-m", "sslmed_dist.cli", *command]
        return subprocess.run(words, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out).returncode


def add_seconds(sweep: Path, trial: Trial, seconds: float) -> None:
    """Add to the time that a trial took; of several starts the sum counts."""
    with appending(sweep / f"{trial.name}.seconds") as file:
        file.write(f"{seconds:.2f}\n")


def seconds_of(sweep: Path, trial: Trial) -> float:
    """The wall time of a trial over all starts."""
    file = sweep / f"{trial.name}.seconds"
    return sum(map(float, file.read_text().split())) if file.is_file() else 0.0


def worth(sweep: Path, trial: Trial, metric: str | None) -> Worth:
    """What a trial is worth. ``metric``: EVALUATOR/MEASURE, or the name of a scalar of the training, whose last value
    counts; None: the first measure of the encoder. ``ValueError`` for one that a finished trial has not."""
    folder, seconds = sweep / trial.name, seconds_of(sweep, trial)
    if not done(folder):
        return Worth(None, seconds=seconds, trouble=last_line(sweep / f"{trial.name}.log"))
    rows = read_object(folder / "evaluate" / "last.json")["rows"]
    own = [row for row in rows if row["site"] == ALL_SITES and row["arm"] == "encoder" and not row.get("difference")]
    named = {f"{row['evaluator']}/{row['metric']}": row for row in own}
    chosen = next(iter(named)) if metric is None else metric
    if chosen in named:
        row = named[chosen]
        return Worth(row["value"], row["low"], row["high"], row["n"], seconds)
    scalars = {str(row["name"]): float(row["value"]) for row in Metrics(folder / "metrics.jsonl").read()}
    if chosen not in scalars:
        raise ValueError(f"--metric: {chosen}: unknown; allowed: {', '.join([*named, *scalars])}")
    return Worth(scalars[chosen], seconds=seconds)


def last_line(log: Path) -> str:
    """Why a trial is not done: the last line that it said; that it was not run where it said nothing."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    return lines[-1] if lines else "not run"
