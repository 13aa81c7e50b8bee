"""The page of a diagnosis: a table for each label, ROC and reliability curves, and how the parts were weighed."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sslmed_dist.config import Config
from sslmed_dist.downstream import Row
from sslmed_dist.downstream.diagnosis import calibration, measures
from sslmed_dist.downstream.predictions import Predictions
from sslmed_dist.printable import as_html
from sslmed_dist.report import plots
from sslmed_dist.report.page import CAUTION, PHANTOM, figure, frame
from sslmed_dist.report.plots import Curve
from sslmed_dist.report.table_html import table_html
from sslmed_dist.report.tables import Table, summarise
from sslmed_dist.run_folder import phantom_data
from sslmed_dist.verbs.diagnose import scoring
from sslmed_dist.verbs.diagnose.scoring import EVALUATOR, Combination

INTERVALS = (
    "value [5 %, 95 %]: percentile bootstrap over patients. Sensitivity and specificity at the threshold 0.5. "
    "A diagnosis has to beat the majority answer, a random answer, and what the metadata alone say."
)


def document(title: str, body: Sequence[str], phantom: bool) -> str:
    """A whole page, with a caution at its top."""
    return frame(title, "diagnosis", [CAUTION, *([PHANTOM] if phantom else [])], body)


def html(
    settings: Config,
    rows: Sequence[Row],
    arms: Mapping[str, Predictions],
    combination: Combination,
    parts: Sequence[str],
    remarks: str = "",
) -> str:
    """The page of a run; ``remarks`` is what it says of labels that were not learnt, and of other scanners."""
    body = [f"<p class='hint'>{as_html(INTERVALS)}</p>", verdict(rows), remarks]
    for column, label in enumerate(combination.classes):
        body.append(f"<h2>{as_html(label)}</h2>")
        body.append(table_html(label_table(rows, label, f"{label}, test exams", difference=False)))
        published = label_table(rows, label, "the thesis's way of intervals", False, f"{EVALUATOR}, published's way")
        if published.arms:
            body.append(table_html(published))
        body.append(f"<div class='figures'>{curves(arms, column, label, parts)}</div>")
        body.append(table_html(label_table(rows, label, "differences", difference=True)))
        exact = label_table(rows, label, "differences in AUC, DeLong's interval", True, f"{EVALUATOR}, DeLong")
        body.append(table_html(exact) if exact.arms else "")
    body.append(weighing(combination, parts))
    assert settings.run.name is not None
    return document(settings.run.name, body, phantom_data(settings))


def verdict(rows: Sequence[Row]) -> str:
    """Whether the diagnosis beats what the metadata alone say, in mean AUC."""
    arm = f"{scoring.ENSEMBLE} - {scoring.METADATA}"
    found = [row.score for row in rows if row.arm == arm and row.score.metric == "auc" and row.difference]
    if not found or found[0].value is None or found[0].low is None:
        unknown = "Whether this beats what the metadata alone say is not known from these exams."
        return f"<p class='banner caution'>{unknown}</p>"
    value, low, high = found[0].value, found[0].low, found[0].high
    text = f"mean AUC {value:+.3f} [{low:+.3f}, {high:+.3f}] against what the metadata alone say"
    if low > 0:
        return f"<p class='lead'>The ensemble beats its floor: {as_html(text)}.</p>"
    return f"<p class='banner caution'>This diagnosis does not beat what the metadata alone say: {as_html(text)}.</p>"


def label_table(rows: Sequence[Row], label: str, title: str, difference: bool, evaluator: str = EVALUATOR) -> Table:
    """The rows of one label as a table whose columns are the measures."""
    cells, arms = {}, []
    for row in rows:
        name, _, own = row.score.metric.partition("/")
        if own != label or row.difference != difference or row.score.evaluator != evaluator:
            continue
        tree: Any = {**row.to_tree(), "metric": name}
        cells[row.arm, (evaluator, name)] = summarise([("", tree)])
        arms.append(row.arm)
    columns = tuple(dict.fromkeys(column for _, column in cells))
    return Table(title, tuple(dict.fromkeys(arms)), columns, cells, difference)


def curves(arms: Mapping[str, Predictions], column: int, label: str, parts: Sequence[str]) -> str:
    """ROC curves of the parts and the ensemble; reliability of the ensemble before and after its temperature."""
    lines = []
    for arm in (scoring.ENSEMBLE, *parts, scoring.METADATA):
        scores, labels, _ = measures.known_rows(arms[arm], column)
        x, y = calibration.roc(scores, labels)
        if x:
            lines.append(Curve(arm, ((x, y),)))
    drawn = []
    if lines:
        pair = plots.curves(lines, "1 - specificity")
        drawn.append(figure(pair, f"ROC, {label}: sensitivity by 1 - specificity", f"ROC curves of {label}"))
    reliable = [Curve("perfect", (([0.0, 1.0], [0.0, 1.0]),))]
    for arm in (scoring.ENSEMBLE, scoring.SCALED):
        scores, labels, _ = measures.known_rows(arms[arm], column)
        bins = calibration.reliability(scores, labels)
        reliable.append(Curve(arm, (([b.probability for b in bins], [b.share for b in bins]),)))
    pair = plots.curves([line for line in reliable if line.runs[0][0]], "mean probability of a tenth")
    drawn.append(figure(pair, f"Reliability, {label}: share of positives", f"reliability curves of {label}"))
    return "".join(drawn)


def weighing(combination: Combination, parts: Sequence[str]) -> str:
    """How much each part weighs, and by which accuracy, and the temperatures."""

    def cell(values: torch.Tensor, k: int, digits: int) -> str:
        return "none" if values[k] != values[k] else f"{float(values[k]):.{digits}f}"

    head = "".join(f"<th>{as_html(label)}</th>" for label in combination.classes)
    lines = []
    for name, accuracies, weights in zip(parts, combination.accuracies, combination.weights, strict=True):
        cells = [f"{cell(weights, k, 3)}<small>accuracy {cell(accuracies, k, 3)}</small>" for k in range(len(weights))]
        lines.append(f"<tr><th>{as_html(name)}</th>{''.join(f'<td>{text}</td>' for text in cells)}</tr>")
    temperatures = "".join(f"<td>{cell(combination.temperatures, k, 2)}</td>" for k in range(len(combination.classes)))
    lines.append(f"<tr><th>temperature</th>{temperatures}</tr>")
    hint = "Weights ln(a / (1 - a)) over their sum, a the accuracy on held-out training exams; none of these is scored."
    return (
        f"<h2>How the parts are weighed</h2><p class='hint'>{hint}</p><div class='scroll'><table><thead><tr><th></th>"
        f"{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )
