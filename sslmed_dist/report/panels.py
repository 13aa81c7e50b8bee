"""Pictures of analyses as SVG: panels of curves or points, with the same bytes for the same numbers."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sslmed_dist.report.plots import COLOURS, LIGHT, Curve, draw_line, new_figure

SIDE = (3.6, 2.9)  # inches of one panel


@dataclass(frozen=True)
class Panel:
    """One panel: its title, the names of its axes, and its curves.

    ``points``: a mark at every place and no line between them. ``level``: a dashed line at this height. ``log``: the
    upright axis is logarithmic.
    """

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    points: bool = False
    level: float | None = None
    log: bool = False


def curve(label: str, points: Iterable[tuple[float, float]]) -> Curve:
    """A curve through the points (x, y)."""
    pairs = list(points)
    return Curve(label, (([x for x, _ in pairs], [y for _, y in pairs]),))


def svg(panels: Sequence[Panel], heading: str, columns: int = 3) -> bytes:
    """The panels in rows of at most ``columns`` under one ``heading``, as an SVG on white."""
    import matplotlib

    across = min(columns, len(panels))
    down = -(-len(panels) // across)
    style = {"svg.hashsalt": "sslmed", "svg.fonttype": "none", "font.size": 8.5, "axes.spines.top": False}
    style |= {"axes.spines.right": False, "legend.frameon": False, "axes.edgecolor": LIGHT.muted}
    with matplotlib.rc_context(style):
        figure = new_figure((SIDE[0] * across, SIDE[1] * down + 0.4))
        grid = figure.subplots(down, across, squeeze=False).flat
        for axes, panel in zip(grid, panels, strict=False):
            draw(axes, panel)
        for axes in list(grid)[len(panels) :]:
            axes.axis("off")
        figure.suptitle(heading, fontsize=9)
        buffer = io.BytesIO()
        # Neither a date nor a version, so that the same numbers are the same file.
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        return buffer.getvalue()


def draw(axes: Any, panel: Panel) -> None:
    """One panel."""
    for index, curve in enumerate(panel.curves):
        colour = COLOURS[index % len(COLOURS)]
        if panel.points:
            for number, (x, y) in enumerate(curve.runs):
                axes.plot(x, y, ".", color=colour, ms=3, label=curve.label if number == 0 else None)
        else:
            draw_line(axes, curve, colour)
    if panel.level is not None:
        axes.axhline(panel.level, color=LIGHT.muted, lw=0.8, ls="--")
    if panel.log:
        axes.set_yscale("log")
    axes.set_title(panel.title, fontsize=8.5)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    axes.grid(color=LIGHT.grid, linewidth=0.6)
    axes.set_axisbelow(True)
    if len(panel.curves) > 1:
        axes.legend(fontsize=7)
