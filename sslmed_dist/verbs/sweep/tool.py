"""``sslmed sweep``: the budget is stated, the trials that are missing are run, and a table says what each is worth."""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from sslmed_dist import config
from sslmed_dist.atomic_files import refuse_links, write_atomically
from sslmed_dist.config import Config
from sslmed_dist.locks import alone
from sslmed_dist.printable import as_markdown, duration, say
from sslmed_dist.run_folder import write_json
from sslmed_dist.training import check, evaluation_data
from sslmed_dist.verbs.sweep import grid, trial
from sslmed_dist.verbs.sweep.grid import Trial
from sslmed_dist.verbs.sweep.trial import Worth

OURS = ("run.name", "run.dir")  # a sweep says where its trials go


@dataclass(frozen=True)
class Sweep:
    """What is to be run. ``folder`` holds a run of every trial, ``sweep.json`` and ``sweep.md``. ``minutes``: no trial
    begins later."""

    recipe: Path
    swept: dict[str, list[str]]
    fixed: list[str]
    trials: list[Trial]
    folder: Path
    metric: str | None
    lower: bool
    workers: int
    minutes: float | None

    def settings(self, one: Trial) -> Config:
        """The configuration of a trial."""
        words = [*self.fixed, *one.choices, f"run.dir={self.folder}", f"run.name={one.name}"]
        return config.load(self.recipe, words)


def request(
    recipe: Path, words: Sequence[str], *, trials: int | None = None, metric: str | None = None, lower: bool = False,
    workers: int = 1, minutes: float | None = None,
) -> Sweep:  # fmt: skip
    """A sweep whose every trial has a valid configuration. Trials are scored on the validation split: what chooses may
    not be what judges. ``ValueError`` for keys without several values, a recipe that ``sslmed train`` does not train
    alone, or a trial whose configuration is wrong or whose data have no validation split."""
    swept, fixed = grid.parted(words)
    if workers < 1 or (minutes is not None and not minutes > 0):
        raise ValueError(f"sweep: expected --workers >= 1 and --minutes > 0, got {workers} and {minutes}")
    plain = config.load(recipe, fixed)
    if plain.federated is not None or plain.diagnose is not None:
        raise ValueError(f"{recipe}: sweep runs `sslmed train` and `evaluate`; this recipe is for federate or diagnose")
    if not plain.evaluate.protocols:
        raise ValueError(f"{recipe}: evaluate.protocols: is empty, so there is nothing to compare trials by")
    if plain.evaluate.test != "val":
        if any(word.startswith("evaluate.test=") for word in fixed):
            raise ValueError("evaluate.test: a sweep chooses, and what chooses may not be what judges; allowed: val")
        fixed = [*fixed, "evaluate.test=val"]
    folder = plain.folder.with_name(f"{plain.folder.name}-sweep")
    asked = Sweep(
        recipe.absolute(), swept, [word for word in fixed if word.partition("=")[0] not in OURS],
        grid.trials_of(swept, trials, plain.run.seed), folder, metric, lower, workers, minutes,
    )  # fmt: skip
    require_measurable(asked)
    return asked


def require_measurable(asked: Sweep) -> None:
    """``ValueError`` where a trial's configuration is wrong, or where one that is missing could be trained and not
    measured, as on data without a validation split. Each set of data is read once."""
    read: list[tuple[object, object]] = []
    for one in asked.trials:
        settings = asked.settings(one)
        facts = (settings.data, settings.evaluate)
        if facts not in read and not trial.done(asked.folder / one.name):
            read.append(facts)
            evaluation_data.check_evaluation(settings)


