"""Slow prototypes and scores: one episode, one cell, one pixel and one prototype at a time."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def grid(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask (H, W) on the feature grid by the formula of bilinear interpolation, half-pixel centres."""
    out = torch.zeros(size, dtype=mask.dtype)
    for i in range(size[0]):
        for j in range(size[1]):
            total = 0.0
            y, x = ((n + 0.5) * s / g - 0.5 for n, s, g in zip((i, j), mask.shape, size, strict=True))
            y, x = max(y, 0.0), max(x, 0.0)
            for row in (math.floor(y), math.floor(y) + 1):
                for column in (math.floor(x), math.floor(x) + 1):
                    weight = (1 - abs(y - row)) * (1 - abs(x - column))
                    row_, column_ = min(row, mask.shape[0] - 1), min(column, mask.shape[1] - 1)
                    total += weight * mask[row_, column_].item()
            out[i, j] = total
    return out


def sets(
    maps: Tensor, masks: Tensor, window: int, threshold: str = "fixed", level: float = 0.95
) -> tuple[list[Tensor], list[Tensor]]:
    """(foreground, background) prototypes of one episode: maps (K, D, h, w), masks (K, H, W)."""
    inside, outside, whole, rest = [], [], [], []
    h, w = maps.shape[2:]
    for feature, mask in zip(maps, masks, strict=True):
        shares = {"in": grid(mask, (h, w)), "out": grid(1 - mask, (h, w))}
        cells = [
            (slice(i * window, (i + 1) * window), slice(j * window, (j + 1) * window))
            for i in range(h // window)
            for j in range(w // window)
        ]
        # AvgPool(M) of Eq. 7.2, the downsampled mask that Sec. 7.5.4.1 takes the thresholds from
        pooled = {name: [share[cell].mean().item() for cell in cells] for name, share in shares.items()}
        limits = {"in": level, "out": level}
        if threshold == "dynamic":
            limits = {"in": 0.8 * max(pooled["in"]), "out": sum(pooled["out"]) / len(cells)}
        for number, cell in enumerate(cells):
            vector = feature[:, *cell].mean(dim=(1, 2))
            for name, kept in (("in", inside), ("out", outside)):
                if pooled[name][number] > limits[name]:
                    kept.append(vector)
        for name, kept in (("in", whole), ("out", rest)):
            if shares[name].sum() > 0:
                kept.append((feature * shares[name]).sum(dim=(1, 2)) / shares[name].sum())
    inside += [torch.stack(whole).mean(0)] * len(whole) if whole else []
    outside += [torch.stack(rest).mean(0)] * len(rest) if rest and not outside else []
    return inside, outside


def unit(vector: Tensor, centre: bool) -> Tensor:
    vector = vector - vector.mean() if centre else vector
    return vector / max(vector.norm().item(), 1e-4)


def score(pixel: Tensor, prototypes: list[Tensor], t: float, centre: bool, kind: str, top: float) -> Tensor:
    """The score of one query pixel (D,) by one set."""
    if not prototypes:
        return torch.tensor(-1 / t, dtype=pixel.dtype)
    q = unit(pixel, centre)
    vectors = [unit(p, centre) for p in prototypes]
    pairs = sorted(((float(q @ p) / t, n) for n, p in enumerate(vectors)), reverse=True)
    last = pairs[max(math.ceil(top * len(pairs) / 100), 1) - 1][0]
    kept = [n for value, n in pairs if value >= last]  # with its ties
    weights = torch.softmax(torch.stack([q @ vectors[n] / t for n in kept]), dim=0)
    aggregated = sum((w * vectors[n] for w, n in zip(weights, kept, strict=True)), torch.zeros_like(q))
    if kind == "cosine":
        aggregated = F.normalize(aggregated, dim=0, eps=1e-4)
    return q @ aggregated / t


def scores(maps: Tensor, masks: Tensor, query: Tensor, arguments: dict[str, Any]) -> Tensor:
    """Logits (2, h, w) [background, foreground] of one episode; ``arguments`` are those of CoWProHead."""
    given = {"window": 4, "threshold": "fixed", "level": 0.95, "score": "cosine", "centre": True, "top": 100.0}
    given |= {"temperature": 0.05, **arguments}
    found = sets(maps, masks, given["window"], given["threshold"], given["level"])
    settings = (given["temperature"], given["centre"], given["score"], given["top"])
    out = torch.zeros(2, *query.shape[1:], dtype=query.dtype)
    for channel, prototypes in enumerate(reversed(found)):
        for i in range(query.shape[1]):
            for j in range(query.shape[2]):
                out[channel, i, j] = score(query[:, i, j], prototypes, *settings)
    return out
