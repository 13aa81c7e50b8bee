"""The picture of a published figure, drawn from the runs of its cells: one function, and a table of ways to draw.

What has no finished run is not drawn. Intervals are those of ``seed_interval``: 95 %, of the mean over seeds.
"""

import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslmed_dist import registry
from sslmed_dist.atomic_files import write_atomically, write_csv
from sslmed_dist.json_files import read_object
from sslmed_dist.report.panels import Panel, curve, drawn
from sslmed_dist.report.plots import Curve
from sslmed_dist.report.runs import SIMILARITY
from sslmed_dist.verbs.analyse.similarity import WORDS, density
from sslmed_dist.verbs.reproduce import published
from sslmed_dist.verbs.reproduce.cell import HESSIAN, INITIAL, Cell
from sslmed_dist.verbs.reproduce.claims import SEEDS
from sslmed_dist.verbs.reproduce.published import CellFigure, Outcome
from sslmed_dist.verbs.reproduce.seed_interval import interval
from sslmed_dist.verbs.reproduce.table import Table

FILES = ("figure.svg", "figure.png", "figure.csv")
AT = re.compile(r"(?P<curve>[^@]+)@(?P<place>-?(?:\d+(?:\.\d*)?|\.\d+))")  # a row that is a place of a curve: MIOv1@0.1
MARKS = "Marks: means over seeds. Bars and bands: 95 % intervals of the mean (Student's t), from three seeds on."
ACROSS, WIDTH = 3, 48  # panels in a row, and letters of a line above each of them


@dataclass(frozen=True)
class Shown:
    """What was measured in one column: its figures that have a value, and its finished cells."""

    column: str
    figures: Sequence[CellFigure]
    cells: Sequence[Cell]

    def rows(self, metric: str) -> list[CellFigure]:
        """The figures of one metric, in the table's order."""
        return [it for it in self.figures if it.metric == metric]

    @property
    def metrics(self) -> list[str]:
        """The names of the metrics, in order."""
        return list(dict.fromkeys(it.metric for it in self.figures))


Draw = Callable[[Shown], list[Panel]]


def by_row(x: str = "") -> Draw:
    """A panel for each metric: a curve for all rows ``NAME@NUMBER`` of one NAME against the number, or where rows have
    other names, a mark for each row. ``x`` is what the number is called."""

    def panels(shown: Shown) -> list[Panel]:
        return [panel(f"{shown.column}: {metric}", shown.rows(metric)) for metric in shown.metrics]

    def panel(title: str, figures: Sequence[CellFigure]) -> Panel:
        places = [AT.fullmatch(it.row) for it in figures]
        if not all(places):
            ticks = [it.row for it in figures]
            curves = [spread("ours", list(map(float, range(len(ticks)))), figures)]
            return Panel(title, "", figures[0].metric, [*curves, *as_published("published", curves[0], figures)],
                         ticks=ticks)  # fmt: skip
        curves = []
        for name in dict.fromkeys(it["curve"] for it in places if it):
            own = [(float(it["place"]), figure) for it, figure in zip(places, figures, strict=True)
                   if it and it["curve"] == name]  # fmt: skip
            own.sort(key=lambda pair: pair[0])
            ours = spread(name, [at for at, _ in own], [figure for _, figure in own])
            curves += [ours, *as_published(f"{name}, published", ours, [figure for _, figure in own])]
        return Panel(title, x, figures[0].metric, curves)

    return panels


def against(metric: str) -> Draw:
    """A panel for each other metric against this one, a mark for each seed, each row in a colour."""

    def panels(shown: Shown) -> list[Panel]:
        x = {it.row: it for it in shown.rows(metric)}
        return [
            Panel(
                f"{shown.column}: {other} against {metric}",
                metric,
                other,
                [mark(x[it.row], it) for it in shown.rows(other) if it.row in x],
                points=True,
            )  # fmt: skip
            for other in shown.metrics
            if other != metric
        ]

    def mark(x: CellFigure, y: CellFigure) -> Curve:
        seeds = sorted(set(x.values) & set(y.values))
        return Curve(x.row, (([x.values[seed] for seed in seeds], [y.values[seed] for seed in seeds]),))

    return panels


def spectrum() -> Draw:
    """A panel for each row: the Ritz values of the loss in order, and those of its further seeds in other colours."""

    def panels(shown: Shown) -> list[Panel]:
        found = []
        for row, cells in by_name(shown).items():
            files = [cell.settings.folder / "evaluate" / HESSIAN for cell in cells]
            values = [read_object(file, {"values": list[float]})["values"] for file in files]
            curves = [curve(f"seed {cell.seed}", enumerate(own)) for cell, own in zip(cells, values, strict=True)]
            found.append(Panel(f"{shown.column}: {row}", "Ritz value, in order", "curvature", curves, True, 0.0))
        return found

    return panels


