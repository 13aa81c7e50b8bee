"""Prototypes of a support image's foreground and background, and the scores they give the pixels of a query.

Three heads without parameters: CoWPro's (thesis, section 7.4.1), ALPNet's (Ouyang et al. 2020, arXiv 2007.09886) and
PANet's (Wang et al. 2019, arXiv 1908.06391). A head works on feature maps (float32 or float64), so features computed
once serve any number of masks. Shapes: E episodes, K supports each, D channels, h x w the feature grid.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-4  # the shortest vector that is brought to length 1, as in ALPNet's code; shorter ones stay shorter


@dataclass(frozen=True)
class Prototypes:
    """The two sets of one support (or several) per episode: vectors and which of them there are.

    ``foreground`` (E, N, D), ``foreground_valid`` bool (E, N), ``background`` (E, M, D), ``background_valid`` (E, M).
    A set without a valid prototype means that the support has no such pixel.
    """

    foreground: Tensor
    foreground_valid: Tensor
    background: Tensor
    background_valid: Tensor


class PrototypeHead(Protocol):
    """What methods and evaluation ask of a head."""

    def prototypes(self, maps: Tensor, masks: Tensor, level: float | None = None) -> Prototypes:
        """Of supports' maps (E, K, D, h, w) and their masks (E, K, H, W), 0/1 numbers or bool; ``level`` stands in for
        the head's own threshold, if it has one."""

    def scores(self, prototypes: Prototypes, maps: Tensor) -> Tensor:
        """Logits (E, 2, h, w) of [background, foreground] for queries' maps (E, D, h, w). Prototypes of one episode
        serve any number of queries."""


