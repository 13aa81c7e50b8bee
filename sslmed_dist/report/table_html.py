"""Tables of the report as HTML: a card per site, single labels and single runs folded away."""

from collections.abc import Sequence

from sslmed_dist.printable import as_html
from sslmed_dist.report import tables, wording
from sslmed_dist.report.style import arm_class
from sslmed_dist.report.tables import Cell, Table
from sslmed_dist.report.wording import Column


def table_html(table: Table) -> str:
    """A card: title, counts, caution, main columns, and single labels and single runs folded away."""
    main = tables.main_columns(table.columns)
    labels = [column for column in table.columns if column not in main]
    caution = table.caution()
    warning = f"<p class='banner caution'>{as_html(caution)}</p>" if caution else ""
    parts = [
        f"<article class='card'><h3>{as_html(wording.site_name(table.title))}</h3>"
        f"<p class='hint'>{as_html(table.counts())}</p>{warning}",
        grid(table, main or table.columns),
        "".join(f"<p class='hint'>{as_html(reason)}</p>" for reason in tables.undefined(table)),
        "".join(f"<p class='hint'>{as_html(remark)}</p>" for remark in table.coverage()),
    ]
    if labels and main:
        parts.append(f"<details><summary>Single labels</summary>{grid(table, labels)}</details>")
    if any(len(cell.each) > 1 for cell in table.cells.values()):
        parts.append(f"<details><summary>Single runs</summary>{single_runs(table)}</details>")
    return "".join([*parts, "</article>"])


def grid(table: Table, columns: Sequence[Column]) -> str:
    """An HTML table: arms by columns, with the name of an evaluator above all its measures."""
    # neighbouring columns of one evaluator: (evaluator, how many)
    spans: list[tuple[str, int]] = []
    for evaluator, _ in columns:
        if spans and spans[-1][0] == evaluator:
            spans[-1] = (evaluator, spans[-1][1] + 1)
        else:
            spans.append((evaluator, 1))
    top = "".join(
        f"<th scope='colgroup' colspan='{width}' class='group'>{as_html(wording.evaluator_name(name))}</th>"
        for name, width in spans
    )
    names = (wording.column_name(column).removeprefix(f"{wording.evaluator_name(column[0])} ") for column in columns)
    named = "".join(f"<th scope='col'>{as_html(name)}</th>" for name in names)
    head = f"<tr><td></td>{top}</tr><tr><th scope='col'>arm</th>{named}</tr>"
    rows = []
    for arm in table.arms:
        cells = "".join(
            cell_html(table.cells.get((arm, column)), column, signed=table.difference) for column in columns
        )
        rows.append(f"<tr><th scope='row' class='{arm_class(arm)}'>{as_html(table.name(arm))}</th>{cells}</tr>")
    body = f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"
    return scrolling(body, wording.site_name(table.title))


def scrolling(inside: str, name: str) -> str:
    """What may be wider than the page: a region that scrolls, by keyboard too, and that screen readers announce."""
    return f"<div class='scroll' role='region' aria-label='{as_html(name)}' tabindex='0'>{inside}</div>"


def cell_html(cell: Cell | None, column: Column, *, signed: bool) -> str:
    """A value with its interval underneath. A difference is set bold where its interval does not contain 0."""
    value, spread = tables.cell_text(cell, column[1], signed=signed)
    if not spread and (cell is None or cell.value is None):
        return f"<td class='absent'>{as_html(value)}</td>"
    shown = f"<strong>{as_html(value)}</strong>" if signed and tables.is_clear(cell) else as_html(value)
    return f"<td>{shown}<small>{as_html(spread)}</small></td>"


def single_runs(table: Table) -> str:
    """Every run's value with its own interval and sample count."""
    rows = []
    for (arm, column), cell in table.cells.items():
        for label, row in cell.each:
            run_cell = Cell(row["value"], None, row["low"], row["high"], ((label, row),))
            value, spread = tables.cell_text(run_cell, column[1], signed=table.difference)
            words = (table.name(arm), wording.column_name(column), label, f"{value} {spread}", str(row["n"]))
            rows.append("<tr>" + "".join(f"<td>{as_html(word)}</td>" for word in words) + "</tr>")
    head = "".join(f"<th scope='col'>{word}</th>" for word in ("arm", "measure", "run", "value", "n"))
    body = f"<table class='plain'><thead><tr>{head}</tr></thead>{''.join(rows)}</table>"
    return scrolling(body, f"single runs, {wording.site_name(table.title)}")
