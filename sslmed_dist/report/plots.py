"""Plots of the report: training curves and forest plots. matplotlib is imported when something is drawn."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Okabe and Ito's colours, which the colour-blind can tell apart; the blue is lighter on a dark page.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C6D31", "#7F7F7F")
ARM_COLOURS = {
    "metadata": "#8C8C6A",
    "raw_pixels": "#9AA0A6",
    "copy_mask": "#B7A99A",
    "random": "#7F7F7F",
    "labels": "#A0785A",
    "local": "#E69F00",
    "federated": "#0072B2",
    "best_round": "#4C8BB8",
    "pooled": "#009E73",
    "encoder": "#0072B2",
    "momentum": "#CC79A7",
}
DARKER_TO_LIGHTER = {"#0072B2": "#56B4E9", "#8C6D31": "#C9A968", "#7F7F7F": "#A5A5A5", "#56B4E9": "#9AD4F5"}
GREY = "#808080"  # legible on white and on black: contact sheets are drawn once for both schemes


@dataclass(frozen=True)
class Theme:
    """Colours of the ink for a light or a dark page; the background stays transparent."""

    text: str
    muted: str
    grid: str
    dark: bool

    def colour(self, name: str) -> str:
        """A colour of the palette as this theme shows it."""
        return DARKER_TO_LIGHTER.get(name, name) if self.dark else name


LIGHT = Theme(text="#1f2328", muted="#59636e", grid="#d9dee3", dark=False)
DARK = Theme(text="#e6edf3", muted="#9aa4af", grid="#343b44", dark=True)

Draw = Callable[[Any, Theme], None]


@dataclass(frozen=True)
class Curve:
    """One curve: ``x`` and ``y`` of each run (seed); runs are drawn thin, their mean thick where they share x.

    ``spread`` of panels: at each of its ``x`` the lower and the upper end of an interval.
    """

    label: str
    runs: tuple[tuple[Sequence[float], Sequence[float]], ...]
    spread: tuple[Sequence[float], Sequence[float], Sequence[float]] | None = None


@dataclass(frozen=True)
class Dot:
    """One row of a forest plot; ``each`` are the values of single runs, drawn small."""

    label: str
    arm: str
    value: float | None
    low: float | None
    high: float | None
    each: tuple[float, ...] = ()


def plot(draw: Draw, size: tuple[float, float]) -> tuple[bytes, bytes]:
    """The same plot for a light and a dark page: (PNG, PNG). ``size`` in inches, narrow enough for a phone."""
    return render(draw, size, LIGHT), render(draw, size, DARK)


def render(draw: Draw, size: tuple[float, float], theme: Theme) -> bytes:
    """One PNG with a transparent background."""
    import matplotlib

    style = {
        "font.size": 9.5, "text.color": theme.text, "axes.labelcolor": theme.muted, "axes.edgecolor": theme.grid,
        "xtick.color": theme.muted, "ytick.color": theme.text, "axes.spines.top": False, "axes.spines.right": False,
        "grid.color": theme.grid, "grid.linewidth": 0.6, "legend.frameon": False, "legend.labelcolor": theme.text,
        "axes.formatter.useoffset": False,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure = new_figure(size)
        axes = figure.subplots()
        draw(axes, theme)
        return png(figure, 200)


def new_figure(size: tuple[float, float]) -> Any:
    """A figure of ``size`` inches that draws into memory (Agg), whatever display there is."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Any, dpi: int, *, transparent: bool = True) -> bytes:
    """PNG bytes, the same for the same picture: no date, no version inside. ``transparent``: without the figure's own
    background."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, transparent=transparent, metadata={"Software": None})
    return buffer.getvalue()


def curves(lines: Sequence[Curve], x_label: str) -> tuple[bytes, bytes]:
    """A line plot of one measure by step or round: (PNG for a light page, PNG for a dark one)."""

    def draw(axes: Any, theme: Theme) -> None:
        for line_index, line in enumerate(lines):
            colour = theme.colour(COLOURS[line_index % len(COLOURS)])
            draw_line(axes, line, colour)
        axes.set_xlabel(x_label)
        axes.grid(axis="y")
        axes.tick_params(length=0)
        axes.margins(x=0.02)
        if 1 < len(lines) <= len(COLOURS):
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, handlelength=1.2, fontsize=8.5)

    rows = -(-len(lines) // 3) if 1 < len(lines) <= len(COLOURS) else 0
    return plot(draw, (4.4, 2.5 + 0.22 * rows))


def draw_line(axes: Any, line: Curve, colour: str) -> None:
    """The runs of one curve. Several runs that share x are drawn thin with their mean thick on top, others thick. Short
    runs have markers, so that single points can be seen."""
    shared = all(list(x) == list(line.runs[0][0]) for x, _ in line.runs)
    several = len(line.runs) > 1
    for run_index, (x, y) in enumerate(line.runs):
        label = line.label if run_index == 0 and not (several and shared) else None
        thin = several and shared
        marker = "o" if len(x) < 12 else None
        axes.plot(
            x, y, color=colour, lw=0.7 if thin else 1.6, alpha=0.4 if thin else 1, label=label, marker=marker, ms=3
        )
    if several and shared:
        columns = zip(*(y for _, y in line.runs), strict=True)
        mean = [sum(column) / len(line.runs) for column in columns]
        axes.plot(line.runs[0][0], mean, color=colour, lw=1.8, label=line.label)


def forest(blocks: Mapping[str, Sequence[Dot]], *, zero: bool = False) -> tuple[bytes, bytes]:
    """A forest plot: one block of rows per site, in it a dot and its interval for each arm. ``zero`` draws a line at 0,
    where there is no difference. Two PNGs as ``plot``."""
    rows = sum(len(dots) for dots in blocks.values()) + 1.3 * len(blocks)

    def draw(axes: Any, theme: Theme) -> None:
        # y runs downwards: a line for the block's title, then one for each arm, then a little room
        y = 0.0
        ticks: list[tuple[float, str, bool]] = []  # (y, label, bold)
        for title, dots in blocks.items():
            ticks.append((y + 0.1, title, True))
            y += 1.1
            for dot in dots:
                draw_dot(axes, dot, y, theme)
                ticks.append((y, dot.label, False))
                y += 1
            y += 0.2
        axes.set_yticks([tick_y for tick_y, _, _ in ticks], [label for _, label, _ in ticks])
        for label, (_, _, bold) in zip(axes.get_yticklabels(), ticks, strict=True):
            label.set(fontweight="bold" if bold else "normal", color=theme.text if bold else theme.muted)
        axes.set_ylim(y - 0.3, -0.5)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.08)
        if zero:
            axes.axvline(0, color=theme.muted, lw=1)

    return plot(draw, (4.4, 0.45 + 0.235 * rows))


def draw_dot(axes: Any, dot: Dot, y: float, theme: Theme) -> None:
    """One row of a forest plot; an arm without a value gets the words "no value"."""
    colour = theme.colour(ARM_COLOURS.get(dot.arm, COLOURS[0]))
    if dot.value is None:
        axes.text(0.02, y, "no value", transform=axes.get_yaxis_transform(), color=theme.muted, va="center", fontsize=8)
        return
    if dot.low is not None and dot.high is not None:
        axes.plot([dot.low, dot.high], [y, y], color=colour, lw=2.2, alpha=0.55, solid_capstyle="round")
    axes.plot(dot.each, [y] * len(dot.each), "|", color=colour, ms=6, mew=1)
    axes.plot([dot.value], [y], "o", color=colour, ms=6)


def histograms(edges: Sequence[float], counts: Mapping[str, Sequence[int]], x_label: str) -> tuple[bytes, bytes]:
    """Densities of several histograms over the same bins, one outline each; one without a count is left out.

    ``edges`` has one number more than each of the ``counts``. Empty bins at both ends are cut off. Two PNGs as
    ``plot``.
    """
    shown = {label: values for label, values in counts.items() if sum(values)}
    filled_bins = [index for values in shown.values() for index, count in enumerate(values) if count]

    def draw(axes: Any, theme: Theme) -> None:
        for series_index, (label, values) in enumerate(shown.items()):
            colour, total = theme.colour(COLOURS[series_index]), sum(values)
            # a density integrates to 1: the count's share over the bin's width
            density = [n / total / (right - left) for n, left, right in zip(values, edges, edges[1:], strict=False)]
            axes.stairs(density, edges, color=colour, lw=1.6, label=label)
            axes.stairs(density, edges, color=colour, alpha=0.15, fill=True)
        if filled_bins:
            axes.set_xlim(edges[min(filled_bins)], edges[max(filled_bins) + 1])
        axes.set_ylim(bottom=0)
        axes.set_xlabel(x_label)
        axes.set_ylabel("density")
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=1, handlelength=1.2, fontsize=8.5)

    return plot(draw, (4.4, 3.2))