def on_grid(maps: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Background and foreground (E, K, h, w) on the feature grid: shares in [0, 1], bilinear.

    Both are interpolated, so that a class without a pixel near any grid point is exactly 0 everywhere. ``ValueError``
    for maps and masks of different episodes or supports.
    """
    if maps.ndim != 5 or masks.ndim != 4 or maps.shape[:2] != masks.shape[:2]:
        found = f"{tuple(maps.shape)} and {tuple(masks.shape)}"
        raise ValueError(f"prototypes: expected maps (E, K, D, h, w) and masks (E, K, H, W), got {found}")
    masks = masks.to(maps.dtype)
    both = F.interpolate(torch.cat([1 - masks, masks]), size=maps.shape[-2:], mode="bilinear", align_corners=False)
    background, foreground = both.chunk(2)
    return background, foreground


def masked_average(maps: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Mean feature under a mask, averaged over the supports that have the class: (E, 1, D), and which do (E, K)."""
    mass = shares.sum(dim=(2, 3))
    present = mass > 0
    sums = (maps.flatten(3) @ shares.flatten(2)[..., None]).squeeze(3)
    means = sums / torch.where(present, mass, 1.0)[..., None]
    count = present.sum(dim=1, keepdim=True)
    return means.sum(dim=1, keepdim=True) / count.clamp_min(1)[..., None], present


Threshold = Callable[[Tensor], Tensor | float]
"""Of a class's shares on the feature grid (E, K, h, w): what a window's mean share has to exceed, one number or one per
support (E, K, 1, 1)."""


def fixed(level: float) -> tuple[Threshold, Threshold]:
    """One threshold for foreground and background."""
    return (lambda shares: level), (lambda shares: level)


def dynamic() -> tuple[Threshold, Threshold]:
    """0.8 of a support's largest share (foreground) and its mean share (background). Source: thesis, Sec. 7.5.4.1."""
    return (lambda shares: 0.8 * shares.amax((2, 3), keepdim=True)), (lambda shares: shares.mean((2, 3), keepdim=True))


def collect(maps: Tensor, masks: Tensor, window: int, thresholds: tuple[Threshold, Threshold]) -> Prototypes:
    """Local prototypes, one per window x window cell of the grid that one class fills, and global ones.

    A cell's prototype is the mean feature of all its pixels; it belongs to a class whose mean share in the cell exceeds
    the class's threshold. Rows and columns that fill no whole window are left out. The foreground set also has the mean
    feature under the mask; the background set has its own only where no cell passes (the published code stops there).
    Of K supports the local prototypes stand together, and the average of the global ones stands once for each support
    that has the class, so that a support given twice changes nothing. Where no support has a pixel of a class, its set
    has no valid prototype. Source: thesis, Eq. 7.2 and 7.3. ``ValueError`` for a window larger than the grid.
    """
    if window > min(maps.shape[-2:]):
        size = f"{maps.shape[-2]} x {maps.shape[-1]}"
        raise ValueError(f"head.window: expected at most the feature grid, {size}, got {window}")
    background, foreground = on_grid(maps, masks)
    cells = F.avg_pool2d(maps.flatten(0, 1), window).flatten(2)
    cells = cells.view(*maps.shape[:3], -1).transpose(2, 3).flatten(1, 2)
    inside, outside = (
        (F.avg_pool2d(shares, window) > threshold(shares)).flatten(1)
        for shares, threshold in zip((foreground, background), thresholds, strict=True)
    )
    whole, has_whole = masked_average(maps, foreground)
    rest, has_rest = masked_average(maps, background)
    has_rest = has_rest & ~outside.any(dim=1, keepdim=True)
    shots = maps.shape[1]
    return Prototypes(
        torch.cat([cells, whole.expand(-1, shots, -1)], dim=1),
        torch.cat([inside, has_whole], dim=1),
        torch.cat([cells, rest.expand(-1, shots, -1)], dim=1),
        torch.cat([outside, has_rest], dim=1),
    )


def unit(vectors: Tensor, centre: bool) -> Tensor:
    """Vectors (..., D) of length 1, less their own mean over channels if ``centre`` (thesis, Eq. 7.4 and 7.5)."""
    if centre:
        vectors = vectors - vectors.mean(dim=-1, keepdim=True)
    return F.normalize(vectors, dim=-1, eps=EPS)


Score = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of query vectors (E, h w, D), a set's vectors (E, N, D) and which are valid (E, N): scores (E, h w)."""


def both_scores(score: Score, prototypes: Prototypes, maps: Tensor, lowest: float) -> Tensor:
    """Logits (E, 2, h, w) by ``score``; a set without a valid prototype has the score ``lowest`` everywhere, without
    gradient. ``ValueError`` unless there are prototypes of one episode, or of as many as queries."""
    episodes = len(prototypes.foreground)
    if maps.ndim != 4 or episodes not in (1, len(maps)):
        raise ValueError(f"prototypes: {episodes} episodes do not fit queries (E, D, h, w), got {tuple(maps.shape)}")
    queries = maps.flatten(2).transpose(1, 2)
    found = []
    for vectors, valid in (
        (prototypes.background, prototypes.background_valid),
        (prototypes.foreground, prototypes.foreground_valid),
    ):
        some = valid.any(dim=1, keepdim=True)
        # An empty set is scored by all of its vectors and then overruled: a softmax over nothing would be NaN.
        found.append(torch.where(some, score(queries, vectors, valid | ~some), lowest))
    return torch.stack(found, dim=1).view(len(maps), 2, *maps.shape[2:])


class CoWProHead:
    """Correlation-weighted prototypes: every query pixel has one of its own, the mean of a set's prototypes weighted
    by a softmax of their similarity to it (attention with pixels as queries, prototypes as keys and values).

    ``window``: pixels of the grid per cell. ``threshold``: ``fixed`` at ``level``, or ``dynamic``. ``centre``: vectors
    less their own mean. Similarities are cosines over ``temperature``; so is the ``score``: of the pixel with its
    aggregated prototype (``cosine``, Eq. 7.9 as written) or their product with the aggregate's length left in
    (``dot``, the published code). ``top``: only that percentage of a set's valid prototypes, the most similar ones to
    the pixel, at least one, with what is exactly as similar as the last (Table 7.4). Source: thesis, Eq. 7.2 to 7.10.
    """

    def __init__(
        self,
        window: int = 4,
        threshold: Literal["fixed", "dynamic"] = "fixed",
        level: float = 0.95,
        score: Literal["cosine", "dot"] = "cosine",
        centre: bool = True,
        top: float = 100.0,
        temperature: float = 0.05,
    ) -> None:
        """``ValueError`` for a window below 1, a level outside [0, 1), a ``top`` outside (0, 100] or a temperature that
        is not above 0."""
        check_head(window, level, temperature)
        if not 0 < top <= 100:
            raise ValueError(f"head.top: expected a percentage in (0, 100], got {top}")
        self.window, self.threshold, self.level, self.score = window, threshold, level, score
        self.centre, self.top, self.temperature = centre, top, temperature

    def prototypes(self, maps: Tensor, masks: Tensor, level: float | None = None) -> Prototypes:
        """See ``collect``; ``level`` is a fixed threshold in place of the head's."""
        if level is None and self.threshold == "dynamic":
            return collect(maps, masks, self.window, dynamic())
        return collect(maps, masks, self.window, fixed(self.level if level is None else level))

    def scores(self, prototypes: Prototypes, maps: Tensor) -> Tensor:
        """Logits (E, 2, h, w)."""
        return both_scores(self.score_set, prototypes, maps, -1 / self.temperature)

    def score_set(self, queries: Tensor, vectors: Tensor, valid: Tensor) -> Tensor:
        """Similarity of every pixel to its aggregated prototype over the temperature."""
        queries, vectors = unit(queries, self.centre), unit(vectors, self.centre)
        similarity = queries @ vectors.transpose(1, 2) / self.temperature
        similarity = similarity.masked_fill(~valid[:, None], -math.inf)
        if self.top < 100:
            similarity = similarity.masked_fill(similarity < self.least(similarity, valid), -math.inf)
        aggregated = similarity.softmax(dim=2) @ vectors
        if self.score == "cosine":
            aggregated = F.normalize(aggregated, dim=2, eps=EPS)
        return (queries * aggregated).sum(dim=2) / self.temperature

    @torch.no_grad()
    def least(self, similarity: Tensor, valid: Tensor) -> Tensor:
        """The smallest similarity that is kept, for every pixel: (E, h w, 1)."""
        kept = (valid.sum(dim=1, dtype=torch.float64) * self.top / 100).ceil().long().clamp_min(1)
        last = (kept - 1)[:, None, None].expand(len(similarity), similarity.shape[1], 1)
        return similarity.sort(dim=2, descending=True).values.gather(2, last)


class ALPNetHead:
    """ALPNet's head: the mean of a pixel's scaled cosines d with a set's prototypes, weighted by their softmax:
    sum_n softmax(d)_n d_n, d = cosine / ``temperature``. Prototypes as CoWPro's at a fixed threshold."""

    def __init__(self, window: int = 4, level: float = 0.95, temperature: float = 0.05) -> None:
        """``ValueError`` for a window below 1, a level outside [0, 1) or a temperature that is not above 0."""
        check_head(window, level, temperature)
        self.window, self.level, self.temperature = window, level, temperature

    def prototypes(self, maps: Tensor, masks: Tensor, level: float | None = None) -> Prototypes:
        """See ``collect``."""
        return collect(maps, masks, self.window, fixed(self.level if level is None else level))

    def scores(self, prototypes: Prototypes, maps: Tensor) -> Tensor:
        """Logits (E, 2, h, w)."""
        return both_scores(self.score_set, prototypes, maps, -1 / self.temperature)

    def score_set(self, queries: Tensor, vectors: Tensor, valid: Tensor) -> Tensor:
        """sum_n softmax(d)_n d_n over the valid prototypes."""
        scaled = unit(queries, False) @ unit(vectors, False).transpose(1, 2) / self.temperature
        weights = scaled.masked_fill(~valid[:, None], -math.inf).softmax(dim=2)
        return (weights * scaled).sum(dim=2)


class PANetHead:
    """PANet's head: one prototype per class, the mean feature under its mask; score = cosine / ``temperature``."""

    def __init__(self, temperature: float = 0.05) -> None:
        """``ValueError`` for a temperature that is not above 0."""
        check_head(1, 0.0, temperature)
        self.temperature = temperature

    def prototypes(self, maps: Tensor, masks: Tensor, level: float | None = None) -> Prototypes:
        """The global prototypes; nothing is thresholded, so ``level`` has no part in it."""
        background, foreground = on_grid(maps, masks)
        (whole, has_whole), (rest, has_rest) = masked_average(maps, foreground), masked_average(maps, background)
        return Prototypes(whole, has_whole.any(dim=1, keepdim=True), rest, has_rest.any(dim=1, keepdim=True))

    def scores(self, prototypes: Prototypes, maps: Tensor) -> Tensor:
        """Logits (E, 2, h, w)."""
        return both_scores(self.score_set, prototypes, maps, -1 / self.temperature)

    def score_set(self, queries: Tensor, vectors: Tensor, valid: Tensor) -> Tensor:
        """Cosine with the one prototype."""
        return (unit(queries, False) @ unit(vectors, False).transpose(1, 2)).squeeze(2) / self.temperature


def check_head(window: int, level: float, temperature: float) -> None:
    """``ValueError`` naming the first argument that no head can work with."""
    if window < 1:
        raise ValueError(f"head.window: expected an integer >= 1, got {window}")
    if not 0 <= level < 1:
        raise ValueError(f"head.level: expected a number in [0, 1), got {level}")
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"head.temperature: expected a finite number > 0, got {temperature}")
