"""``sslmed report --all FOLDER``: one page over all runs below a folder, each a row that can be sorted and filtered.

The page is read without its script, too: sorting and filtering are all that the script adds. It holds no pixel of an
image: the only pictures are curves of the loss.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sslmed_dist import outputs
from sslmed_dist.atomic_files import write_atomically
from sslmed_dist.report import facts, tables, wording
from sslmed_dist.report.overview_page import Figure, Line, html
from sslmed_dist.report.results import results_of
from sslmed_dist.report.runs import Experiment, Run, group, read_run
from sslmed_dist.report.tables import Table
from sslmed_dist.report.wording import Column

NAME = "runs.html"
MOST_MEASURES = 3  # that have a column: those that most runs have
INSIDE = {"arms", "sites", "checkpoints", "evaluate", "pictures", "ray", "logs"}  # folders of a run that hold no run
OWN_ARMS = ("federated", "encoder")  # the arm that a run is about, whichever it has
FLOORS = ("random", "raw_pixels")
Relations = list[tuple[str, str]]  # (what another run is to this one, its name)


@dataclass(frozen=True)
class Found:
    """The runs below a folder, and by the folder of each that cannot be read: why."""

    runs: list[Run] = field(default_factory=list)
    unread: dict[Path, str] = field(default_factory=dict)


def write_overview(folder: Path, out: Path | None = None, *, force: bool = False) -> Path:
    """Write the page over all runs below ``folder`` and return its path: ``runs.html`` in it, or ``out``.

    A run that cannot be read is named on the page with the reason. ``ValueError``: no run below the folder, or a place
    that must not be written over (``outputs.require_writable``).
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: {'is a file; expected a folder of runs' if folder.exists() else 'no such folder'}")
    target = folder / NAME if out is None else out if out.suffix == ".html" else out / NAME
    outputs.require_writable([(target, outputs.is_page)], force=force or out is None)
    found = find_runs(folder)
    if not found.runs:
        why = "".join(f"; {path.name}: {reason}" for path, reason in list(found.unread.items())[:1])
        raise ValueError(f"{folder}: holds no run (a folder with config.yaml and metrics.jsonl or evaluate/){why}")
    measures = common_measures(found.runs)
    relations = related(found.runs, folder)
    lines = [line_of(run, measures, relations[run.folder], folder, target.parent) for run in found.runs]
    unread = {str(path.relative_to(folder)): reason for path, reason in found.unread.items()}
    title = f"Runs in {folder.resolve().name}"
    write_atomically(target, html(title, [wording.column_name(c) for c in measures], lines, unread).encode())
    return target


def find_runs(folder: Path) -> Found:
    """Every run below ``folder``, by path. Links to folders are not followed."""
    found = Found()
    for place, folders, files in os.walk(folder):
        if "config.yaml" in files:
            path = Path(place)
            try:
                found.runs.append(read_run(path))
            except (ValueError, OSError) as error:
                found.unread[path] = str(error).removeprefix(f"{path}: ")
            folders[:] = [name for name in folders if name not in INSIDE]
        folders.sort()
    found.runs.sort(key=lambda run: tables.natural(str(run.folder)))
    return found


def general_table(run: Run) -> Table | None:
    """The table of all sites of a run, or of its only site."""
    own = results_of(Experiment(run.name, (run,), (run.folder.name,))).own
    return own[0] if own else None


def own_arm(table: Table) -> str | None:
    """The arm that a run is about."""
    return next((arm for arm in OWN_ARMS if arm in table.arms), None)


def common_measures(runs: Sequence[Run]) -> list[Column]:
    """The measures that most runs have, of those that a report plots."""
    counts: Counter[Column] = Counter()
    for run in runs:
        table = general_table(run)
        if table is not None and own_arm(table) is not None:
            counts.update(tables.plotted_columns(table.columns))
    return [column for column, _ in counts.most_common(MOST_MEASURES)]


def line_of(run: Run, measures: Sequence[Column], relations: Relations, folder: Path, page: Path) -> Line:
    """What the page says of a run; links are relative to the folder of the ``page``."""
    experiment = Experiment(run.name, (run,), (run.folder.name,))
    said = dict(facts.facts(experiment))
    report = run.folder / "report.html"
    loss, _ = facts.curve_lines(experiment, "loss")
    table = general_table(run)
    return Line(
        name=str(run.folder.relative_to(folder)) if run.folder != folder else run.folder.name,
        link=os.path.relpath(report, page) if report.is_file() else None,
        phantom=experiment.phantom,
        method=said["Method"],
        data=said["Data"],
        encoder=said["Encoder"],
        training="; ".join(said[name] for name in ("Federation", "Training") if name in said),
        date=said.get("Date", "not recorded"),
        loss=loss[0].runs[0][1] if loss else [],
        figures=[figure_of(table, column) for column in measures],
        arms=[wording.arm_name(arm) for arm in table.arms] if table is not None else [],
        related=relations,
    )


def figure_of(table: Table | None, column: Column) -> Figure | None:
    """A run's own figure in a measure, with its interval and its floors; None where it was not measured."""
    arm = own_arm(table) if table is not None else None
    cell = table.cells.get((arm, column)) if table is not None and arm is not None else None
    if table is None or cell is None or cell.value is None:
        return None
    value, spread = tables.cell_text(cell, column[1])
    floors = [
        f"{wording.arm_name(floor)} {tables.cell_text(table.cells[floor, column], column[1])[0]}"
        for floor in FLOORS
        if (floor, column) in table.cells
    ]
    return Figure(cell.value, value, spread, floors)


def related(runs: Sequence[Run], folder: Path) -> dict[Path, Relations]:
    """Of each run's folder: its other seeds, and the run that it started from or goes on."""
    names = {run.folder: str(run.folder.relative_to(folder)) for run in runs}
    found: dict[Path, Relations] = {run.folder: [] for run in runs}
    for experiment in group(runs):
        for run in experiment.runs:
            found[run.folder] += [("other seeds", names[it.folder]) for it in experiment.runs if it is not run]
    for run in runs:
        settings = run.config.get("run") or {}
        for key, words in (("start_from", "starts from"), ("continue_from", "goes on from")):
            source = Path(str(settings.get(key) or ""))
            others = [other for other in runs if settings.get(key) and same_run(other, source)]
            found[run.folder] += [(words, names[other.folder]) for other in others]
    return found


def same_run(run: Run, named: Path) -> bool:
    """Whether a path of a configuration names a run: by its own folder's name and that of the folder above."""
    own = run.folder.resolve().parts[-2:]
    parts = named.parts[: named.parts.index("checkpoints")] if "checkpoints" in named.parts else named.parts
    return parts[-2:] == own or (len(parts) == 1 and parts == own[-1:])
