"""All tables of an experiment: those of its sites, their mean, the differences of arms, and other questions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sslmed_dist.printable import plural
from sslmed_dist.report.runs import Experiment, Row
from sslmed_dist.report.tables import Table, natural, site_tables, summarise
from sslmed_dist.report.wording import ALL_SITES, arm_name, site_name


@dataclass(frozen=True)
class Results:
    """All tables of an experiment, made once for the page and for its Markdown twin.

    ``sites``             one per site, all sites together first
    ``own``               the same and their mean, from the general to the single: all sites together, mean, each site
    ``site_differences``  the paired differences of arms, one per site
    ``differences``       all of these in one table, None without any
    ``others``            what was measured otherwise (``Run.others``)
    """

    sites: list[Table]
    own: list[Table]
    site_differences: list[Table]
    differences: Table | None
    others: list[Table]

    @property
    def noted(self) -> list[Table]:
        """The tables of the run whose rows have notes of their own; a mean and a summary repeat them."""
        return [*self.sites, *self.site_differences]


def results_of(experiment: Experiment) -> Results:
    """All tables of ``experiment``. ``ValueError`` where one file has the same measure twice."""
    sites, site_differences = site_tables(experiment), site_tables(experiment, difference=True)
    mean = mean_over_sites(sites)
    general = [table for table in sites if table.title == ALL_SITES]
    own = [*general, *([mean] if mean else []), *sites[len(general) :]]
    return Results(sites, own, site_differences, difference_table(site_differences), other_tables(experiment))


def mean_over_sites(tables: Sequence[Table]) -> Table | None:
    """Every site counts once: per run the mean over sites, then mean and standard deviation over runs.

    None with fewer than two sites. Sites where a measure is undefined are left out of its mean, and counted.
    """
    sites = [table for table in tables if table.title != ALL_SITES]
    if len(sites) < 2:
        return None
    # for each cell: a run's rows of all sites, averaged; then the runs as in any other table
    cells = {}
    keys = dict.fromkeys(key for table in sites for key in table.cells)
    for key in keys:
        rows_by_run: dict[str, list[Row]] = {}
        for table in sites:
            for label, row in table.cells[key].each if key in table.cells else ():
                rows_by_run.setdefault(label, []).append(row)
        cells[key] = summarise([(label, averaged(rows, len(sites))) for label, rows in rows_by_run.items()])
    hint = "every site counts once; no interval"
    return Table("mean over sites", sites[0].arms, sites[0].columns, cells, hint=hint)


def averaged(rows: Sequence[Row], sites: int) -> Row:
    """The mean of one run's ``rows`` over its ``sites`` (their number), as a row without an interval."""
    values = [float(row["value"]) for row in rows if row["value"] is not None]
    # sites where the measure is undefined are not in the mean, and the note says so
    note = "" if len(values) == sites else f"over {len(values)} of {plural(sites, 'site')}"
    return {
        "value": math.fsum(values) / len(values) if values else None,
        "low": None,
        "high": None,
        "n": sum(int(row["n"]) for row in rows),
        "groups": sum(int(row.get("groups") or row["n"]) for row in rows),
        "note": note,
    }


def difference_table(sites: Sequence[Table]) -> Table | None:
    """The paired differences of all ``sites`` in one table, a row per site and pair of arms; None without any."""
    if not sites:
        return None
    # an arm of this table is a site and a pair of arms
    cells, names = {}, {}
    for table in sites:
        for (arm, column), cell in table.cells.items():
            names[f"{table.title}: {arm}"] = f"{site_name(table.title)}: {arm_name(arm)}"
            cells[f"{table.title}: {arm}", column] = cell
    hint = "paired over the same test samples; bold: the interval leaves out 0"
    return Table("differences between arms", tuple(names), sites[0].columns, cells, True, names, hint)


def other_tables(experiment: Experiment) -> list[Table]:
    """The tables of what was measured otherwise (``Run.others``), each under its own title."""
    made = []
    for title in sorted({title for run in experiment.runs for title in run.others}, key=natural):
        runs = tuple(replace(run, rows=run.others.get(title, [])) for run in experiment.runs)
        for table in site_tables(replace(experiment, runs=runs)):
            site = "" if table.title == ALL_SITES else f", {table.title}"
            made.append(replace(table, title=f"{title}{site}"))
    return made
