"""Which slices of a query scan hold the organ, estimated without the query's ground truth.

The protocol of Ouyang et al. takes this range of slices from the query's own mask, which a user who wants that mask
does not have. Here it is estimated. For each part of the organ, the part's support slice finds more or less foreground
in a query slice: the slice's evidence for that part. In a candidate range every slice belongs to a part, and counts
with its evidence for that part. The range whose slices together count most wins. How much evidence is enough is learnt
from the support scan, where the range is known. Nothing is fitted to a query.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sslmed_dist.downstream.oneshot.protocol import part_of
from sslmed_dist.printable import plural

# Chosen among some 60 variants by looking at CHAOS fold 0 at 128 pixels. There the Dice with estimated ranges stays
# within one point for a SHARE of 0.25 to 0.5 and a POSITION of 0 to 0.4. Other folds were not looked at.
SHARE = 0.5  # of the support slice's area: evidence is the mean over this many pixels, those of the highest margin
SHORTEST, LONGEST = 0.6, 1.5  # limits of the range's length, as multiples of the support's length (both in mm)
POSITION = 0.2  # weight of the range's position in the stack, relative to the evidence


@dataclass(frozen=True)
class Stack:
    """Where an organ lies in a scan: in slices ``first`` ... ``last`` (inclusive) of ``count`` slices that are
    ``spacing`` mm apart."""

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
    """How the evidence of slices within the organ differs from that of slices beyond it. ``centre`` is half way between
    the two means. ``spread`` is half of their difference: 0 or below where slices within do not have more evidence."""

    centre: float
    spread: float


@dataclass(frozen=True)
class Estimate:
    """The estimated range ``first`` ... ``last`` (inclusive). ``seen`` is False where the organ's slices do not stand
    out in the support scan itself; then evidence was not used, and the position in the stack alone decided.
    ``given``: a person said the range, and nothing was estimated."""

    first: int
    last: int
    seen: bool
    given: bool = False


def evidence(margins: Tensor, areas: Sequence[float], allowed: Tensor | None = None) -> Tensor:
    """How much foreground each part's support slice finds in each slice: margins (U, S, H, W) -> float64 (U, S), CPU.

    It is the mean margin of the ``SHARE`` * ``areas[u]`` pixels (at least one) of the highest margin. With ``allowed``
    (bool (H, W)) only those pixels are considered. ``areas`` (U,) are the organ's areas in the support slices, counted
    in pixels of these margins. ``ValueError`` where no pixel is ``allowed``.
    """
    if allowed is not None and not allowed.any():
        raise ValueError(
            "quadrants: no pixel lies in those that the support's organ occupies; is the body's centre right?"
        )
    rows = []
    for part_margins, area in zip(margins, areas, strict=True):
        # (S, H * W), or (S, number of allowed pixels)
        pixels = part_margins.flatten(1) if allowed is None else part_margins[:, allowed]
        count = min(max(round(SHARE * area), 1), pixels.shape[1])
        rows.append(pixels.topk(count, dim=1).values.double().mean(dim=1))
    return torch.stack(rows).cpu()


def calibrate(self_evidence: Tensor, stack: Stack, used: Sequence[int]) -> Level:
    """The level of ``evidence`` that separates slices within the organ from others. It is learnt from the support scan:
    ``self_evidence`` (U, S) is what its support slices find in the scan itself, ``stack`` is the organ's range there.

    Slices beyond the range count under the nearest part. The support slices (``used``) find themselves too well and are
    left out, unless there are no others. In a scan without a slice beyond the organ the centre is 0, the margin at
    which a pixel becomes foreground.
    """
    # the evidence of each slice for the part that it belongs to, (S,)
    parts = torch.tensor([part_of(z, stack.first, stack.last, len(self_evidence)) for z in range(stack.count)])
    values = self_evidence[parts, torch.arange(stack.count)]
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
    """The range of the organ in a query scan whose ``evidence`` is ``found`` (U, S) and whose slices lie ``spacing`` mm
    apart. ``support`` is the organ's range in the support scan, ``level`` what ``calibrate`` learnt there.

    Of all ranges a ... b of 0.6 to 1.5 times the support's length in mm it is the one with the largest

        sum_{z = a ... b} (found[part(z; a, b), z] - centre) / spread - 0.2 ((a - a0)^2 + (b - b0)^2) / n0

    The expected range a0 ... b0 of n0 slices has the support's length and lies at the same relative height in the
    stack. A slice with the evidence of those within the support's organ adds 1, one with that of those beyond it -1.
    Where ``spread`` is not above 0 the sum is left out. Of equal ranges the first wins. ``ValueError`` for no slice or
    a spacing that is not above 0.
    """
    parts, count = found.shape
    if not count or not spacing > 0:
        raise ValueError(f"found: expected slices some mm apart, got {plural(count, 'slice')}, spacing {spacing}")
    expected = support.length / spacing
    # the middle of the support's range as a share of its stack, laid on the query's stack
    expected_middle = ((support.first + support.last + 1) / 2 / support.count) * count - 0.5
    firsts, lasts = ranges(count, expected)
    expected_first, expected_last = expected_middle - (expected - 1) / 2, expected_middle + (expected - 1) / 2
    # one score for each candidate range, (R,)
    scores = -POSITION / expected * ((firsts - expected_first).square() + (lasts - expected_last).square())
    # Evidence that differs by rounding alone is no evidence.
    seen = level.spread > 1e-6 * max(1.0, abs(level.centre))
    if seen:
        scores += sums((found.double() - level.centre) / level.spread, firsts, lasts)
    best = int(torch.nonzero(scores == scores.max())[0])
    return Estimate(int(firsts[best]), int(lasts[best]), seen)


def ranges(count: int, expected: float) -> tuple[Tensor, Tensor]:
    """The first and the last slices, int64 (R,) each, of all ranges of ``SHORTEST`` to ``LONGEST`` times ``expected``
    slices in a stack of ``count`` slices. A range has at least one slice; where the stack is shorter than the shortest
    range, it is the only one."""
    shortest = min(max(math.ceil(SHORTEST * expected), 1), count)
    longest = min(max(math.floor(LONGEST * expected), shortest), count)
    # every start with every length, (count, lengths); those that run beyond the stack are dropped
    first, length = torch.meshgrid(torch.arange(count), torch.arange(shortest, longest + 1), indexing="ij")
    last = first + length - 1
    in_stack = last < count
    return first[in_stack], last[in_stack]


def sums(values: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """For every range the sum over its slices z of values[part(z; first, last), z]: values (U, S), first and last (R,)
    -> float64 (R,).

    Part u of a range of d + 1 slices begins at first + ceil(u d / U) (``protocol.part_of``). The sum over a part is a
    difference of two cumulative sums, so each range takes U of them and no loop over its slices.
    """
    parts = len(values)
    # cumulative[u, z] is the sum of the slices below z
    cumulative = torch.nn.functional.pad(values.cumsum(dim=1), (1, 0))
    distance = last - first
    total = torch.zeros(len(first), dtype=torch.float64)
    for u in range(parts):
        # where part u of every range begins and ends (exclusive); (a + b - 1) // b is a / b rounded up
        begin = first + (u * distance + parts - 1) // parts
        end = first + ((u + 1) * distance + parts - 1) // parts if u < parts - 1 else last + 1
        total += cumulative[u, end] - cumulative[u, begin]
    single = distance == 0  # one slice is part 0, where the formula has the last part
    total[single] = values[0, first[single]].double()
    return total
