"""``sslmed reproduce``: run the missing cells of a published table and print our figures beside the published ones."""

import os
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from sslmed_dist import config, run_folder
from sslmed_dist.atomic_files import write_atomically
from sslmed_dist.training.beforehand import require_buildable
from sslmed_dist.training.precision import NonFinite
from sslmed_dist.verbs.reproduce import cell as single
from sslmed_dist.verbs.reproduce import drawing, published, read_table, twin
from sslmed_dist.verbs.reproduce.cell import FINISHED, Cell
from sslmed_dist.verbs.reproduce.places import seen_from
from sslmed_dist.verbs.reproduce.published import CellFigure, Outcome
from sslmed_dist.verbs.reproduce.table import Table


@dataclass(frozen=True)
class Request:
    """What was asked for: rows, columns and folds (None: all), the number of seeds, where data lies (dataset -> path),
    and overrides of all cells."""

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
    """The checked request for the table that ``text`` names; ``roots`` are words ``DATASET=PATH``. ``ValueError`` lists
    what would have been allowed."""
    config.overridden({}, overrides)  # refuses one that is none, and a key that comes twice
    table = read_table.load(read_table.find(text))
    drawing.check(table)
    table_folds = () if table.folds is None else table.folds.values
    for fold in folds or ():
        if fold not in map(str, table_folds):
            raise ValueError(
                f"{table.name}: --folds {fold}: allowed: {', '.join(map(str, table_folds)) or 'none, it has none'}"
            )
    choices = {"--rows": (rows, (*table.rows, *table.not_ours)), "--columns": (columns, tuple(table.columns))}
    for option, (names, allowed) in choices.items():
        for name in names or ():
            if name not in allowed:
                raise ValueError(f"{table.name}: {option} {name}: unknown; allowed: {', '.join(allowed)}")
    if seeds < 1:
        raise ValueError(f"--seeds: expected an integer >= 1, got {seeds}")
    data_paths = {}
    for root in roots:
        dataset, separator, path = root.partition("=")
        if not (dataset and separator and path):
            raise ValueError(f"--root {root}: expected DATASET=PATH, such as cifar10=PATH")
        if dataset in data_paths:
            raise ValueError(f"--root {dataset}: stands on the command line twice; give it once")
        data_paths[dataset] = path
    fold_numbers = None if folds is None else [int(fold) for fold in folds]
    asked = Request(table, rows, columns, seeds, data_paths, tuple(overrides), fold_numbers)
    # The datasets that the chosen cells read, each once and in order.
    datasets = {cell.settings.data["name"]: None for cell in cells(asked)}
    for dataset in data_paths:
        if dataset not in datasets:
            raise ValueError(
                f"--root {dataset}: no cell reads it; allowed: {', '.join(datasets) or '(no cell chosen)'}"
            )
    return asked


def cells(asked: Request) -> list[Cell]:
    """The trainings of the chosen cells, in the table's order: of each cell every fold, of each fold every seed."""
    trainings = []
    for row, column in chosen(asked):
        if row in asked.table.not_ours:
            continue
        # Which dataset the cell reads, and its first seed, are known only once its settings are put together.
        first_settings = asked.table.settings(row, column, asked.overrides)
        root = (asked.roots or {}).get(first_settings.data["name"])
        first_seed = first_settings.run.seed
        metrics = asked.table.metrics(row, column)
        for fold, seed in product(folds_of(asked), range(first_seed, first_seed + asked.seeds)):
            overrides = [*asked.overrides, f"run.seed={seed}"]
            settings = asked.table.settings(row, column, overrides, root, fold)
            trainings.append(Cell(row, column, seed, settings, metrics, asked.table.path.parent, fold))
    return trainings


def folds_of(asked: Request) -> Sequence[int | None]:
    """The chosen folds; a single None where the table has no folds."""
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
    never_run = [(row, column) for row, column in chosen(asked) if row in asked.table.not_ours]
    lines += [f"{row} / {column}: not ours: {asked.table.not_ours[row]}" for row, column in never_run]
    return lines


def possible(asked: Request) -> bool:
    """Whether there is anything to run or to show: a cell that is finished, or has all that it needs."""
    return any(single.state(cell) == FINISHED or single.needs(cell) is None for cell in cells(asked))


