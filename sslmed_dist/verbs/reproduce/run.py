"""``sslmed reproduce``: the cells of a published table that are missing are run, and ours is printed beside theirs."""

import os
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from sslmed_dist import config, run_folder
from sslmed_dist.atomic_files import write_atomically
from sslmed_dist.training.precision import NonFinite
from sslmed_dist.verbs.reproduce import cell as single
from sslmed_dist.verbs.reproduce import published, read_table
from sslmed_dist.verbs.reproduce.cell import FINISHED, Cell
from sslmed_dist.verbs.reproduce.published import CellFigure, Outcome
from sslmed_dist.verbs.reproduce.table import Table


@dataclass(frozen=True)
class Request:
    """What was asked for: rows, columns and folds (None: all), seeds, where data is (name -> path), overrides of all
    cells."""

    table: Table
    rows: Sequence[str] | None = None
    columns: Sequence[str] | None = None
    seeds: int = 1
    roots: Mapping[str, str] | None = None
    overrides: Sequence[str] = ()
    folds: Sequence[int] | None = None


def request(
    text: str,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    seeds: int = 1,
    roots: Sequence[str] = (),
    overrides: Sequence[str] = (),
    folds: Sequence[str] | None = None,
) -> Request:
    """The checked request; ``roots`` are ``DATASET=PATH``. ``ValueError`` lists what would have been allowed."""
    asked = read_table.load(read_table.find(text))
    there = () if asked.folds is None else asked.folds.values
    for fold in folds or ():
        if fold not in map(str, there):
            raise ValueError(
                f"{asked.name}: --folds {fold}: allowed: {', '.join(map(str, there)) or 'none, it has none'}"
            )
    choices = {"--rows": (rows, (*asked.rows, *asked.not_ours)), "--columns": (columns, tuple(asked.columns))}
    for option, (chosen, allowed) in choices.items():
        for name in chosen or ():
            if name not in allowed:
                raise ValueError(f"{asked.name}: {option} {name}: unknown; allowed: {', '.join(allowed)}")
    if seeds < 1:
        raise ValueError(f"--seeds: expected an integer >= 1, got {seeds}")
    places = {}
    for root in roots:
        dataset, separator, path = root.partition("=")
        if not (dataset and separator and path):
            raise ValueError(f"--root {root}: expected DATASET=PATH, such as cifar10=PATH")
        places[dataset] = path
    made = Request(
        asked, rows, columns, seeds, places, tuple(overrides), None if folds is None else [int(fold) for fold in folds]
    )
    datasets = {cell.settings.data["name"]: None for cell in cells(made)}
    for dataset in places:
        if dataset not in datasets:
            raise ValueError(
                f"--root {dataset}: no cell reads it; allowed: {', '.join(datasets) or '(no cell chosen)'}"
            )
    return made


def cells(asked: Request) -> list[Cell]:
    """The trainings of the chosen cells, folds one after another and seeds side by side, in the table's order."""
    found = []
    for row, column in chosen(asked):
        if row in asked.table.not_ours:
            continue
        first = asked.table.settings(row, column, asked.overrides)
        root = (asked.roots or {}).get(first.data["name"])
        start = first.run.seed
        metrics = asked.table.metrics(row, column)
        for fold, seed in product(folds_of(asked), range(start, start + asked.seeds)):
            overrides = [*asked.overrides, f"run.seed={seed}"]
            settings = asked.table.settings(row, column, overrides, root, fold)
            found.append(Cell(row, column, seed, settings, metrics, asked.table.path.parent, fold))
    return found


def folds_of(asked: Request) -> Sequence[int | None]:
    """The chosen folds; one None where the table has none."""
    if asked.table.folds is None:
        return (None,)
    return [fold for fold in asked.table.folds.values if asked.folds is None or fold in asked.folds]


def chosen(asked: Request) -> Iterator[tuple[str, str]]:
    """Row and column of every chosen cell, also of rows that are not ours."""
    for row in (*asked.table.rows, *asked.table.not_ours):
        for column in asked.table.columns:
            if (asked.rows is None or row in asked.rows) and (asked.columns is None or column in asked.columns):
                yield row, column


def plan(asked: Request) -> list[str]:
    """What a run would do, one line per training; nothing is written."""
    lines = [f"{asked.table.name}: {asked.table.title}"]
    if asked.overrides:
        lines.append(f"overrides of every cell: {', '.join(asked.overrides)}")
    for cell in cells(asked):
        lines.append(f"{cell}: {single.state(cell)}: {cell.settings.folder}")
    others = [(row, column) for row, column in chosen(asked) if row in asked.table.not_ours]
    lines += [f"{row} / {column}: not ours: {asked.table.not_ours[row]}" for row, column in others]
    return lines


def possible(asked: Request) -> bool:
    """Whether there is anything to run or to show: a cell that is finished, or has all that it needs."""
    return any(single.state(cell) == FINISHED or single.needs(cell) is None for cell in cells(asked))


