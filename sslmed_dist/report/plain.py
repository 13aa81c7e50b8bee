"""One file of results as lines for a terminal: the figures with their intervals, the floors beside them, and what they
were measured on."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sslmed_dist.config import Config, to_tree
from sslmed_dist.json_files import read_object
from sslmed_dist.outputs import RESEARCH
from sslmed_dist.printable import plural
from sslmed_dist.report import tables, wording
from sslmed_dist.report.page import INTERVAL
from sslmed_dist.report.results import results_of
from sslmed_dist.report.runs import Experiment, Run, Tree, rows_in
from sslmed_dist.report.tables import Table
from sslmed_dist.report.wording import Column

PHANTOM = "PHANTOM DATA: generated pictures, no patients; the numbers show that the software works."


def figure_lines(file: Path, settings: Config) -> list[str]:
    """The lines of the results in ``file``; ``settings`` are those of its run. Measures of single labels
    stand in the file alone; how many there are is said. ``ValueError`` where the file holds no results."""
    tree = read_object(file)
    run = Run(file.parent.parent, to_tree(settings), None, {}, rows_in(tree, file), [], 0)
    results = results_of(Experiment(run.name, (run,), ("this run",)))
    lines = [PHANTOM] if tree.get("phantom_data") else []
    lines += [line for line in [measured_line(tree)] if line]
    # Of sites: all together and their mean; each by itself where it was each site that measured.
    few = len(results.sites) < 2 or (settings.federated is not None and settings.federated.evaluate)
    own = results.own if few else results.own[:2]
    for table in own:
        lines += table_lines(table)
    for table in results.site_differences:
        lines += table_lines(replace(table, hint="paired; *: the interval leaves out 0"))
    columns = {column for table in results.own for column in table.columns}
    single = len(columns) - len(tables.main_columns(tuple(columns)))
    lines += [f"and {plural(single, 'measure')} of single labels, in the file"] if single else []
    return [*lines, f"{INTERVAL}. {RESEARCH}"]


def measured_line(tree: Tree) -> str:
    """``measured on medmnist (tiny.npz): 43 train, 5 val, 24 test``; empty where the file does not say."""
    measured = tree.get("measured_on")
    if not isinstance(measured, dict):
        return ""
    name, folder = measured.get("data", {}).get("name"), measured.get("folder")
    counts = ", ".join(f"{count} {part}" for part, count in measured.get("samples", {}).items())
    return f"measured on {name}{f' ({folder})' if folder else ''}: {counts}"


def table_lines(table: Table) -> list[str]:
    """A heading, a caution where due, a line per measure with a column per arm that has any, and what is undefined."""
    arms = [arm for arm in table.arms if any(of == arm for of, _ in table.cells)]
    columns = tables.main_columns(table.columns) or table.columns
    grid = [["", *(table.name(arm) for arm in arms)]]
    for column in columns:
        grid.append([wording.column_name(column), *(cell_line(table, arm, column) for arm in arms)])
    caution = table.caution()
    title = "difference" if table.difference else wording.site_name(table.title)
    heading = (
        table.counts() if table.title == wording.ALL_SITES and not table.difference else f"{title}: {table.counts()}"
    )
    return [heading, *([caution] if caution else []), *aligned(grid), *tables.undefined(table)]


def cell_line(table: Table, arm: str, column: Column) -> str:
    """``84.2 [81.0, 87.1]``, with a star where the interval of a difference leaves out 0; empty where not measured."""
    cell = table.cells.get((arm, column))
    if cell is None:
        return ""
    words = " ".join(filter(None, tables.cell_text(cell, column[1], signed=table.difference)))
    return f"{words} *" if table.difference and tables.is_clear(cell) else words


def aligned(grid: Sequence[Sequence[str]]) -> list[str]:
    """Rows of equal length as lines whose columns stand under each other."""
    widths = [max(len(row[column]) for row in grid) for column in range(len(grid[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in grid]
