"""How the labels of a multi-label set go together: joint counts, SCUMBLE, and the concurrence plot.

SCUMBLE (Charte et al. 2014, "Concurrence among imbalanced labels and its influence on multilabel resampling
algorithms", Eq. 4) says how often rare labels stand beside frequent ones; resampling helps little where they do.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sslmed_dist.atomic_files import writing


@dataclass(frozen=True)
class LabelDescription:
    """N samples with L labels, of which those with a missing label are left out.

    names    of the labels
    joint    combination of positive labels -> samples that have exactly these, the most frequent first
    counts   positive samples of each label; ir: how many times rarer it is than the most frequent one
    scumble  mean over samples; cv: their standard deviation (n - 1) over the mean, NaN where the mean is 0
    by_label  mean SCUMBLE of the samples that have the label, NaN for a label without any
    left_out  samples of which a label is missing
    """

    names: tuple[str, ...]
    joint: Mapping[tuple[str, ...], int]
    counts: tuple[int, ...]
    ir: tuple[float, ...]
    scumble: float
    cv: float
    by_label: tuple[float, ...]
    left_out: int

    def lines(self) -> list[str]:
        """The description in words."""
        total = sum(self.joint.values())
        combined = ", ".join(f"{' + '.join(names) or 'none'} {count}" for names, count in self.joint.items())
        labels = "; ".join(
            f"{name} {count} ({count / max(total, 1):.1%}), imbalance {ir:.3g}, SCUMBLE {value:.4f}"
            for name, count, ir, value in zip(self.names, self.counts, self.ir, self.by_label, strict=True)
        )
        left_out = f"; {self.left_out} left out, of which a label is missing" if self.left_out else ""
        return [
            f"labels that stand together: {combined} (of {total}{left_out})",
            f"labels: {labels}",
            f"SCUMBLE: {self.scumble:.7f}, its coefficient of variation {self.cv:.6f}",
        ]


def describe_labels(labels: Tensor, names: Sequence[str]) -> LabelDescription:
    """The description of ``labels``, float (N, L) of 0, 1 and NaN. ``ValueError`` for other labels, or when none is
    complete."""
    if labels.ndim != 2 or labels.shape[1] != len(names):
        raise ValueError(f"labels: expected one column for each of {len(names)} names, got shape {tuple(labels.shape)}")
    complete = labels[~labels.isnan().any(1)].double()  # (N, L)
    if not len(complete):
        raise ValueError("labels: no sample has all of its labels")
    combinations = Counter(
        tuple(name for name, value in zip(names, row, strict=True) if value) for row in complete.tolist()
    )
    counts = complete.sum(0)  # (L,)
    ir = counts.max() / counts  # (L,), infinite for a label without a sample
    scumble = scumble_of(complete, ir)  # (N,)
    mean = float(scumble.mean())
    deviation = float(scumble.std()) if len(scumble) > 1 else math.nan
    by_label = [float(scumble[complete[:, k] > 0].mean()) if counts[k] else math.nan for k in range(len(names))]
    return LabelDescription(
        names=tuple(names),
        joint=dict(sorted(combinations.items(), key=lambda item: (-item[1], item[0]))),
        counts=tuple(int(count) for count in counts),
        ir=tuple(ir.tolist()),
        scumble=mean,
        cv=deviation / mean if mean else math.nan,
        by_label=tuple(by_label),
        left_out=len(labels) - len(complete),
    )


def scumble_of(labels: Tensor, ir: Tensor) -> Tensor:
    """SCUMBLE of each sample, float64 (N,): 1 - (geometric mean) / (arithmetic mean) of the imbalance ``ir`` (L,) of
    its positive ``labels`` (N, L). 0 for a sample without any."""
    active = labels > 0
    number = active.sum(1).clamp_min(1)  # (N,)
    arithmetic = torch.where(active, ir, 0.0).sum(1) / number
    geometric = torch.exp(torch.where(active, ir.log(), 0.0).sum(1) / number)
    return torch.where(active.any(1), 1.0 - geometric / arithmetic, 0.0)


def concurrence_plot(described: LabelDescription, path: Path, title: str = "") -> Path:
    """Draw which labels stand together into the image file ``path``, and return it: an arc for each label, as long as
    its number of samples, and a ribbon between two labels, as wide as the number of samples that have both.
    ``ValueError`` where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("the plot needs matplotlib: pip install 'sslmed-dist[report]'") from None
    figure = Figure(figsize=(5.0, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(projection=None)
    axes.set_aspect("equal")
    axes.axis("off")
    arcs = label_arcs(described)
    for k, (name, (start, end)) in enumerate(zip(described.names, arcs, strict=True)):
        colour = f"C{k % 10}"
        turn = [start + (end - start) * step / 60 for step in range(61)]
        axes.plot(
            [math.cos(a) for a in turn], [math.sin(a) for a in turn], color=colour, linewidth=8, solid_capstyle="butt"
        )
        middle = (start + end) / 2
        label = f"{name} {described.counts[k]}"
        axes.text(1.2 * math.cos(middle), 1.2 * math.sin(middle), label, ha="center", va="center")
    used = [start for start, _ in arcs]
    together = pairs(described)
    for one, other, count in together:
        ends = []
        for k in (one, other):
            # a sample with three labels stands in two ribbons: where all do not fit on the arc they are made narrower
            whole = max(described.counts[k], sum(number for a, b, number in together if k in (a, b)))
            width = (arcs[k][1] - arcs[k][0]) * count / whole
            ends.append((used[k], used[k] + width))
            used[k] += width
        axes.fill(*ribbon(*ends), color=f"C{one % 10}", alpha=0.35, linewidth=0)
    axes.set_title(title)
    axes.set_xlim(-1.4, 1.4)
    axes.set_ylim(-1.3, 1.3)
    with writing(path) as file:
        figure.savefig(file, format=path.suffix.lstrip(".") or "png", dpi=150, metadata={})
    return path


def label_arcs(described: LabelDescription) -> list[tuple[float, float]]:
    """The angles (start, end) of each label's arc; lengths are in the ratio of the labels' samples, with gaps."""
    gap, total = 0.15, max(1, sum(described.counts))
    share = (2 * math.pi - gap * len(described.names)) / total
    arcs, angle = [], 0.0
    for count in described.counts:
        arcs.append((angle, angle + count * share))
        angle += count * share + gap
    return arcs


def pairs(described: LabelDescription) -> list[tuple[int, int, int]]:
    """(label, label, samples that have both) of all pairs that occur."""
    found = []
    for one in range(len(described.names)):
        for other in range(one + 1, len(described.names)):
            both = {described.names[one], described.names[other]}
            count = sum(count for names, count in described.joint.items() if both <= set(names))
            if count:
                found.append((one, other, count))
    return found


def ribbon(first: tuple[float, float], second: tuple[float, float]) -> tuple[list[float], list[float]]:
    """(x, y) of the outline of a ribbon between two arcs of the unit circle, bent through the middle."""
    inner = 0.97

    def bend(start: float, end: float) -> list[tuple[float, float]]:
        points = []
        for step in range(31):
            t = step / 30  # a quadratic curve whose control point is the middle of the circle
            a, b = (1 - t) ** 2 * inner, t**2 * inner
            points.append((a * math.cos(start) + b * math.cos(end), a * math.sin(start) + b * math.sin(end)))
        return points

    def along(start: float, end: float) -> list[tuple[float, float]]:
        angles = [start + (end - start) * step / 30 for step in range(31)]
        return [(inner * math.cos(angle), inner * math.sin(angle)) for angle in angles]

    outline = along(*first) + bend(first[1], second[0]) + along(*second) + bend(second[1], first[0])
    return [x for x, _ in outline], [y for _, y in outline]
