"""A table of ours against published figures, as Markdown and as plain data. No torch."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sslmed_dist.printable import as_markdown, plural
from sslmed_dist.verbs.reproduce.claims import RULE, SEEDS, Verdict, verdicts
from sslmed_dist.verbs.reproduce.table import Table


@dataclass(frozen=True)
class CellFigure:
    """One figure of one cell.

    ``values``     what was measured, by seed (in per cent where the metric is)
    ``seeds``      how many seeds were asked for
    ``state``      why seeds are missing, in words; "" when none is
    ``published``  this table's figure first, then those that the thesis gives elsewhere for the same setting
    ``quoted``     from whom the thesis took the figure
    ``partial``    of which folds the values are the mean, where some are missing
    """

    row: str
    column: str
    metric: str
    values: Mapping[int, float]
    seeds: int
    state: str
    published: tuple[float, ...]
    quoted: str = ""
    partial: str = ""

    @property
    def mean(self) -> float | None:
        """The mean over seeds, None when nothing was measured."""
        return statistics.fmean(self.values.values()) if self.values else None

    @property
    def sd(self) -> float | None:
        """Standard deviation over seeds, None below two."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None

    @property
    def difference(self) -> float | None:
        """Ours minus the table's own figure."""
        return self.mean - self.published[0] if self.mean is not None and self.published else None

    def inside(self, tolerance: float) -> bool | None:
        """Whether ours lies in the range of all published values, widened by ``tolerance`` on both sides."""
        if self.mean is None or not self.published:
            return None
        return min(self.published) - tolerance <= self.mean <= max(self.published) + tolerance


@dataclass(frozen=True)
class Outcome:
    """A table with its lines. ``overrides`` were laid over every cell; ``changing`` are those of them that make it
    another run than the published one."""

    table: Table
    lines: Sequence[CellFigure]
    seeds: int
    overrides: Sequence[str]
    changing: Sequence[str]

    @property
    def verdicts(self) -> list[Verdict]:
        """Of a figure: whether ours shows what it says, by column and claim."""
        return verdicts(self.table.claims, self.lines)


def text(outcome: Outcome) -> str:
    """The whole document as Markdown."""
    table = outcome.table
    parts = [f"# {table.name}: {table.title}"]
    if outcome.changing:
        parts.append(f"**Not the published setting: made with {', '.join(outcome.changing)}.**")
    harmless = [override for override in outcome.overrides if override not in outcome.changing]
    if harmless:
        parts.append(f"Overrides that leave the figures as they are: {', '.join(harmless)}.")
    if table.note:
        parts.append(table.note)
    if table.message:
        parts += [f"**The published picture says:** {table.message}", *verdict_text(outcome)]
    parts.append(
        "Published: the figure of this table, then others that the thesis gives for the same setting. Difference: ours "
        f"minus this table's figure. Inside: within the published range widened by {table.tolerance:g} on both sides."
    )
    head = ["row", "column", "metric", "ours", "published", "difference", "inside"]
    lines = [head, ["---"] * len(head), *(words(line, table.tolerance) for line in outcome.lines)]
    parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    # The legend of the marks, each where it is used; a dictionary keeps each source once, in order.
    sources = {f"{line.row} / {line.column}: {line.quoted}": None for line in outcome.lines if line.quoted}
    if sources:
        parts.append("\n".join(["(q) quoted by the thesis, not measured in it:", *(f"- {it}" for it in sources)]))
    if any(line.difference is not None and len(line.values) < SEEDS for line in outcome.lines):
        parts.append(f"(s) fewer than {SEEDS} seeds: the difference is not called one.")
    if any(line.partial for line in outcome.lines):
        parts.append("(f) not all folds: the published figure is the mean over all of them.")
    return "\n\n".join(parts) + "\n"


def verdict_text(outcome: Outcome) -> list[str]:
    """Of a figure: the verdicts with their differences, and by which rule; or that no run is there to draw."""
    if not outcome.verdicts:
        return ["**Ours:** not drawn, for no run of it is finished."]
    lines = []
    for it, line in zip(outcome.verdicts, verdict_lines(outcome), strict=True):
        lines += [f"- {as_markdown(line)}", *(f"    - {as_markdown(words)}" for words in it.differences)]
    return ["\n".join(lines), RULE]


def verdict_lines(outcome: Outcome) -> list[str]:
    """Of a figure: every verdict in a line."""
    return [f"Ours, {it.column}: {it.claim}: {it.answer}" for it in outcome.verdicts]


def words(line: CellFigure, tolerance: float) -> list[str]:
    """The cells of one line of the table as they are printed."""
    marks = (" (s)" if len(line.values) < SEEDS else "") + (" (f)" if line.partial else "")
    inside = line.inside(tolerance)
    return [
        *(as_markdown(name) for name in (line.row, line.column, line.metric)),
        as_markdown(ours(line)),
        (" / ".join(f"{value:g}" for value in line.published) or "none") + (" (q)" if line.quoted else ""),
        "" if line.difference is None else f"{line.difference:+.2f}{marks}",
        "" if inside is None else ("yes" if inside else "no"),
    ]


def ours(line: CellFigure) -> str:
    """``81.20 ± 0.31 (3 seeds)``, ``81.20 (1 of 3 seeds; not run)``, ``not run``."""
    if line.mean is None:
        return line.state or "not run"
    sd = "" if line.sd is None else f" \N{PLUS-MINUS SIGN} {line.sd:.2f}"
    missing = line.seeds - len(line.values)
    count = (
        f"{len(line.values)} of {plural(line.seeds, 'seed')}; {line.state}" if missing else plural(line.seeds, "seed")
    )
    count += f"; {line.partial}" if line.partial else ""
    return f"{line.mean:.2f}{sd} ({count})"


def tree(outcome: Outcome) -> dict[str, Any]:
    """The same as ``text`` in plain data, for ``table.json``."""
    table = outcome.table
    return {
        "table": table.name,
        "title": table.title,
        "note": table.note,
        "overrides": list(outcome.overrides),
        "published_setting": not outcome.changing,
        "seeds": outcome.seeds,
        "tolerance": table.tolerance,
        **({"message": table.message, "verdicts": [asdict(it) for it in outcome.verdicts]} if table.message else {}),
        "cells": [
            {
                "row": line.row,
                "column": line.column,
                "metric": line.metric,
                "mean": line.mean,
                "sd": line.sd,
                "values": {str(seed): value for seed, value in line.values.items()},
                "state": line.state,
                "partial": line.partial or None,
                "published": list(line.published),
                "quoted": line.quoted or None,
                "difference": line.difference,
                "inside": line.inside(table.tolerance),
            }
            for line in outcome.lines
        ],
    }