def histograms() -> Draw:
    """Two panels for each row at its first seed: the similarities of features at the initial weights and at the end."""

    def panels(shown: Shown) -> list[Panel]:
        found = []
        for row, (cell, *_) in by_name(shown).items():
            for stage, name in (("initial weights", INITIAL), ("trained", SIMILARITY)):
                file = cell.settings.folder / "evaluate" / name
                tree = read_object(file, {"bins": list[float], "counts": dict[str, list[int]]})
                curves = [Curve(WORDS[kind], (density(tree["bins"], tree["counts"][kind]),)) for kind in WORDS]
                title = f"{shown.column}: {row}, seed {cell.seed}, {stage}"
                found.append(Panel(title, "cosine similarity", "density", curves))
        return found

    return panels


DRAWINGS: Mapping[str, Callable[..., Draw]] = {
    "by_row": by_row,
    "against": against,
    "spectrum": spectrum,
    "histograms": histograms,
}


def by_name(shown: Shown) -> dict[str, list[Cell]]:
    """The cells of each row, in order."""
    return {row: [cell for cell in shown.cells if cell.row == row] for row in dict.fromkeys(c.row for c in shown.cells)}


def spread(label: str, x: Sequence[float], figures: Sequence[CellFigure]) -> Curve:
    """The means at the places ``x``, with their intervals where there are seeds enough."""
    ends = [(place, interval(list(it.values.values()))) for place, it in zip(x, figures, strict=True)
            if len(it.values) >= SEEDS]  # fmt: skip
    told = [(place, *pair) for place, pair in ends if pair is not None]
    band = tuple(list(side) for side in zip(*told, strict=True)) if told else None
    means = [it.mean for it in figures if it.mean is not None]
    return Curve(label, ((list(x), means),), band)  # type: ignore[arg-type]  # three lists


def as_published(label: str, ours: Curve, figures: Sequence[CellFigure]) -> Iterator[Curve]:
    """The published values beside ours, where there are any."""
    pairs = [(x, it.published[0]) for x, it in zip(ours.runs[0][0], figures, strict=True) if it.published]
    if pairs:
        yield curve(label, pairs)


def check(table: Table) -> Draw:
    """The way a figure is drawn. ``ValueError`` for one there is not, or a metric that a column does not have."""
    where = f"{table.path}: draw"
    registry.check(DRAWINGS, table.draw, where)
    metric = table.draw.get("metric") if isinstance(table.draw, Mapping) else None
    for name, column in table.columns.items():
        if metric is not None and metric not in column.metrics:
            raise ValueError(f"{where}.metric: {metric!r}: column {name} has {', '.join(column.metrics)}")
    wrong = [row for row in table.rows if "@" in row and AT.fullmatch(row) is None]
    if wrong:
        raise ValueError(f"{table.path}: rows: {wrong[0]}: expected a number behind the @, the place on its curve")
    made: Draw = registry.build(DRAWINGS, table.draw, where)
    return made


def draw(outcome: Outcome, cells: Sequence[Cell], folder: Path) -> list[Path]:
    """Write the picture of a figure into ``folder``: ``figure.svg``, ``figure.png`` and ``figure.csv``. ``cells`` are
    the finished ones. Returns the files; none, and an older picture is removed, where nothing was measured."""
    files = [folder / name for name in FILES]
    figures = [it for it in outcome.lines if it.values]
    columns = dict.fromkeys(it.column for it in figures)
    shown = [
        Shown(column, [it for it in figures if it.column == column], [it for it in cells if it.column == column])
        for column in columns
    ]
    way = check(outcome.table)
    panels = [panel for column in shown for panel in way(column)]
    if not panels:
        for file in files:
            file.unlink(missing_ok=True)
        return []
    width = WIDTH * min(ACROSS, len(panels))
    texts = [*words(outcome), *([MARKS] if any(it.spread for panel in panels for it in panel.curves) else [])]
    heading = "\n".join(line for text in texts for line in textwrap.wrap(text, width))
    write_atomically(files[0], drawn(panels, heading, ACROSS, "svg"))
    write_atomically(files[1], drawn(panels, heading, ACROSS, "png"))
    write_csv(files[-1], [row for panel in panels for it in panel.curves for row in rows(panel, it)])
    return files


def words(outcome: Outcome) -> list[str]:
    """What stands above the picture: the title, the published message, and our verdicts."""
    title = f"{outcome.table.name}: {outcome.table.title}"
    if outcome.changing:
        title += f" (not the published setting: made with {', '.join(outcome.changing)})"
    return [title, f"Published: {outcome.table.message}", *published.verdict_lines(outcome)]


def rows(panel: Panel, it: Curve) -> list[dict[str, Any]]:
    """A row for each point of a curve, with the ends of its interval where it has one."""
    ends = {x: pair for x, *pair in zip(*it.spread, strict=True)} if it.spread is not None else {}
    found = []
    for x, y in (pair for run in it.runs for pair in zip(*run, strict=True)):
        low, high = ends.get(x, (None, None))
        place = panel.ticks[int(x)] if panel.ticks else x
        found.append({"panel": panel.title, "curve": it.label, "x": place, "y": y, "low": low, "high": high})
    return found
