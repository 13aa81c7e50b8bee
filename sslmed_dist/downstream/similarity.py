"""Histograms of cosine similarity between views: the same image, the same class, different classes."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

# The most similarities that are in memory at once: 4 M float64 are 32 MB.
CHUNK = 4_000_000
KINDS = ("true_positive", "false_negative", "true_negative")


@dataclass(frozen=True)
class Histogram:
    """Histograms of B bins from -1 to 1, one for each kind of pair. ``edges`` are the B + 1 borders of the bins.
    ``counts`` holds the B counts of each kind, ``means`` its mean similarity (None without a pair).

    A similarity s falls into bin floor((s + 1) B / 2), 1 into the last one.
    """

    edges: tuple[float, ...]
    counts: dict[str, tuple[int, ...]]
    means: dict[str, float | None]

    def pairs(self, kind: str) -> int:
        """Number of pairs of one kind."""
        return sum(self.counts[kind])


def histogram(first: Tensor, second: Tensor, labels: Tensor, bins: int = 100) -> Histogram:
    """Similarities between ``first`` and ``second``, features (N, D) of two views of N images with labels int64 (N,).

    ``true_positive``: (first i, second i), N pairs, the two views of one image. ``false_negative``: (first i, second
    j), i != j, of one class, which a contrastive loss without labels repels all the same. ``true_negative``: the pairs
    of different classes. Together these are all N^2 pairs. They are computed in chunks of rows, so that the memory is
    linear in N. Figure 6.1 of the thesis shows such histograms. ``ValueError`` for other shapes, unlabelled samples or
    no bin.
    """
    if first.ndim != 2 or first.shape != second.shape or labels.shape != first.shape[:1]:
        shapes = ", ".join(str(tuple(rows.shape)) for rows in (first, second, labels))
        raise ValueError(f"histogram: expected features (N, D), (N, D) and one label per sample (N,), got {shapes}")
    if bins < 1 or not len(first) or bool((labels < 0).any()):
        raise ValueError(f"histogram: expected bins >= 1 and labelled samples, got bins {bins}, {len(first)} samples")
    x, y = (functional.normalize(view.double(), dim=1) for view in (first, second))
    labels = labels.to(x.device)
    counts = torch.zeros((len(KINDS), bins), dtype=torch.int64, device=x.device)
    sums = torch.zeros(len(KINDS), dtype=torch.float64, device=x.device)
    for rows in torch.split(torch.arange(len(x), device=x.device), max(1, CHUNK // len(x))):
        similarity = (x[rows] @ y.T).clamp(-1.0, 1.0)  # (chunk, N)
        # the kind of each pair as an index into KINDS: one class or two, and the same image on the diagonal
        kinds = torch.where(labels[rows][:, None] == labels, 1, 2)
        kinds[torch.arange(len(rows), device=x.device), rows] = 0
        bin_index = ((similarity + 1.0) * (bins / 2)).long().clamp(max=bins - 1)
        # one bincount for all kinds: kind k has the numbers k * bins ... (k + 1) * bins - 1
        counts += torch.bincount((kinds * bins + bin_index).flatten(), minlength=len(KINDS) * bins).view_as(counts)
        sums += torch.stack([torch.where(kinds == kind, similarity, 0.0).sum() for kind in range(len(KINDS))])
    sizes = counts.sum(dim=1)
    means = [float(total / size) if size else None for total, size in zip(sums, sizes, strict=True)]
    return Histogram(
        edges=tuple(2 * edge / bins - 1 for edge in range(bins + 1)),
        counts={kind: tuple(counts[row].tolist()) for row, kind in enumerate(KINDS)},
        means=dict(zip(KINDS, means, strict=True)),
    )
