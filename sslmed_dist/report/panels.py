"""Pictures of analyses as SVG: panels of curves or points, with the same bytes for the same numbers."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sslmed_dist.report.plots import COLOURS, LIGHT, Curve, draw_line, new_figure, png

SIDE = (3.6, 2.9)  # inches of one panel


@dataclass(frozen=True)
class Panel:
    """One panel: its title, the names of its axes, and its curves.

    ``points``: a mark at every place and no line between them. ``level``: a dashed line at this height. ``log``: the
    upright axis is logarithmic. ``ticks``: names of the places 0, 1, ... of an axis that has no numbers.
    """

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    points: bool = False
    level: float | None = None
    log: bool = False
    ticks: Sequence[str] = ()


def curve(label: str, points: Iterable[tuple[float, float]]) -> Curve:
    """A curve through the points (x, y)."""
    pairs = list(points)
    return Curve(label, (([x for x, _ in pairs], [y for _, y in pairs]),))


def svg(panels: Sequence[Panel], heading: str, columns: int = 3) -> bytes:
    """The panels in rows of at most ``columns`` under one ``heading``, as an SVG on white."""
    return drawn(panels, heading, columns, "svg")


def drawn(panels: Sequence[Panel], heading: str, columns: int, kind: Literal["svg", "png"]) -> bytes:
    """As ``svg``, in the format ``kind``."""
    import matplotlib

    across = min(columns, len(panels))
    down = -(-len(panels) // across)
    style = {"svg.hashsalt": "sslmed", "svg.fonttype": "none", "font.size": 8.5, "axes.spines.top": False}
    style |= {"axes.spines.right": False, "legend.frameon": False, "axes.edgecolor": LIGHT.muted}
    with matplotlib.rc_context(style):
        figure = new_figure((SIDE[0] * across, SIDE[1] * down + 0.25 + 0.15 * len(heading.splitlines())))
        grid = list(figure.subplots(down, across, squeeze=False).flat)
        for axes, panel in zip(grid, panels, strict=False):
            draw(axes, panel)
        for axes in grid[len(panels) :]:
            axes.axis("off")
        figure.suptitle(heading, fontsize=9)
        if kind == "png":
            return png(figure, 150, transparent=False)
        buffer = io.BytesIO()
        # Neither a date nor a version, so that the same numbers are the same file.
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        return buffer.getvalue()


def draw(axes: Any, panel: Panel) -> None:
    """One panel."""
    for index, curve in enumerate(panel.curves):
        colour = COLOURS[index % len(COLOURS)]
        if panel.points or panel.ticks:
            for number, (x, y) in enumerate(curve.runs):
                size = 3 if panel.points else 6
                axes.plot(x, y, ".", color=colour, ms=size, label=curve.label if number == 0 else None)
        else:
            draw_line(axes, curve, colour)
        draw_spread(axes, curve, colour, bars=panel.points or bool(panel.ticks))
    if panel.level is not None:
        axes.axhline(panel.level, color=LIGHT.muted, lw=0.8, ls="--")
    if panel.log:
        axes.set_yscale("log")
    if panel.ticks:
        axes.set_xticks(range(len(panel.ticks)), panel.ticks, rotation=30, ha="right")
        axes.margins(x=0.1)
    axes.set_title(panel.title, fontsize=8.5)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    axes.grid(color=LIGHT.grid, linewidth=0.6)
    axes.set_axisbelow(True)
    if len(panel.curves) > 1:
        axes.legend(fontsize=7)


def draw_spread(axes: Any, curve: Curve, colour: str, *, bars: bool) -> None:
    """The interval at each place: a bar, or a band where the curve is a line through several places."""
    if curve.spread is None:
        return
    x, low, high = curve.spread
    if bars or len(x) == 1:
        axes.vlines(x, low, high, color=colour, lw=2.2, alpha=0.35)
    else:
        axes.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