def run(asked: Request) -> Outcome:
    """Run what is missing, one cell after another, and write ``RUNS/TABLE/table.md`` and ``table.json``, and of
    a figure its picture (``drawing.draw``). No path of this machine is in them.

    A finished cell is left alone; an interrupted one goes on. A run whose loss is not finite counts as the result of
    its cell, and the others go on. ``Stopped`` when a stop was asked for. ``ValueError`` names table and cell.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("reproduce: runs one cell after another in one process; several workers: driver=ray")
    all_cells = cells(asked)
    states = {str(cell): single.state(cell) for cell in all_cells}
    unfinished = [cell for cell in all_cells if states[str(cell)] != FINISHED]
    require_trainable(asked.table, unfinished)
    for position, cell in enumerate(unfinished, start=1):
        if single.needs(cell) is not None:  # asked only now: an earlier cell may have made what it needs
            continue
        print(f"{asked.table.name}: {cell} ({position} of {len(unfinished)})", file=sys.stderr)
        try:
            trained_before = twin.find(cell)
            if trained_before is None:
                single.train(cell)
            else:
                print(f"{cell}: the same run as {trained_before}: copied, not trained again", file=sys.stderr)
                twin.copy(cell, trained_before)
            single.evaluate(cell)
        except NonFinite as error:
            states[str(cell)] = f"failed: {error}"
            continue
        except ValueError as error:
            raise ValueError(f"{asked.table.name}: {cell}: {error}") from error
        states[str(cell)] = FINISHED
    outcome = collect(asked, all_cells, states)
    if all_cells:  # a run's folder is RUNS/TABLE/ROW/COLUMN/[fold-K/]seed-N
        folder = all_cells[0].settings.folder.parents[2 if asked.table.folds is None else 3]
        outcome = seen_from(folder, outcome, all_cells)
        write(outcome, folder)
        if asked.table.message:
            drawing.draw(outcome, [cell for cell in all_cells if states[str(cell)] == FINISHED], folder)
    return outcome


def require_trainable(table: Table, unfinished: Sequence[Cell]) -> None:
    """``ValueError`` for a cell with a value that cannot be built, before the first one is trained. Federations,
    diagnoses, and cells that wait for the encoder of another one are looked at when their turn comes."""
    plain = [cell for cell in unfinished if cell.settings.federated is None and cell.settings.diagnose is None]
    ready = [cell for cell in plain if single.needs(cell) is None]
    by_data = sorted(ready, key=lambda cell: (cell.column, cell.seed, cell.fold or 0))  # each set of data is read once
    require_buildable((f"{table.name}: {cell}", cell.settings) for cell in by_data)


def collect(asked: Request, all_cells: Sequence[Cell], states: Mapping[str, str]) -> Outcome:
    """What the run folders hold now, as lines: cell by cell, metric by metric. ``states`` by the cell's text."""
    lines = []
    for row, column in chosen(asked):
        trainings = [cell for cell in all_cells if (cell.row, cell.column) == (row, column)]
        finished = [cell for cell in trainings if states[str(cell)] == FINISHED]
        for name, metric in asked.table.metrics(row, column).items():
            read = {(cell.seed, cell.fold): single.measured(cell, metric) for cell in finished}
            measured = {seed_fold: value for seed_fold, value in read.items() if value is not None}
            values, partial = over_folds(asked, measured)
            # Why seeds are missing; a finished run may lack this metric.
            reasons = [states[str(cell)] for cell in trainings if (cell.seed, cell.fold) not in measured]
            lacking = f"not measured: no {metric.name} of {metric.evaluator['name']} in its evaluate folder"
            reasons = [lacking if reason == FINISHED else reason for reason in reasons]
            if row in asked.table.not_ours:
                reasons = [f"not ours: {asked.table.not_ours[row]}"]
            why = "; ".join(dict.fromkeys(reasons))
            figures, source = asked.table.published[row, column, name], asked.table.quoted.get((row, column), "")
            lines.append(CellFigure(row, column, name, values, asked.seeds, why, figures, source, partial))
    lines += means(asked, lines)
    # What makes this another run than the published one: overrides, and encoders that were trained otherwise.
    changing = [text for text in asked.overrides if not free(text.partition("=")[0])]
    shortened = {
        f"{start} ({path})": None
        for cell in all_cells
        for start in single.starts(cell.settings)
        for path in single.shortened(cell, start)
    }
    return Outcome(asked.table, lines, asked.seeds, asked.overrides, [*changing, *shortened])


def over_folds(asked: Request, measured: Mapping[tuple[int, int | None], float]) -> tuple[dict[int, float], str]:
    """From figures by (seed, fold): by seed the mean over the folds that were measured, and in words which folds these
    are where some are missing."""
    values = {seed: statistics.fmean(v for (s, _), v in measured.items() if s == seed) for seed, _ in measured}
    if asked.table.folds is None or not measured:
        return values, ""
    folds = asked.table.folds.values
    of_all_seeds = [fold for fold in folds if all((seed, fold) in measured for seed in values)]
    complete = len(measured) == len(values) * len(folds)
    return values, "" if complete else f"folds {', '.join(map(str, of_all_seeds)) or '(mixed)'} of {len(folds)}"


def means(asked: Request, lines: Sequence[CellFigure]) -> list[CellFigure]:
    """Where the table publishes means: a line for each row, with the mean over all of its columns and metrics."""
    mean_lines = []
    for row in dict.fromkeys(line.row for line in lines) if asked.table.means else ():
        of_row = [line for line in lines if line.row == row]
        all_columns = {line.column for line in of_row} == set(asked.table.columns)
        # Only seeds for which every figure of the row was measured.
        seeds = set.intersection(*(set(line.values) for line in of_row)) if all_columns else set()
        values = {seed: statistics.fmean(line.values[seed] for line in of_row) for seed in sorted(seeds)}
        published = asked.table.means[row]
        figures = () if published is None else (published,)
        why = "; ".join(dict.fromkeys(line.state for line in of_row if line.state)) or (
            "" if all_columns else "not all columns"
        )
        partial = "; ".join(dict.fromkeys(line.partial for line in of_row if line.partial))
        mean_lines.append(CellFigure(row, "all", "mean", values, asked.seeds, why, figures, of_row[0].quoted, partial))
    return mean_lines


def free(path: str) -> bool:
    """Whether an override of the key ``path`` leaves the run the published one: paths, workers, logging, and the first
    seed do."""
    return path == "run.seed" or config.may(path, "run")


def write(outcome: Outcome, folder: Path) -> None:
    """Write the outcome as ``table.md`` (as it is printed) and ``table.json`` into ``folder``."""
    write_atomically(folder / "table.md", published.text(outcome).encode())
    run_folder.write_json(folder / "table.json", published.tree(outcome))
