"""What the page of a diagnosis says of random folds and of folds by scanner."""

from collections.abc import Sequence
from typing import Any

from sslmed_dist.downstream import Row
from sslmed_dist.printable import as_html, plural
from sslmed_dist.report.table_html import table_html
from sslmed_dist.report.tables import Table, summarise
from sslmed_dist.verbs.diagnose.folds import EVALUATOR, arm, metadata_arm

HINT = (
    "The training exams in folds, each answered by models that were trained on the others; of several parts the plain "
    "mean. In folds by scanner no model has seen the scanner that it is asked about. Only exams of the same fold are "
    "compared with each other."
)


def fold_section(kinds: Sequence[str], rows: Sequence[Row], unknown: int) -> str:
    """A heading, a sentence for each kind of folds, the gap between them, and the tables; nothing without folds.
    ``unknown``: how many training exams are of a scanner that nobody knows."""
    if not kinds:
        return ""
    body = ["<h2>Other scanners</h2>", f"<p class='hint'>{as_html(HINT)}</p>"]
    if unknown and "scanner" in kinds:
        said = f"{plural(unknown, 'training exam')} do not say their scanner: they count as those of one more scanner."
        body.append(f"<p class='hint'>{said}</p>")
    body += [beaten(kind, rows) for kind in kinds]
    body += [gap(kinds[0], kind, rows) for kind in kinds[1:]]
    body += [table_html(table(rows, difference)) for difference in (False, True)]
    return "".join(body)


def beaten(kind: str, rows: Sequence[Row]) -> str:
    """Whether the diagnosis beats the metadata in the folds of one kind."""
    found = difference(f"{arm(kind)} - {metadata_arm(kind)}", rows)
    if found is None:
        said = f"In {arm(kind)}, whether this beats what the metadata alone say is not known from these exams."
        return f"<p class='banner caution'>{as_html(said)}</p>"
    value, low, high = found
    text = f"mean AUC {value:+.3f} [{low:+.3f}, {high:+.3f}] against what the metadata alone say"
    if low > 0:
        return f"<p class='lead'>{as_html(f'In {arm(kind)} the diagnosis beats its floor: {text}.')}</p>"
    said = f"In {arm(kind)} the diagnosis does not beat what the metadata alone say: {text}."
    return f"<p class='banner caution'>{as_html(said)}</p>"


def gap(first: str, second: str, rows: Sequence[Row]) -> str:
    """How much mean AUC one kind of folds is above another."""
    found = difference(f"{arm(first)} - {arm(second)}", rows)
    if found is None:
        return f"<p class='hint'>{as_html(f'The gap of {arm(first)} and {arm(second)} is not known.')}</p>"
    value, low, high = found
    said = f"Mean AUC in {arm(first)} less that in {arm(second)}, same exams: {value:+.3f} [{low:+.3f}, {high:+.3f}]."
    if low > 0 and (first, second) == ("random", "scanner"):
        return f"<p class='banner caution'>{as_html(f'{said} On an unknown scanner expect the lower one.')}</p>"
    return f"<p class='lead'>{as_html(said)}</p>"


def difference(name: str, rows: Sequence[Row]) -> tuple[float, float, float] | None:
    """A difference in mean AUC with its interval; None where it is undefined."""
    chosen = (row for row in rows if row.difference and row.arm == name and row.score.evaluator == EVALUATOR)
    score = next((row.score for row in chosen if row.score.metric == "auc"), None)
    if score is None or score.value is None or score.low is None or score.high is None:
        return None
    return score.value, score.low, score.high


def table(rows: Sequence[Row], differences: bool) -> Table:
    """The rows of folds, a column for each label."""
    chosen = [row for row in rows if row.score.evaluator == EVALUATOR and row.difference == differences]
    cells: dict[Any, Any] = {}
    for row in chosen:
        tree: Any = row.to_tree()
        cells[row.arm, (EVALUATOR, row.score.metric)] = summarise([("", tree)])
    arms, columns = (tuple(dict.fromkeys(key[place] for key in cells)) for place in (0, 1))
    title = "differences in folds" if differences else "training exams in folds"
    return Table(title, arms, columns, cells, differences)
