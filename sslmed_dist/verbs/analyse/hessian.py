"""``sslmed analyse RUN hessian``: the spectrum of the loss over all parameters at chosen checkpoints."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslmed_dist import randomness
from sslmed_dist.analysis import curvature
from sslmed_dist.analysis.curvature import Spectrum
from sslmed_dist.analysis.twice import FastTwice
from sslmed_dist.arguments import require_least
from sslmed_dist.printable import note, plural
from sslmed_dist.report.panels import Panel
from sslmed_dist.report.plots import Curve
from sslmed_dist.training.allocation import keep_freed_memory
from sslmed_dist.verbs.analyse.subject import DTYPES, Answer, Point, Precision, Subject, free_memory, subjects

# What a product makes and drops again, and what the allocator keeps of it, as a multiple of what the graph keeps. The
# peaks of 64, 128 and 512 samples of a ResNet-9 were 4.1, 3.9 and 2.4 times the graph.
PASSING = 3.2


def hessian(
    asked: Sequence[Subject],
    *,
    which: str = "last",
    samples: int = 512,
    ritz: int = 100,
    precision: Precision = "float32",
) -> Answer:
    """``ritz`` Ritz values of every run at the checkpoints ``which``, on a keyed batch of ``samples``.

    The share that is negative, the largest against 1 / learning rate, and the rate of each eigendirection. A checkpoint
    that was answered before is not computed again. ``ValueError`` where memory would not do.
    """
    require_least("ritz", ritz, 1)
    rows: list[dict[str, Any]] = []
    panels, lines = [], []
    for subject in asked:
        curves = []
        for file in subject.files(which):
            answer = kept(subject, file, samples, ritz, precision)
            spectrum = spectrum_of(answer)
            lines.append(said(f"{subject.label} {file.stem}", spectrum, answer["lr"]))
            place = list(range(len(spectrum.values)))
            curves.append(Curve(f"step {answer['step']}", ((place, spectrum.values.tolist()),)))
            rows += rows_of(subject.label, answer["step"], answer["lr"], spectrum)
        panels.append(Panel(subject.label, "Ritz value, in order", "curvature", curves, points=True, level=0.0))
    return Answer(f"Hessian of the loss of {plural(samples, 'sample')}, {ritz} Lanczos steps", rows, panels, lines)


def kept(subject: Subject, file: Path, samples: int, ritz: int, precision: Precision) -> dict[str, Any]:
    """The spectrum of one checkpoint in plain data, computed where it was not before."""
    question = {"samples": samples, "ritz": ritz, "precision": precision}
    return subject.kept("hessian", file, question, lambda: answered(subject, file, samples, ritz, precision))


def summary(
    folder: Path, root: str | None, *, samples: int = 512, ritz: int = 100, precision: Precision = "float32"
) -> dict[str, Any]:
    """Figures of the spectrum at the run's last checkpoint: the ``largest`` and ``smallest`` Ritz value, the
    ``negative_share`` of them, and all ``values``. ``root``: where the data is now, None for where it was."""
    subject = replace(subjects([folder])[0], root=root)
    answer = kept(subject, subject.files("last")[0], samples, ritz, precision)
    spectrum = spectrum_of(answer)
    values = spectrum.values
    return {
        "largest": float(values.max()),
        "smallest": float(values.min()),
        "negative_share": spectrum.negative_share,
        "values": values.tolist(),
    }


def spectrum_of(answer: Mapping[str, Any]) -> Spectrum:
    """The spectrum from plain data."""
    return Spectrum(*(torch.tensor(answer[key], dtype=torch.float64) for key in ("values", "weights", "errors")))


def answered(subject: Subject, file: Path, samples: int, ritz: int, precision: Precision) -> dict[str, Any]:
    """The spectrum of one checkpoint, in plain data."""
    point = subject.point(file, samples, precision)
    if point.parameters[0].device.type == "cpu":
        keep_freed_memory()  # every product makes and drops the same large tensors
    start = first_vector(point, DTYPES[precision])
    if ritz > len(start):
        raise ValueError(f"ritz: expected 1 to {len(start)}, the parameters of {subject.folder}, got {ritz}")
    need = needed(point, samples, min(ritz, len(start)))
    note(f"{subject.label} {file.stem}: {len(start):,} parameters, at most {need / 2**20:,.0f} MiB on top")
    if point.parameters[0].device.type == "cpu" and need > free_memory():
        raise ValueError(
            f"{subject.folder}: {plural(samples, 'sample')} and {ritz} Ritz values need {need / 2**20:,.0f} MiB, "
            f"{free_memory() / 2**20:,.0f} are free; allowed: smaller samples= or ritz="
        )
    spectrum = curvature.lanczos(curvature.hessian_product(loss_of(point), point.parameters), start, ritz)
    parts = {"values": spectrum.values, "weights": spectrum.weights, "errors": spectrum.errors}
    return {"step": point.step, "lr": point.lr, **{key: value.tolist() for key, value in parts.items()}}


def loss_of(point: Point, samples: int | None = None) -> Tensor:
    """The loss of the batch or of its first ``samples``, in a graph that is quickly differentiated twice."""
    with FastTwice():
        return point.loss(samples)


def first_vector(point: Point, dtype: torch.dtype) -> Tensor:
    """The keyed start vector (P,), on the parameters' device."""
    size = sum(it.numel() for it in point.parameters)
    drawn = randomness.normal(point.seed, "lanczos", torch.arange(size))
    return drawn.to(point.parameters[0].device, dtype)


def needed(point: Point, samples: int, ritz: int) -> int:
    """Bytes that a spectrum takes at most: the basis, and the graph of the gradient as three smaller batches foretell
    it (what belongs to images grows with the batch, what belongs to pairs with its square)."""
    sizes = sorted({max(2, samples // 16), max(3, samples // 8), max(4, samples // 4)})
    sizes = [size for size in sizes if size <= samples]
    kept = [curvature.kept_bytes(partial(loss_of, point, size), point.parameters) for size in sizes]
    powers = torch.stack([torch.tensor(sizes, dtype=torch.float64) ** k for k in range(len(sizes))], dim=1)
    terms = torch.linalg.solve(powers, torch.tensor(kept, dtype=torch.float64)).clamp_min(0.0)
    graph = float((terms * torch.tensor([float(samples) ** k for k in range(len(sizes))])).sum())
    size = sum(it.numel() for it in point.parameters) * point.parameters[0].element_size()
    return int(graph * (1.0 + PASSING)) + (ritz + 6) * size


def said(name: str, spectrum: Spectrum, lr: float | None) -> str:
    """The spectrum in one line."""
    largest, smallest = float(spectrum.values.max()), float(spectrum.values.min())
    against = "learning rate not known" if lr is None else f"{largest * lr:.3g} of 1/lr (lr {lr:.3g})"
    return (
        f"{name}: largest {largest:.4g} ({against}), smallest {smallest:.4g}, {spectrum.negative_share:.0%} of the "
        f"Ritz values negative; by weight {spectrum.negative_weight:.2%} of all eigenvalues surely are"
    )


def rows_of(label: str, step: int, lr: float | None, spectrum: Spectrum) -> list[dict[str, Any]]:
    """A row for each Ritz value."""
    rates = curvature.rates(spectrum, lr)
    numbers = zip(rates, spectrum.weights.tolist(), spectrum.errors.tolist(), strict=True)
    return [
        {"run": label, "step": step, "value": rate.value, "weight": weight, "error": error}
        | {"times_lr": None if lr is None else rate.value * lr, "bound": rate.bound, "factor": rate.factor}
        for rate, weight, error in numbers
    ]
