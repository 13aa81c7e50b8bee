"""Which slices of a query scan hold the organ, and which part of the support serves each, without its ground truth.

The protocol of Ouyang et al. takes the range from the query's own mask, which nobody has who wants that mask. Here it
is estimated: a slice counts for a part of the organ as far as that part's support slice finds enough foreground in it;
the range of consecutive slices wins whose slices together count most, each under the part it would have in that range.
What "enough" is, the support scan says itself: there the range is known. Nothing is fitted to a query.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sslmed_dist.downstream.oneshot.protocol import part_of

# Chosen among some 60 variants by looking at CHAOS fold 0 at 128 pixels, where Dice without the oracle stays within one
# point for a SHARE of 0.25 to 0.5 and a POSITION of 0 to 0.4; other folds had no part in it.
SHARE = 0.5  # of the support slice's area: a query slice is judged by as many of its pixels, those of highest margin
SHORTEST, LONGEST = 0.6, 1.5  # the range's length over the support's, in mm
POSITION = 0.2  # weight of the position in the stack against what is seen


@dataclass(frozen=True)
class Stack:
    """Where an organ lies in a scan: slices ``first`` ... ``last`` of ``count``, ``spacing`` mm apart."""

    first: int
    last: int
    count: int
    spacing: float

    @property
    def length(self) -> float:
        """Length of the range in mm."""
        return (self.last - self.first + 1) * self.spacing


@dataclass(frozen=True)
class Level:
    """Evidence half way between slices within and beyond the organ (``centre``), and half their distance
    (``spread``; 0 or below where they do not differ as they should)."""

    centre: float
    spread: float


@dataclass(frozen=True)
class Estimate:
    """The range ``first`` ... ``last`` (inclusive). ``seen`` is False where the support's own slices do not stand out,
    so that the position in the stack alone decided."""

    first: int
    last: int
    seen: bool


def evidence(margins: Tensor, areas: Sequence[float], allowed: Tensor | None = None) -> Tensor:
    """How much foreground each part's support slice finds in each slice: margins (U, S, H, W) -> float64 (U, S), CPU.

    The mean margin of the ``SHARE`` * ``areas[u]`` pixels (at least one) with the highest margin, of those that are
    ``allowed`` (bool (H, W)) where given. ``areas`` (U) are the support slices' in pixels of these margins.
    """
    rows = []
    for part, area in zip(margins, areas, strict=True):
        pixels = part.flatten(1) if allowed is None else part[:, allowed]
        count = min(max(round(SHARE * area), 1), pixels.shape[1])
        rows.append(pixels.topk(count, dim=1).values.double().mean(dim=1))
    return torch.stack(rows).cpu()


def calibrate(own: Tensor, stack: Stack, used: Sequence[int]) -> Level:
    """The level of ``evidence`` that tells slices within the organ from others, from the support scan's evidence of
    itself (U, S); slices beyond the range count under the nearest part.

    The support slices (``used``) find themselves too well and are left out, unless there are no others. A scan without
    a slice beyond the organ has the decision border 0 for a centre.
    """
    parts = torch.tensor([part_of(z, stack.first, stack.last, len(own)) for z in range(stack.count)])
    values = own[parts, torch.arange(stack.count)]
    inside = torch.zeros(stack.count, dtype=torch.bool)
    inside[stack.first : stack.last + 1] = True
    others = inside.clone()
    others[list(used)] = False
    within = float(values[others if others.any() else inside].mean())
    if inside.all():
        return Level(0.0, within)
    beyond = float(values[~inside].mean())
    return Level((within + beyond) / 2, (within - beyond) / 2)


def estimate(found: Tensor, level: Level, support: Stack, spacing: float) -> Estimate:
    """The range of a query scan whose ``evidence`` is ``found`` (U, S) and whose slices lie ``spacing`` mm apart.

    Over all ranges a ... b of 0.6 to 1.5 times the support's length in mm, the largest

        sum_{z = a ... b} (found[part(z; a, b), z] - centre) / spread - 0.2 ((a - a0)^2 + (b - b0)^2) / n0

    where a0 ... b0, n0 slices, has the support's length and lies at its height in the stack. A slice like those within
    the support's organ adds 1, one like those beyond it -1. Where ``spread`` is not above 0 the sum is left out. Of
    equal ranges the first wins. ``ValueError`` for no slice or a spacing that is not above 0.
    """
    parts, count = found.shape
    if not count or not spacing > 0:
        raise ValueError(f"found: expected slices some mm apart, got {count} slices, spacing {spacing}")
    expected = support.length / spacing
    middle = ((support.first + support.last + 1) / 2 / support.count) * count - 0.5
    first, last = ranges(count, expected)
    below, above = middle - (expected - 1) / 2, middle + (expected - 1) / 2
    value = -POSITION / expected * ((first - below).square() + (last - above).square())
    # Evidence that differs by rounding alone is no evidence.
    seen = level.spread > 1e-6 * max(1.0, abs(level.centre))
    if seen:
        value += sums((found.double() - level.centre) / level.spread, first, last)
    best = int(torch.nonzero(value == value.max())[0])
    return Estimate(int(first[best]), int(last[best]), seen)


def ranges(count: int, expected: float) -> tuple[Tensor, Tensor]:
    """First and last slices int64 (R,) of all ranges of ``SHORTEST`` to ``LONGEST`` times ``expected`` slices in a
    stack of ``count``; a stack shorter than that is one range, and a range has at least one slice."""
    shortest = min(max(math.ceil(SHORTEST * expected), 1), count)
    longest = min(max(math.floor(LONGEST * expected), shortest), count)
    first, length = torch.meshgrid(torch.arange(count), torch.arange(shortest, longest + 1), indexing="ij")
    last = first + length - 1
    fits = last < count
    return first[fits], last[fits]


def sums(values: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """sum over z of values[part(z; first, last), z] for every range: values (U, S), ranges (R,) -> float64 (R,).

    Part u of a range of d + 1 slices begins at first + ceil(u d / U) (``protocol.part_of``), so a range is U
    differences of cumulative sums.
    """
    parts = len(values)
    cumulative = torch.nn.functional.pad(values.cumsum(dim=1), (1, 0))
    distance = last - first
    total = torch.zeros(len(first), dtype=torch.float64)
    for u in range(parts):
        begin = first + (u * distance + parts - 1) // parts
        end = first + ((u + 1) * distance + parts - 1) // parts if u < parts - 1 else last + 1
        total += cumulative[u, end] - cumulative[u, begin]
    single = distance == 0  # one slice is part 0, where the formula has the last part
    total[single] = values[0, first[single]].double()
    return total
