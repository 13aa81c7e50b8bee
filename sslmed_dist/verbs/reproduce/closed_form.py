"""The figures of the thesis that are functions and need no run: ``sslmed reproduce figure-6.2``, 6.3 and 6.6."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from sslmed_dist.analysis.temperature_curves import profile, solutions
from sslmed_dist.atomic_files import write_atomically, write_csv
from sslmed_dist.losses.temperature import Dystress, DystressShifted, Temperature
from sslmed_dist.report.panels import Panel, curve, svg
from sslmed_dist.report.plots import Curve

C = torch.linspace(-1.0, 1.0, 201, dtype=torch.float64)
HIGH, CONSTANTS = 0.2, 6  # of Figure 6.2: the temperature at the ends, and curves a panel


def figure_6_2() -> tuple[list[Panel], list[str]]:
    """Figure 6.2: solutions of Eq. 6.13 for constants between k'- and k'+, at four values of delta K.

    The thesis prints neither delta nor K; only their product enters.
    """
    panels: list[Panel] = []
    fits, every = [0, 0], [0, 0]  # left and right of 0: solutions that slope as published, and all
    for strength in (0.1, 1.0, 10.0, 100.0):
        curves = []
        for constant, tau in solutions(C, strength, HIGH, CONSTANTS):
            there = tau.isfinite()
            curves.append(curve(f"k' {constant:.3g}", zip(C[there].tolist(), tau[there].tolist(), strict=True)))
            for side, (half, sign) in enumerate(((C < 0, -1.0), (C > 0, 1.0))):
                slopes = tau[half & there].diff() * sign
                every[side] += len(slopes) > 0
                fits[side] += len(slopes) > 0 and bool((slopes >= 0).all())
        panels.append(Panel(f"delta K = {strength:g}", "cosine c", "tau", [it for it in curves if it.runs[0][0]]))
    lines = [
        "published: the solutions fall with c left of 0 and rise with it right of 0",
        f"ours: left of 0 {fits[0]} of {every[0]} solutions that exist there fall all the way, right of 0 "
        f"{fits[1]} of {every[1]} rise",
    ]
    return panels, lines


def figure_6_3() -> tuple[list[Panel], list[str]]:
    """Figure 6.3: the temperature of Eq. 6.16 for the ranges of Table 6.14."""
    ranges = ((0.07, 0.1), (0.07, 0.5), (0.07, 0.2), (0.1, 0.2))
    return profiles({f"{low} to {high}": Dystress(low, high) for low, high in ranges}), [
        "published: every range has its lowest temperature at c = 0 and its highest at both ends",
        "ours: the same by construction; c / tau(c) falls where the range is wide (0.07 to 0.5)",
    ]


def figure_6_6() -> tuple[list[Panel], list[str]]:
    """Figure 6.6: the shifted temperatures of Alg. 6.1 for the shifts of Table 6.15."""
    curves: dict[str, Temperature] = {"no shift": Dystress()}
    curves |= {f"shift {shift}": DystressShifted(shift=shift) for shift in (0.2, 0.4, -0.2, -0.4)}
    return profiles(curves), [
        "published: a shift moves the lowest temperature and keeps the highest at both ends",
        "ours: so it is; read literally, Alg. 6.1 puts the lowest at 0.4, 0.3, -0.4 and -0.3 for these shifts",
    ]


def profiles(temperatures: Mapping[str, Temperature]) -> list[Panel]:
    """Two panels: tau(c), and c / tau(c)."""
    shown = {label: profile(it, C) for label, it in temperatures.items()}
    taus = [curve(label, zip(C.tolist(), it.tau.tolist(), strict=True)) for label, it in shown.items()]
    logits = [curve(label, zip(C.tolist(), it.logit.tolist(), strict=True)) for label, it in shown.items()]
    return [Panel("temperature", "cosine c", "tau(c)", taus), Panel("logit", "cosine c", "c / tau(c)", logits)]


FIGURES: Mapping[str, Callable[[], tuple[list[Panel], list[str]]]] = {
    "figure-6.2": figure_6_2,
    "figure-6.3": figure_6_3,
    "figure-6.6": figure_6_6,
}


def draw(name: str, folder: Path) -> tuple[list[str], list[Path]]:
    """Write ``FOLDER/NAME/figure.svg`` and ``figure.csv``. Returns what the thesis's figure says beside ours, and the
    two files."""
    panels, lines = FIGURES[name]()
    files = [folder / name / "figure.svg", folder / name / "figure.csv"]
    write_atomically(files[0], svg(panels, f"{name}, a closed form: no run is behind it", columns=2))
    write_csv(files[1], [row for panel in panels for it in panel.curves for row in rows(panel, it)])
    return [f"{name}: a closed form, no run is behind it", *lines], files


def rows(panel: Panel, it: Curve) -> list[dict[str, str | float]]:
    """A row for each point of a curve."""
    points = zip(*it.runs[0], strict=True)
    return [{"panel": panel.title, "curve": it.label, "c": x, panel.y_label: y} for x, y in points]
