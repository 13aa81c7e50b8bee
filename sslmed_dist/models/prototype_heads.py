"""Prototypes of a support image's foreground and background, and the scores they give the pixels of a query.

Three heads without parameters: CoWPro's (thesis, section 7.4.1), ALPNet's (Ouyang et al. 2020, arXiv 2007.09886) and
PANet's (Wang et al. 2019, arXiv 1908.06391). A head works on feature maps (float32 or float64), so features computed
once serve any number of masks. Letters in shapes: E episodes of K supports each, D channels, h x w the feature grid,
H x W the masks, N and M prototypes. The query has one map per episode.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sslmed_dist.arguments import require_positive

EPS = 1e-4  # shorter vectors are divided by this, not by their length (as in ALPNet's code), and stay shorter than 1


@dataclass(frozen=True)
class Prototypes:
    """The foreground's and the background's prototypes of each episode, and which of them are valid.

    ``foreground`` (E, N, D), ``foreground_valid`` bool (E, N), ``background`` (E, M, D), ``background_valid`` bool
    (E, M). Only valid vectors belong to the set; a set without any means that the supports have no such pixel.
    """

    foreground: Tensor
    foreground_valid: Tensor
    background: Tensor
    background_valid: Tensor


class PrototypeHead(Protocol):
    """What methods and evaluation ask of a head."""

    def prototypes(self, maps: Tensor, masks: Tensor, level: float | None = None) -> Prototypes:
        """Prototypes of supports' maps (E, K, D, h, w) under their masks (E, K, H, W), 0/1 numbers or bool. ``level``
        replaces the head's threshold, if it has one."""

    def scores(self, prototypes: Prototypes, maps: Tensor) -> Tensor:
        """Logits (E, 2, h, w) of [background, foreground] for queries' maps (E, D, h, w). Prototypes of a single
        episode serve any number of queries."""