def budget(asked: Sweep) -> list[str]:
    """What the sweep will take, in words, before anything is run: some real steps of the first trial that is missing
    are tried for it."""
    missing = [one for one in asked.trials if not trial.done(asked.folder / one.name)]
    size = " x ".join(f"{key} ({len(values)})" for key, values in asked.swept.items())
    lines = [
        f"{len(asked.trials)} trials of {size}, {len(asked.trials) - len(missing)} done, {asked.workers} at a time"
    ]
    if not missing:
        return lines
    settings = asked.settings(missing[0])
    if settings.driver == "ray":
        return [*lines, "driver=ray: the time is not estimated"]
    seconds = check.expected(check.try_out(settings)).seconds
    rounds = -(-len(missing) // asked.workers)
    said = f"about {duration(seconds)} a trial, {duration(rounds * seconds)} in all, evaluation not counted; from steps"
    lines.append(f"{said} of {' '.join(missing[0].choices)} here, alone on the machine: other values take other times")
    if asked.minutes is not None:
        lines.append(f"after {asked.minutes:g} min no further trial begins")
    return lines


def run(asked: Sweep) -> tuple[list[str], bool]:
    """State the budget, run what is missing, write the table: (its lines, whether every trial is done). Of one
    that failed or was not run the table says why."""
    asked.folder.mkdir(parents=True, exist_ok=True)
    refuse_links(asked.folder)
    with alone(asked.folder, "a sweep"):
        for line in budget(asked):
            say(line)
        end = None if asked.minutes is None else time.monotonic() + 60 * asked.minutes
        run_missing(asked, end)
        worths = [trial.worth(asked.folder, one, asked.metric) for one in asked.trials]
        lines = table(asked, worths)
        pairs = zip(asked.trials, worths, strict=True)
        facts = [{"choices": one.choices, "run": one.name, **asdict(w)} for one, w in pairs]
        write_json(asked.folder / "sweep.json", {"metric": asked.metric, "lower": asked.lower, "trials": facts})
        write_atomically(asked.folder / "sweep.md", ("\n".join(lines) + "\n").encode())
    return lines, all(w.value is not None for w in worths)


def run_missing(asked: Sweep, end: float | None) -> None:
    """Run the trials that are not done, ``workers`` at a time. After Ctrl-C no further one begins; those that run save
    and stop, since it reached them, too."""
    missing = [one for one in asked.trials if not trial.done(asked.folder / one.name)]
    halted: list[bool] = []
    threads = max(1, len(os.sched_getaffinity(0)) // asked.workers)

    def stopped() -> bool:
        return bool(halted) or (end is not None and time.monotonic() >= end)

    def one_trial(number: int, one: Trial) -> None:
        if not stopped():
            say(f"trial {number} of {len(missing)}: {' '.join(one.choices)}")
            trial.run(asked.recipe, one, asked.folder, asked.fixed, threads, lambda: bool(halted))

    with ThreadPoolExecutor(asked.workers) as pool:
        work = [pool.submit(one_trial, number, one) for number, one in enumerate(missing, 1)]
        try:
            for item in work:
                item.result()
        except BaseException:
            halted.append(True)
            raise


def table(asked: Sweep, worths: Sequence[Worth]) -> list[str]:
    """The trials as a Markdown table, the best one first, and what the figures do not tell."""
    pairs = list(zip(asked.trials, worths, strict=True))
    sign = 1.0 if asked.lower else -1.0
    measured = [pair for pair in pairs if pair[1].value is not None]
    measured.sort(key=lambda pair: sign * (pair[1].value or 0.0))
    rest = [pair for pair in pairs if pair[1].value is None]
    heads = [*asked.swept, asked.metric or "value", "n", "time", "run"]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for one, w in [*measured, *rest]:
        interval = "" if w.low is None or w.high is None else f" [{w.low:.4g}, {w.high:.4g}]"
        value = f"{w.value:.4g}{interval}" if w.value is not None else as_markdown(w.trouble)
        values = [as_markdown(choice.partition("=")[2]) for choice in one.choices]
        lines.append("| " + " | ".join([*values, value, str(w.count or ""), duration(w.seconds), one.name]) + " |")
    lines += ["", "Measured on the validation split, with 5-95 % intervals; one seed each."]
    if len(measured) > 1 and overlap(measured[0][1], measured[1][1]):
        lines.append("The intervals of the two best overlap: this sweep does not tell them apart.")
    if measured:
        lines.append(f"On the test split: sslmed evaluate {asked.folder / measured[0][0].name} evaluate.test=test")
    if rest:
        lines.append(f"{len(rest)} of {len(pairs)} trials are not done; the same command goes on with them.")
    return lines


def overlap(first: Worth, second: Worth) -> bool:
    """Whether two intervals have a point in common; of figures without one nothing is known."""
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return False
    return first.low <= second.high and second.low <= first.high
