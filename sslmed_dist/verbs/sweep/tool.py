"""``sslmed sweep``: the budget is stated, the trials that are missing are run, and a table says what each is worth."""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sslmed_dist import config
from sslmed_dist.atomic_files import refuse_links, write_atomically
from sslmed_dist.config import Config
from sslmed_dist.drivers import ray_tune
from sslmed_dist.drivers.ray_train import absolute_paths, refuse_package
from sslmed_dist.endings import Stopped
from sslmed_dist.locks import alone
from sslmed_dist.printable import duration, plural, say
from sslmed_dist.run_folder import write_json
from sslmed_dist.training import check, evaluation_data
from sslmed_dist.training.beforehand import require_buildable
from sslmed_dist.training.stopping import Stop
from sslmed_dist.verbs.reproduce.cell import changes
from sslmed_dist.verbs.sweep import grid, names, trial
from sslmed_dist.verbs.sweep.direction import direction, unlike
from sslmed_dist.verbs.sweep.grid import Trial
from sslmed_dist.verbs.sweep.table import SweepTable, table_of
from sslmed_dist.verbs.sweep.trial import Work

OURS = ("run.name", "run.dir")  # a sweep says where its trials go
ONLY_VAL = "evaluate.test: a sweep chooses, and what chooses may not be what judges; allowed: val"


@dataclass(frozen=True)
class Sweep:
    """What is to be run. ``folder`` holds a run of every trial, ``sweep.json`` and ``sweep.md``. ``lower``: asked for
    as better. ``minutes``: no trial begins later. ``ray``: on Ray Tune; then ``workers`` None is as many at a time as
    the cluster has room for."""

    recipe: Path
    swept: dict[str, list[str]]
    fixed: list[str]
    trials: list[Trial]
    folder: Path
    metric: str | None
    lower: bool
    workers: int | None
    minutes: float | None
    ray: bool

    def settings(self, one: Trial) -> Config:
        """The configuration of a trial. ``ValueError`` names its values."""
        words = [*self.fixed, *one.choices, f"run.dir={self.folder}", f"run.name={one.name}"]
        try:
            return config.load(self.recipe, words)
        except ValueError as error:
            raise ValueError(f"{one}: {error}") from error

    @property
    def missing(self) -> list[Trial]:
        """The trials that are not done."""
        return [one for one in self.trials if not trial.done(self.folder / one.name, self.metric)]


def request(
    recipe: Path, words: Sequence[str], *, trials: int | None = None, metric: str | None = None, lower: bool = False,
    workers: int | None = None, minutes: float | None = None, ray: bool = False,
) -> Sweep:  # fmt: skip
    """A sweep whose every trial can be built. Trials are scored on the validation split: what chooses may not be what
    judges. ``ValueError`` for keys without several values, a recipe that ``sslmed train`` does not train alone, a value
    that a trial's recipe does not allow, or data without a validation split."""
    swept, fixed = grid.parted(words)
    require_sweepable(swept)
    if (workers is not None and workers < 1) or (minutes is not None and not minutes > 0):
        raise ValueError(f"sweep: expected --workers >= 1 and --minutes > 0, got {workers} and {minutes}")
    plain = config.load(recipe, fixed)
    if plain.federated is not None or plain.diagnose is not None:
        raise ValueError(f"{recipe}: sweep runs `sslmed train` and `evaluate`; this recipe is for federate or diagnose")
    if not plain.evaluate.protocols and not trial.is_scalar(metric):
        raise ValueError(f"{recipe}: evaluate.protocols: is empty, so there is nothing to compare trials by")
    if plain.evaluate.test != "val":
        if any(word.startswith("evaluate.test=") for word in fixed):
            raise ValueError(ONLY_VAL)
        fixed = [*fixed, "evaluate.test=val"]
    folder = plain.folder.with_name(f"{plain.folder.name}-sweep")
    asked = Sweep(
        recipe.absolute(), swept, [word for word in fixed if word.partition("=")[0] not in OURS],
        grid.trials_of(swept, trials, plain.run.seed), folder, metric, lower, workers, minutes, ray,
    )  # fmt: skip
    require_distinct(asked)
    require_runnable(asked)
    return asked