def on_grid(maps: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Masks (E, K, H, W) at the size of ``maps`` (E, K, D, h, w): background's and foreground's shares, (E, K, h, w).

    Shares are in [0, 1], bilinear. Each class is interpolated by itself, not as 1 minus the other, so that a class
    without a pixel near any grid point is exactly 0 everywhere. ``ValueError`` where E or K of maps and masks differ.
    """
    if maps.ndim != 5 or masks.ndim != 4 or maps.shape[:2] != masks.shape[:2]:
        shapes = f"{tuple(maps.shape)} and {tuple(masks.shape)}"
        raise ValueError(f"prototypes: expected maps (E, K, D, h, w) and masks (E, K, H, W), got {shapes}")
    masks = masks.to(maps.dtype)
    both = F.interpolate(torch.cat([1 - masks, masks]), size=maps.shape[-2:], mode="bilinear", align_corners=False)
    background, foreground = both.chunk(2)
    return background, foreground


def masked_average(maps: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Mean feature of a class under its shares (E, K, h, w), averaged over the supports that have the class, (E, 1, D);
    and which supports have it, bool (E, K)."""
    mass = shares.sum(dim=(2, 3))  # (E, K)
    present = mass > 0
    # Sum over pixels of feature times share, as a matrix product (D, h w) x (h w, 1) for each support.
    sums = (maps.flatten(3) @ shares.flatten(2)[..., None]).squeeze(3)  # (E, K, D)
    means = sums / torch.where(present, mass, 1.0)[..., None]
    count = present.sum(dim=1, keepdim=True)
    return means.sum(dim=1, keepdim=True) / count.clamp_min(1)[..., None], present


Threshold = Callable[[Tensor], Tensor | float]
"""From a class's mean shares in the cells, the pooled mask (E, K, h', w'): what the mean share of a cell has to
exceed for the cell to belong to the class. One number, or one per support (E, K, 1, 1)."""


def fixed(level: float) -> tuple[Threshold, Threshold]:
    """The thresholds of foreground and background: the number ``level`` for both."""
    return (lambda pooled: level), (lambda pooled: level)


def dynamic() -> tuple[Threshold, Threshold]:
    """The thresholds of foreground and background: 0.8 of the largest value of the support's pooled foreground mask,
    and the mean value of its pooled background mask. So a support that shows any foreground has a local prototype of
    it. Source: thesis, Eq. 7.2 and Sec. 7.5.4.1."""
    return (lambda pooled: 0.8 * pooled.amax((2, 3), keepdim=True)), (lambda pooled: pooled.mean((2, 3), keepdim=True))


def collect(maps: Tensor, masks: Tensor, window: int, thresholds: tuple[Threshold, Threshold]) -> Prototypes:
    """Local prototypes, one for each window x window cell of the grid that a class fills, and global ones.

    A cell's prototype is the mean feature of all its pixels. It belongs to a class if the class's mean share in the
    cell exceeds the class's threshold. Rows and columns that fill no whole window are left out. A class's global
    prototype is the mean feature under its mask. The foreground set always has it; the background set only where no
    cell passes the threshold (the published code stops there).
    The local prototypes of K supports form one set. The average of the global ones is repeated for each support that
    has the class, so that a support given twice changes nothing. Where no support has a pixel of a class, its set has
    no valid prototype. Source: thesis, Eq. 7.2 and 7.3. ``ValueError`` for a window larger than the grid.
    """
    if window > min(maps.shape[-2:]):
        size = f"{maps.shape[-2]} x {maps.shape[-1]}"
        raise ValueError(f"head.window: expected at most the feature grid, {size}, got {window}")
    background, foreground = on_grid(maps, masks)
    # Mean features of the c cells of each support, then of all supports of an episode in one row.
    cells = F.avg_pool2d(maps.flatten(0, 1), window).flatten(2)  # (E K, D, c)
    cells = cells.view(*maps.shape[:3], -1).transpose(2, 3).flatten(1, 2)  # (E, K c, D)
    # Which cells belong to the foreground and which to the background, each bool (E, K c).
    inside, outside = (
        (pooled > threshold(pooled)).flatten(1)
        for pooled, threshold in zip(
            (F.avg_pool2d(shares, window) for shares in (foreground, background)), thresholds, strict=True
        )
    )
    # The global prototypes (E, 1, D), and the supports for which they count (E, K).
    foreground_mean, has_foreground = masked_average(maps, foreground)
    background_mean, has_background = masked_average(maps, background)
    has_background = has_background & ~outside.any(dim=1, keepdim=True)
    shots = maps.shape[1]
    return Prototypes(
        torch.cat([cells, foreground_mean.expand(-1, shots, -1)], dim=1),  # (E, K c + K, D)
        torch.cat([inside, has_foreground], dim=1),
        torch.cat([cells, background_mean.expand(-1, shots, -1)], dim=1),
        torch.cat([outside, has_background], dim=1),
    )


def unit(vectors: Tensor, centre: bool) -> Tensor:
    """``vectors`` (..., D) at length 1; ``centre`` first subtracts from each its mean over the D channels.
    Source: thesis, Eq. 7.4 and 7.5."""
    if centre:
        vectors = vectors - vectors.mean(dim=-1, keepdim=True)
    return F.normalize(vectors, dim=-1, eps=EPS)


Score = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From query vectors (E, h w, D), the vectors of a set (E, N, D) and which are valid (E, N): scores (E, h w)."""


def both_scores(score: Score, prototypes: Prototypes, maps: Tensor, lowest: float) -> Tensor:
    """Logits (E, 2, h, w) of queries' maps (E, D, h, w) by ``score``. A set without a valid prototype gives the score
    ``lowest`` everywhere, without gradient. ``ValueError`` unless the prototypes are of one episode or of E."""
    episodes = len(prototypes.foreground)
    if maps.ndim != 4 or episodes not in (1, len(maps)):
        raise ValueError(f"prototypes: {episodes} episodes do not fit queries (E, D, h, w), got {tuple(maps.shape)}")
    queries = maps.flatten(2).transpose(1, 2)  # (E, h w, D): pixels as vectors
    class_scores = []
    for vectors, valid in (
        (prototypes.background, prototypes.background_valid),
        (prototypes.foreground, prototypes.foreground_valid),
    ):
        has_any = valid.any(dim=1, keepdim=True)  # (E, 1)
        # An empty set is scored by all of its vectors and then overruled: a softmax over nothing would be NaN.
        class_scores.append(torch.where(has_any, score(queries, vectors, valid | ~has_any), lowest))
    return torch.stack(class_scores, dim=1).view(len(maps), 2, *maps.shape[2:])


class CoWProHead:
    """Correlation-weighted prototypes. For every query pixel, a set's prototypes are averaged with the softmax of their
    similarity to that pixel as weights (attention: pixels are queries, prototypes are keys and values).

    ``window``: side of a cell in grid pixels. ``threshold``: ``fixed`` at ``level``, or ``dynamic`` (see ``dynamic``).
    ``centre``: see ``unit``. Similarities are cosines over ``temperature``. The ``score`` of a pixel is its cosine with
    its averaged prototype (``cosine``, Eq. 7.9 as written) or the dot product, which keeps the average's length
    (``dot``, the published code), both over ``temperature``. ``top``: use only that percentage of a set's valid
    prototypes, those most similar to the pixel, but at least one; ties with the last are used too (Table 7.4).
    Source: thesis, Eq. 7.2 to 7.10.
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
        """See ``collect`` and ``PrototypeHead``. ``level`` is a fixed threshold, also for a head with a dynamic one."""
        if level is None and self.threshold == "dynamic":
            return collect(maps, masks, self.window, dynamic())
        return collect(maps, masks, self.window, fixed(self.level if level is None else level))

    def scores(self, prototypes: Prototypes, maps: Tensor) -> Tensor:
        """Logits (E, 2, h, w)."""
        return both_scores(self.score_set, prototypes, maps, -1 / self.temperature)

    def score_set(self, queries: Tensor, vectors: Tensor, valid: Tensor) -> Tensor:
        """A ``Score``: similarity of every pixel to its averaged prototype, over the temperature."""
        queries, vectors = unit(queries, self.centre), unit(vectors, self.centre)
        similarity = queries @ vectors.transpose(1, 2) / self.temperature  # (E, h w, N)
        used = similarity.masked_fill(~valid[:, None], -math.inf)
        if self.top < 100:
            used = used.masked_fill(used < self.least(used, valid), -math.inf)
        weights = used.softmax(dim=2)
        if self.score == "dot":
            # The product with a weighted mean is the weighted mean of the products, which are there already.
            return (weights * similarity).sum(dim=2)
        aggregated = F.normalize(weights @ vectors, dim=2, eps=EPS)  # (E, h w, D): one prototype per pixel
        return (queries * aggregated).sum(dim=2) / self.temperature

    @torch.no_grad()
    def least(self, similarity: Tensor, valid: Tensor) -> Tensor:
        """The smallest similarity that is used, for every pixel: (E, h w, 1), of ``similarity`` (E, h w, N)."""
        # How many prototypes a pixel uses, and where the last of them stands in descending order.
        used = (valid.sum(dim=1, dtype=torch.float64) * self.top / 100).ceil().long().clamp_min(1)  # (E,)
        last = (used - 1)[:, None, None].expand(len(similarity), similarity.shape[1], 1)
        return similarity.sort(dim=2, descending=True).values.gather(2, last)


class ALPNetHead:
    """ALPNet's head (Ouyang et al. 2020). With d_n = cosine / ``temperature`` of a pixel with prototype n of a set, the
    score is the mean of the d_n weighted by their softmax: sum_n softmax(d)_n d_n.

    Prototypes are CoWPro's at a fixed threshold."""

    def __init__(self, window: int = 4, level: float = 0.95, temperature: float = 0.05) -> None:
        """``ValueError`` for a window below 1, a level outside [0, 1) or a temperature that is not above 0."""
        check_head(window, level, temperature)
        self.window, self.level, self.temperature = window, level, temperature

    def prototypes(self, maps: Tensor, masks: Tensor, level: float | None = None) -> Prototypes:
        """See ``collect`` and ``PrototypeHead``."""
        return collect(maps, masks, self.window, fixed(self.level if level is None else level))

    def scores(self, prototypes: Prototypes, maps: Tensor) -> Tensor:
        """Logits (E, 2, h, w)."""
        return both_scores(self.score_set, prototypes, maps, -1 / self.temperature)

    def score_set(self, queries: Tensor, vectors: Tensor, valid: Tensor) -> Tensor:
        """A ``Score``: sum_n softmax(d)_n d_n over the valid prototypes."""
        scaled = unit(queries, False) @ unit(vectors, False).transpose(1, 2) / self.temperature  # (E, h w, N)
        weights = scaled.masked_fill(~valid[:, None], -math.inf).softmax(dim=2)
        return (weights * scaled).sum(dim=2)


class PANetHead:
    """PANet's head (Wang et al. 2019): one prototype per class, the mean feature under its mask.

    The score is cosine / ``temperature``."""

    def __init__(self, temperature: float = 0.05) -> None:
        """``ValueError`` for a temperature that is not above 0."""
        check_head(1, 0.0, temperature)
        self.temperature = temperature

    def prototypes(self, maps: Tensor, masks: Tensor, level: float | None = None) -> Prototypes:
        """One global prototype per class (see ``PrototypeHead``). Nothing is thresholded: ``level`` is ignored."""
        background, foreground = on_grid(maps, masks)
        (inside, has_inside), (outside, has_outside) = (
            masked_average(maps, foreground),
            masked_average(maps, background),
        )
        return Prototypes(inside, has_inside.any(dim=1, keepdim=True), outside, has_outside.any(dim=1, keepdim=True))

    def scores(self, prototypes: Prototypes, maps: Tensor) -> Tensor:
        """Logits (E, 2, h, w)."""
        return both_scores(self.score_set, prototypes, maps, -1 / self.temperature)

    def score_set(self, queries: Tensor, vectors: Tensor, valid: Tensor) -> Tensor:
        """A ``Score``: the cosine with the only prototype, over the temperature."""
        return (unit(queries, False) @ unit(vectors, False).transpose(1, 2)).squeeze(2) / self.temperature


def check_head(window: int, level: float, temperature: float) -> None:
    """``ValueError`` for a window below 1, a level outside [0, 1) or a temperature that is not above 0."""
    if window < 1:
        raise ValueError(f"head.window: expected an integer >= 1, got {window}")
    if not 0 <= level < 1:
        raise ValueError(f"head.level: expected a number in [0, 1), got {level}")
    require_positive("head.temperature", temperature)
