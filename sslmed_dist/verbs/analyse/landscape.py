"""``sslmed analyse RUN landscape``: the Polyak-Lojasiewicz ratio along training, and cuts through the loss."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslmed_dist.analysis import curvature
from sslmed_dist.analysis import landscape as cuts
from sslmed_dist.arguments import require_least
from sslmed_dist.atomic_files import sha256
from sslmed_dist.printable import plural
from sslmed_dist.report.panels import Panel, curve
from sslmed_dist.report.plots import Curve
from sslmed_dist.verbs.analyse.subject import Answer, Precision, Subject

SAME = 1e-4  # of a loss, or of 1: two ways to compute it differ by rounding alone
CHANGES = (
    "what does not train (a queue, a bank, a teacher, a temperature of the epoch) changes the loss between "
    "checkpoints, so each has a loss of its own: no ratio to the lowest of them, and the way to the next one keeps "
    "what is of the first"
)
MOST_POINTS = 1001
REACH = 4.0  # learning rates along the negative gradient, and as far against it


def landscape(
    asked: Sequence[Subject],
    *,
    which: str = "all",
    samples: int = 512,
    points: int = 17,
    precision: Precision = "float32",
) -> Answer:
    """For every checkpoint ``which`` of every run, on a keyed batch of ``samples``: loss, squared gradient and the
    ratio 1/2 |gradient|^2 / (L - L*) of thesis Eq. 5.54, once with the lowest loss of these checkpoints as L*, which
    makes it too large, and once with the value no embedding falls below, where that is known, which makes it too
    small. The loss at ``points`` places along the gradient, in learning rates of the step, and from each checkpoint to
    the next, with all that does not train (a queue, a teacher, a temperature of the epoch) as it was at the first of
    the two. Where that changes the loss, checkpoints have losses of their own, and the lowest one is no L* of another:
    then there is no first ratio, and a line says so.
    """
    require_least("points", points, 2)
    if points > MOST_POINTS:
        raise ValueError(f"points: expected 2 to {MOST_POINTS}, each of them a pass over the batch, got {points}")
    rows, panels, lines = [], [], []
    for subject in asked:
        files = subject.files(which)
        at = [kept(subject, file, after, samples, points, precision) for file, after in pairs(files)]
        lowest = min(it["loss"] for it in at)
        changes = changed(at)
        for it in at:
            it["ratio_lowest"] = (
                None if changes else cuts.polyak_lojasiewicz(it["squared_gradient"], it["loss"] - lowest)
            )
            floor = it["floor"]
            it["ratio_floor"] = (
                None if floor is None else cuts.polyak_lojasiewicz(it["squared_gradient"], it["loss"] - floor)
            )
        rows += [row for it in at for row in rows_of(subject.label, it)]
        panels += panels_of(subject.label, at, changes)
        lines += [said(subject.label, it) for it in at]
        lines += [f"{subject.label}: {CHANGES}"] * changes
    return Answer(f"Landscape of the loss of {plural(samples, 'sample')}", rows, panels, lines)


def changed(at: Sequence[Mapping[str, Any]]) -> bool:
    """Whether any checkpoint's loss at the parameters of the next one is another than that one's own."""
    ends = [(it["to_next"][-1][1], after["loss"]) for it, after in zip(at, at[1:], strict=False) if it["to_next"]]
    return any(abs(end - own) > SAME * max(1.0, abs(own)) for end, own in ends)


def pairs(files: Sequence[Path]) -> list[tuple[Path, Path | None]]:
    """Each checkpoint with the one after it; the last with none."""
    return list(zip(files, [*files[1:], None], strict=True))


def kept(
    subject: Subject, file: Path, after: Path | None, samples: int, points: int, precision: Precision
) -> dict[str, Any]:
    """What is known of one checkpoint, computed where it was not before."""
    following = None if after is None else [after.stem, sha256(after)]
    question = {"samples": samples, "points": points, "precision": precision, "next": following}
    return subject.kept("landscape", file, question, lambda: computed(subject, file, after, samples, points, precision))


def computed(
    subject: Subject, file: Path, after: Path | None, samples: int, points: int, precision: Precision
) -> dict[str, Any]:
    """Loss, gradient and both cuts of one checkpoint, in plain data."""
    point = subject.point(file, samples, precision)
    loss = point.loss()
    slope = curvature.gradient(loss, point.parameters)
    origin = flat(point.parameters)
    steps = torch.linspace(-REACH, REACH, points, dtype=torch.float64).tolist()
    rate = point.lr or 0.0
    down = cuts.along(point.loss, point.parameters, origin, -rate * slope, steps) if rate else []
    between: list[float] = []
    part = torch.linspace(0.0, 1.0, points, dtype=torch.float64).tolist()
    if after is not None:
        way = flat(subject.point(after, samples, precision).parameters) - origin
        between = cuts.along(point.loss, point.parameters, origin, way, part)
    objective = getattr(point.method, "loss", None)
    return {
        "step": point.step,
        "lr": point.lr,
        "loss": float(loss.detach()),
        "squared_gradient": float(slope.double().square().sum()),
        "floor": cuts.lowest_value(objective, samples) if isinstance(objective, torch.nn.Module) else None,
        "along_gradient": [list(pair) for pair in zip(steps, down, strict=False)],
        "to_next": [list(pair) for pair in zip(part, between, strict=False)],
    }


def flat(parameters: Sequence[Tensor]) -> Tensor:
    """All values one after another, (P,)."""
    return torch.cat([it.detach().reshape(-1) for it in parameters])


def rows_of(label: str, it: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for the checkpoint, and one for every place of its two cuts."""
    own = {"run": label, "step": it["step"], "kind": "checkpoint", "at": None, "loss": it["loss"]}
    names = ("squared_gradient", "floor", "ratio_lowest", "ratio_floor")
    rows = [own | {name: it[name] for name in names}]
    for kind in ("along_gradient", "to_next"):
        rows += [own | {"kind": kind, "at": at, "loss": loss} | dict.fromkeys(names) for at, loss in it[kind]]
    return rows


def panels_of(label: str, at: Sequence[dict[str, Any]], changes: bool) -> list[Panel]:
    """Three panels of a run: the ratio along training, and the two cuts. ``changes``: ``changed``."""
    way = f"{label}: to the next checkpoint{', with the state of the first' if changes else ''}"
    names = {"ratio_lowest": "L* the lowest here", "ratio_floor": "L* no embedding reaches"}
    series = {text: [(it["step"], it[key]) for it in at if it[key] is not None] for key, text in names.items()}
    curves = [curve(text, pairs) for text, pairs in series.items() if pairs]
    return [
        Panel(f"{label}: ratio", "step", "1/2 |gradient|² / (L - L*)", curves, log=bool(curves)),
        Panel(f"{label}: along the gradient", "learning rates down", "loss", cut_curves(at, "along_gradient")),
        Panel(way, "part of the way", "loss", cut_curves(at, "to_next")),
    ]


def cut_curves(at: Sequence[dict[str, Any]], kind: str) -> list[Curve]:
    """A curve for every checkpoint that has this cut."""
    return [curve(f"step {it['step']}", it[kind]) for it in at if it[kind]]


def said(label: str, it: dict[str, Any]) -> str:
    """The checkpoint in one line."""
    shown = {key: "unknown" if it[key] is None else f"{it[key]:.3g}" for key in ("ratio_floor", "ratio_lowest")}
    return (
        f"{label} step {it['step']}: loss {it['loss']:.4f}, squared gradient {it['squared_gradient']:.3g}, ratio "
        f"between {shown['ratio_floor']} and {shown['ratio_lowest']}"
    )
