"""The report as Markdown: the same words and tables as the page, without pictures."""

from collections.abc import Sequence

from sslmed_dist.outputs import TEXT_END
from sslmed_dist.printable import as_markdown
from sslmed_dist.report import facts, tables, wording
from sslmed_dist.report.results import Results
from sslmed_dist.report.runs import Experiment
from sslmed_dist.report.tables import Cell, Table
from sslmed_dist.report.wording import Column


def text(title: str, experiments: Sequence[Experiment], results: Sequence[Results]) -> str:
    """The whole document; ``results`` are those of each of the experiments."""
    parts = [f"# {as_markdown(title)}"]
    if any(experiment.phantom for experiment in experiments):
        parts.append("**PHANTOM DATA: generated pictures, no patients. The numbers show that the software works.**")
    for experiment, found in zip(experiments, results, strict=True):
        parts += section(experiment, found, alone=len(experiments) == 1)
    return "\n\n".join([*parts, TEXT_END])


def section(experiment: Experiment, results: Results, *, alone: bool) -> list[str]:
    """One experiment: what was run, tables, curves' last values, notes."""
    parts = [] if alone else [f"## {as_markdown(experiment.name)}"]
    parts.append("\n".join(f"- {name}: {as_markdown(value)}" for name, value in facts.facts(experiment)))
    if not results.sites:
        parts.append("Evaluation: not run.")
    differences = [results.differences] if results.differences else []
    for table in [*results.own, *differences, *results.others]:
        parts += table_text(table)
    for label, run in zip(experiment.labels, experiment.runs, strict=True):
        if run.similarity is not None:
            parts.append(f"{as_markdown(wording.similarity(run.similarity))} ({as_markdown(label)}).")
    for note, places in tables.notes(results.noted).items():
        parts.append(f"- {as_markdown(note)}: {as_markdown('; '.join(places))}")
    last = facts.last_values(experiment)
    if last:
        parts.append(
            "Last values of the training curves: "
            + "; ".join(f"{as_markdown(name)} {value}" for name, value in last)
            + "."
        )
    else:
        parts.append("Training curves: not run.")
    count = sum(run.pictures_there for run in experiment.runs)
    parts.append(f"Pictures: {wording.left_out(count)}" if count else wording.NO_PICTURES)
    parts += [
        f"Reading {as_markdown(run.folder.name)}: {as_markdown(remark)}."
        for run in experiment.runs
        for remark in run.remarks
    ]
    return parts


def table_text(table: Table) -> list[str]:
    """A heading, the counts, a caution where due, and the table."""
    parts = [f"### {as_markdown(wording.site_name(table.title))}", table.counts() + "."]
    caution = table.caution()
    if caution:
        parts.append(f"**{caution}**")
    if table.coverage():
        parts.append("\n".join(f"- {as_markdown(remark)}" for remark in table.coverage()))
    head = ["arm", *(as_markdown(wording.column_name(column)) for column in table.columns)]
    lines = [head, ["---"] * len(head)]
    for arm in table.arms:
        cells = [cell_markdown(table, table.cells.get((arm, column)), column) for column in table.columns]
        lines.append([as_markdown(table.name(arm)), *cells])
    return [*parts, "\n".join("| " + " | ".join(line) + " |" for line in lines)]


def cell_markdown(table: Table, cell: Cell | None, column: Column) -> str:
    """A value with its interval. A difference is set bold where its interval leaves out 0."""
    value, spread = tables.cell_text(cell, column[1], signed=table.difference)
    value = f"**{value}**" if table.difference and tables.is_clear(cell) else value
    return f"{value} {spread}".rstrip()