def require_sweepable(swept: Mapping[str, Sequence[str]]) -> None:
    """``ValueError`` for a key of which a sweep itself decides the value."""
    for key in OURS:
        if key in swept:
            raise ValueError(
                f"{key}: a sweep names its trials itself, and where they lie: run.dir/run.name-sweep/trial-...; "
                "give it one value"
            )
    if "evaluate.test" in swept:
        raise ValueError(ONLY_VAL)


def require_distinct(asked: Sweep) -> None:
    """``ValueError`` where two values of a key, however they are written, make one and the same trial."""
    first = asked.trials[0]
    for place, (key, values) in enumerate(asked.swept.items()):
        known: dict[str, str] = {}
        for value in values:
            choices = [*first.choices[:place], f"{key}={value}", *first.choices[place + 1 :]]
            try:
                own = asked.settings(Trial(tuple(choices)))
            except ValueError:
                continue  # of a trial that is to run its own line says it
            facts = grid.canonical(config.to_tree(config.replace(own, run={"name": "same"})))
            if facts in known:
                raise ValueError(
                    f"{key}: expected values that differ, got {known[facts]} and {value}, which are the same"
                )
            known[facts] = value


def require_runnable(asked: Sweep) -> None:
    """``ValueError`` for a trial that is missing and could not be built, or could be trained and not measured, as on
    data without a validation split, and for a metric that a trial has not, or will not have. Each set of data is
    measured on once."""
    all_settings = {one: asked.settings(one) for one in asked.trials}
    for one, own in all_settings.items():
        if own.evaluate.test != "val":  # where the whole section has several values
            raise ValueError(f"{one}: {ONLY_VAL}")
        require_same(one, own)
    settings = {one: all_settings[one] for one in asked.missing}
    if asked.ray:
        require_ray_trials(asked, settings)
    read: list[tuple[object, object]] = []
    for one in settings if not trial.is_scalar(asked.metric) else ():
        facts = (settings[one].data, settings[one].evaluate)
        if facts not in read:
            read.append(facts)
            evaluation_data.check_evaluation(settings[one])
    require_buildable((str(one), settings[one]) for one in settings)
    for one in all_settings:
        if one not in settings:
            trial.worth(asked.folder, one, asked.metric)
    names.require_known(asked.metric, settings)


def require_same(one: Trial, settings: Config) -> None:
    """``ValueError`` where the trial's folder holds a run of other settings: its figure would be that of another
    question."""
    before = settings.folder / "config.yaml"
    changed = changes(config.load(before), settings) if before.is_file() else []
    if changed:
        raise ValueError(
            f"{settings.folder}: holds another run than {one} (different: {', '.join(changed)}); "
            "choose another run.name or run.dir"
        )


def require_ray_trials(asked: Sweep, settings: Mapping[Trial, Config]) -> None:
    """``ValueError`` where trials are no single processes, or ask the cluster for different things."""
    for key in asked.swept:
        if key == "driver" or key.partition(".")[0] == "ray":
            raise ValueError(f"{key}: is that of all trials with --ray; give it one value")
    for own in settings.values():
        refuse_package(own)
        if own.driver == "ray":
            raise ValueError("driver: ray: with --ray each trial trains in one process; allowed: driver=local")


def budget(asked: Sweep) -> list[str]:
    """What the sweep will take, in words, before anything is run: some real steps of the first trial that is missing
    are tried for it."""
    missing = asked.missing
    size = " x ".join(f"{key} ({len(values)})" for key, values in asked.swept.items())
    workers = asked.workers or 1
    together = f"{workers} at a time" if asked.workers or not asked.ray else "as many at a time as the cluster has room"
    done = len(asked.trials) - len(missing)
    lines = [f"{plural(len(asked.trials), 'trial')} of {size}, {done} done, {together}"]
    if not missing:
        return lines
    settings = asked.settings(missing[0])
    if asked.metric is not None:
        lines += [direction(asked.metric, asked.lower).said, *names.unchecked(asked.metric, settings)]
    lines += unlike(asked.metric, list(asked.swept))
    if settings.driver == "ray":
        return [*lines, "driver=ray: the time is not estimated"]
    seconds = check.expected(check.try_out(settings)).seconds
    whole = f"{duration(-(-len(missing) // workers) * seconds)} in all"
    whole += "" if asked.workers or not asked.ray else " one after another"
    said = f"about {duration(seconds)} a trial, {whole}, evaluation not counted; from steps"
    where = "here, alone on the machine: other values take other times"
    lines.append(f"{said} of {missing[0]} {where}{', and so do other nodes' if asked.ray else ''}")
    if asked.minutes is not None:
        lines.append(f"after {asked.minutes:g} min no further trial begins")
    return lines


def run(asked: Sweep) -> tuple[list[str], bool]:
    """State the budget, run what is missing, write the table: (its lines, whether every trial is done). Of one
    that failed or was not run the table says why. ``Stopped`` where a stop was asked for: what ran has saved."""
    asked.folder.mkdir(parents=True, exist_ok=True)
    refuse_links(asked.folder)
    with alone(asked.folder, "a sweep"):
        for line in budget(asked):
            say(line)
        stopped = run_missing(asked)
        table = finished(asked)
    if stopped and asked.missing:
        for line in table.plain():
            say(line)
        raise Stopped("stopped; run the same command again to go on")
    lines = [*table.plain(), str(asked.folder / "sweep.md")]
    return lines, not asked.missing


def finished(asked: Sweep) -> SweepTable:
    """Write ``sweep.md`` and ``sweep.json`` of what is there now."""
    worths = {one: trial.worth(asked.folder, one, asked.metric) for one in asked.trials}
    rows = [(one.name, [choice.partition("=")[2] for choice in one.choices], w) for one, w in worths.items()]
    table = table_of(asked.folder, list(asked.swept), rows, asked.metric, asked.lower)
    facts = [{"choices": one.choices, "run": one.name, **asdict(w)} for one, w in worths.items()]
    write_json(asked.folder / "sweep.json", {"metric": asked.metric, "lower": table.lower, "trials": facts})
    write_atomically(asked.folder / "sweep.md", ("\n".join(table.markdown()) + "\n").encode())
    return table


def run_missing(asked: Sweep) -> bool:
    """Run the trials that are not done; whether a stop was asked for meanwhile. After that no further one begins;
    those that run save and stop."""
    missing, until = asked.missing, None if asked.minutes is None else time.time() + 60 * asked.minutes
    works: dict[str, Work] = {}
    if not missing:
        return False
    first = asked.settings(missing[0])
    threads = max(1, len(os.sched_getaffinity(0)) // (asked.workers or 1)) if not asked.ray else 0
    for one in missing:
        own = absolute_paths(asked.settings(one))
        where = own.folder.parent
        work = Work(
            where, one.name, threads or max(1, own.ray.cpus_per_worker), not trial.is_scalar(asked.metric), until
        )
        work.write(own)
        works[one.name] = work
    titles = {one.name: f"trial {number} of {len(missing)}: {one}" for number, one in enumerate(missing, 1)}
    if not asked.ray:
        return run_here(works, asked.workers or 1, asked.folder, lambda name: say(titles[name]))
    sweep = config.replace(first, run={"name": asked.folder.name, "dir": str(asked.folder.parent)})
    lost, stopped = ray_tune.run(works, sweep, asked.workers, lambda name: say(titles[name]))
    for name, line in lost.items():
        trial.say_in_log(asked.folder, name, line)
    return stopped


def run_here(works: Mapping[str, Work], workers: int, folder: Path, begun: Callable[[str], None]) -> bool:
    """Do the ``works`` in threads of this process, ``workers`` at a time; whether a stop was asked for. ``begun`` is
    told the name of each that begins. A second stop ends this process at once, and theirs with it."""
    waiting = deque(works)
    errors: list[BaseException] = []
    with Stop.anew(folder) as stop:

        def work_off() -> None:
            try:
                while waiting and not (stop() or errors):
                    name = waiting.popleft()
                    if not works[name].late():
                        begun(name)
                        works[name]()
            except BaseException as error:
                errors.append(error)

        # No pool: its threads would be waited for at the end of the process, whatever has ended it.
        threads = [threading.Thread(target=work_off, daemon=True) for _ in range(min(workers, len(works)))]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(trial.LOOK_S)
                if stop():
                    stop.file.touch()
    stop.file.unlink(missing_ok=True)
    for error in errors:
        raise error
    return stop.asked