def run(asked: Request) -> Outcome:
    """Run what is missing, one cell after another, and write ``RUNS/TABLE/table.md`` and ``table.json``.

    A finished cell (its ``evaluate/last.json``) is left alone, an interrupted one goes on. A run whose loss is not
    finite is a result of that cell and does not end the table. ``SystemExit`` when a stop was asked for.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("reproduce: runs one cell after another in one process; several workers: driver=ray")
    todo = cells(asked)
    states = {str(cell): single.state(cell) for cell in todo}
    waiting = [cell for cell in todo if states[str(cell)] != FINISHED]
    for number, cell in enumerate(waiting, start=1):
        if single.needs(cell) is not None:
            continue
        print(f"{asked.table.name}: {cell} ({number} of {len(waiting)})", file=sys.stderr)
        try:
            single.train(cell)
            single.evaluate(cell)
        except NonFinite as error:
            states[str(cell)] = f"failed: {error}"
            continue
        except ValueError as error:
            raise ValueError(f"{asked.table.name}: {cell}: {error}") from error
        states[str(cell)] = FINISHED
    outcome = collect(asked, todo, states)
    if todo:
        write(outcome, todo[0].settings.folder.parents[2 if asked.table.folds is None else 3])
    return outcome


def collect(asked: Request, todo: Sequence[Cell], states: Mapping[str, str]) -> Outcome:
    """What the run folders hold now, as lines: cell by cell, metric by metric."""
    lines = []
    for row, column in chosen(asked):
        mine = [cell for cell in todo if (cell.row, cell.column) == (row, column)]
        done = [cell for cell in mine if states[str(cell)] == FINISHED]
        for name, metric in asked.table.metrics(row, column).items():
            read = {(cell.seed, cell.fold): single.measured(cell, metric) for cell in done}
            each = {key: value for key, value in read.items() if value is not None}
            values, partial = over_folds(asked, each)
            reasons = [states[str(cell)] for cell in mine if (cell.seed, cell.fold) not in each]
            lacking = f"not measured: no {metric.name} of {metric.evaluator['name']} in its evaluate folder"
            reasons = [lacking if reason == FINISHED else reason for reason in reasons]
            if row in asked.table.not_ours:
                reasons = [f"not ours: {asked.table.not_ours[row]}"]
            why = "; ".join(dict.fromkeys(reasons))
            figures, source = asked.table.published[row, column, name], asked.table.quoted.get((row, column), "")
            lines.append(CellFigure(row, column, name, values, asked.seeds, why, figures, source, partial))
    lines += means(asked, lines)
    changing = [text for text in asked.overrides if not free(text.partition("=")[0])]
    shortened = {f"{cell.settings.run.start_from} ({path})": None for cell in todo for path in single.shortened(cell)}
    return Outcome(asked.table, lines, asked.seeds, asked.overrides, [*changing, *shortened])


def over_folds(asked: Request, each: Mapping[tuple[int, int | None], float]) -> tuple[dict[int, float], str]:
    """Per seed the mean over the folds that were measured, and which these are where some are missing."""
    values = {seed: statistics.fmean(v for (s, _), v in each.items() if s == seed) for seed, _ in each}
    if asked.table.folds is None or not each:
        return values, ""
    folds = asked.table.folds.values
    there = [fold for fold in folds if all((seed, fold) in each for seed in values)]
    whole = len(each) == len(values) * len(folds)
    return values, "" if whole else f"folds {', '.join(map(str, there)) or '(mixed)'} of {len(folds)}"


def means(asked: Request, lines: Sequence[CellFigure]) -> list[CellFigure]:
    """Where the table publishes them: per row the mean over all of its columns and metrics."""
    found = []
    for row in dict.fromkeys(line.row for line in lines) if asked.table.means else ():
        mine = [line for line in lines if line.row == row]
        whole = {line.column for line in mine} == set(asked.table.columns)
        seeds = set.intersection(*(set(line.values) for line in mine)) if whole else set()
        values = {seed: statistics.fmean(line.values[seed] for line in mine) for seed in sorted(seeds)}
        published = asked.table.means[row]
        figures = () if published is None else (published,)
        why = "; ".join(dict.fromkeys(line.state for line in mine if line.state)) or (
            "" if whole else "not all columns"
        )
        partial = "; ".join(dict.fromkeys(line.partial for line in mine if line.partial))
        found.append(CellFigure(row, "all", "mean", values, asked.seeds, why, figures, mine[0].quoted, partial))
    return found


def free(path: str) -> bool:
    """Whether an override leaves the run what it was: paths, workers, logging, and the seed it begins with."""
    return path == "run.seed" or config.may(path, "run")


def write(outcome: Outcome, folder: Path) -> None:
    """``table.md`` and ``table.json``: what was printed, to keep."""
    write_atomically(folder / "table.md", published.text(outcome).encode())
    run_folder.write_json(folder / "table.json", published.tree(outcome))
