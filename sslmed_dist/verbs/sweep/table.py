"""What a sweep says at its end: a table, the best trial first, and what the figures do not tell."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from sslmed_dist.printable import as_markdown, duration, plural
from sslmed_dist.report.plain import aligned
from sslmed_dist.verbs.sweep.direction import direction, unlike
from sslmed_dist.verbs.sweep.trial import Worth, is_scalar

Row: TypeAlias = tuple[str, Sequence[str], Worth]  # a trial: its run's name, its values of the keys, its worth


@dataclass(frozen=True)
class SweepTable:
    """``rows`` of equal length, the heads first, and ``notes``; both plain text. ``lower``: the lowest comes first."""

    rows: list[list[str]]
    notes: list[str]
    lower: bool

    def plain(self) -> list[str]:
        """As lines of a terminal."""
        return [*aligned(self.rows), "", *self.notes]

    def markdown(self) -> list[str]:
        """As lines of Markdown."""
        heads, *rows = ["| " + " | ".join(map(as_markdown, row)) + " |" for row in self.rows]
        return [heads, "|" + " --- |" * len(self.rows[0]), *rows, "", *self.notes]


def table_of(folder: Path, keys: Sequence[str], trials: Sequence[Row], metric: str | None, lower: bool) -> SweepTable:
    """The table of ``trials`` of the sweep in ``folder``. ``lower``: lower is better, whatever is known of the metric.
    A note says which is better."""
    measured = [trial for trial in trials if trial[2].value is not None]
    named = metric or next((worth.metric for _, _, worth in measured), "figure")
    ranked = direction(named, lower)
    sign = 1.0 if ranked.lower else -1.0
    measured.sort(key=lambda trial: sign * (trial[2].value or 0.0))
    rest = [trial for trial in trials if trial[2].value is None]
    rows = [[*keys, named, "n", "time", "run"]]
    for name, values, worth in [*measured, *rest]:
        rows.append([*values, figure(worth), str(worth.count or ""), duration(worth.seconds), name])
    told = notes(measured, [worth for _, _, worth in rest], named if is_scalar(metric) else None)
    if measured:
        told[1:1] = [ranked.said, *unlike(metric, keys)]
        told.append(f"On the test split: sslmed evaluate {folder / measured[0][0]} evaluate.test=test")
    return SweepTable(rows, told, ranked.lower)


def figure(worth: Worth) -> str:
    """``0.55 [0.45, 0.65]``; of a trial that is not done, why."""
    if worth.value is None:
        return worth.trouble
    interval = "" if worth.low is None or worth.high is None else f" [{worth.low:.4g}, {worth.high:.4g}]"
    return f"{worth.value:.4g}{interval}"


def notes(measured: Sequence[Row], rest: Sequence[Worth], scalar: str | None) -> list[str]:
    """What the figures are, and what they do not tell. ``measured``: the trials that have a figure, the best one first;
    ``rest``: those without. ``scalar``: the training's own that they were compared by."""
    lines = ["Measured on the validation split, with 5-95 % intervals; one seed each."]
    if scalar is not None:
        lines = [
            f"{scalar}: the training's own last value, of no held-out samples and without interval; one seed each."
        ]
    if len(measured) > 1 and overlap(measured[0][2], measured[1][2]):
        lines.append("The intervals of the two best overlap: this sweep does not tell them apart.")
    of_all = f"of {plural(len(measured) + len(rest), 'trial')}"
    undefined = sum(worth.done for worth in rest)
    if undefined:
        has = "is done and has" if undefined == 1 else "are done and have"
        lines.append(f"{undefined} {of_all} {has} no figure: it is undefined on these samples, as the table says.")
    missing = len(rest) - undefined
    if missing:
        are = "is" if missing == 1 else "are"
        lines.append(f"{missing} {of_all} {are} not done; the same command goes on with them.")
    return lines


def overlap(first: Worth, second: Worth) -> bool:
    """Whether two intervals have a point in common; of figures without one nothing is known."""
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return False
    return first.low <= second.high and second.low <= first.high
