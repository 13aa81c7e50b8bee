"""How far a mask that was found without any truth can be trusted: one figure for each organ and query.

The figure is the estimated probability that the volume's Dice coefficient is at least 0.5. Signs that need no truth
are weighed by a logistic regression. It was fitted to CHAOS patients that the encoder had not seen, and that are not
among those it was tested on (``python -m tests.benchmarks.oneshot_reliability``). In that fit the way back to the
support told nothing that the other signs do not, so it has no weight there; it is a limit instead, because it is the
one sign that knows another organ. For other organs, scanners and encoders the probability is not calibrated.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal
from itertools import pairwise

import torch
from torch import Tensor

from sslmed_dist.downstream.oneshot.protocol import overlap, parts_of
from sslmed_dist.downstream.oneshot.segmenter import Found, Segmenter, Shown
from sslmed_dist.downstream.oneshot.tidy import Centre, Spacing, centroid

# Whether much of a sign speaks for a mask or against it.
SPEAKS: Mapping[str, int] = {"agreement": 1, "confidence": 1, "cycle": 1, "height": -1, "away": -1}
# How many standard deviations a sign counts in a mask's favour at most: no sign outvotes one that is very bad.
MOST = 1.5
# Of each sign: its mean and its standard deviation over the pairs that were fitted, and its weight. Then the constant.
FITTED: Mapping[str, tuple[float, float, float]] = {
    "agreement": (0.691, 0.138, 0.707),
    "confidence": (0.842, 0.034, 1.659),
    "height": (0.081, 0.066, 1.137),
    "away": (13.804, 7.497, 1.055),
}
CONSTANT = 3.722
# A mask that leads back to less of the support's than this Dice is of something else, whatever other signs say.
RETURNS = 0.5
THRESHOLD = 0.8  # a figure below it: do not trust the mask
ORGANS = ("right kidney", "left kidney", "liver", "spleen")  # whose pairs were fitted, in CHAOS T2-SPIR
UNCALIBRATED = "reliability is not calibrated for this organ"
DOUBT = f"reliability below {THRESHOLD}: do not trust this mask"
MEANING = (
    f"estimated probability of a Dice of at least 0.5, by signs that need no truth; below {THRESHOLD} do not trust the "
    "mask, above it look all the same: on five held-out CHAOS patients it missed five of seven failures; calibrated on "
    "four organs of CHAOS T2-SPIR, elsewhere uncalibrated"
)


def calibrated(organ: str) -> bool:
    """Whether the constants were fitted to an organ of this name. ``False`` where the name is no organ's."""
    return organ.strip().lower() in ORGANS


@dataclass(frozen=True)
class Signs:
    """What speaks for or against a mask.

    agreement   Dice, 0 to 1, of what neighbouring parts of the support find in the range's slices; their mean
    confidence  mean foreground probability of the mask's voxels, as the head gives it
    cycle       back from the query: Dice on the support's slices of what the found mask shows there, with the given one
    height      distance between the heights of the organ in the two stacks, as a share of a stack
    away        mm between the places of the organ in the plane, each relative to the middle of its body
    """

    agreement: float
    confidence: float
    cycle: float
    height: float
    away: float

    @property
    def figure(self) -> float:
        """The estimated probability, 0 to 1, of a Dice of at least 0.5; at most ``cycle`` where that is below
        ``RETURNS``."""
        total = CONSTANT
        for name, (mean, deviation, weight) in FITTED.items():
            total += weight * min(SPEAKS[name] * (getattr(self, name) - mean) / deviation, MOST)
        chance = 1 / (1 + math.exp(-max(min(total, 500.0), -500.0)))
        return chance if self.cycle >= RETURNS else min(chance, self.cycle)


def rounded_down(figure: float, digits: int) -> float:
    """The figure with so many digits, rounded down: one below the threshold never reads as the threshold, and no
    estimate reads as 1."""
    return float(Decimal(repr(figure)).quantize(Decimal(1).scaleb(-digits), ROUND_FLOOR))


@torch.inference_mode()
def signs(
    segmenter: Segmenter, shown: Shown, found: Found, maps: Tensor, spacing: Spacing, centre: Centre
) -> Signs | None:
    """The signs of what was ``found`` on a query with the ``maps`` (S, D, h, w), of the organ that was ``shown`` with
    the middle of the support's body. ``centre`` is that of the query's. None where nothing was found."""
    assert shown.place is not None, "the organ was learnt without the centre of the support's body"
    first, last = found.estimate.first, found.estimate.last
    margins = found.within(first, last)  # (n, H, W)
    if not (margins > 0).any():
        return None
    mask = torch.zeros(found.margins.shape[1:], dtype=torch.bool, device=margins.device)
    mask[first : last + 1] = margins > 0
    by_parts = found.margins[:, first : last + 1] > 0  # (U, n, H, W)
    shares = [overlap(one, other).dice or 0.0 for one, other in pairwise(by_parts)]
    middle, height = centroid(mask, centre, spacing)
    return Signs(
        agreement=sum(shares) / len(shares),
        confidence=float(margins[margins > 0].sigmoid().mean()),
        cycle=cycle(segmenter, shown, mask, maps, (first, last)),
        height=abs(height - shown.place.height),
        away=math.dist(middle, shown.place.middle),
    )


def cycle(segmenter: Segmenter, shown: Shown, mask: Tensor, maps: Tensor, span: tuple[int, int]) -> float:
    """Dice, 0 to 1, over the U support slices, of what the query shows there with the ``mask`` (S, H, W) that was found
    in the slices ``span``. Of each part the middle slice that holds any of the mask shows the organ."""
    filled = mask.flatten(1).any(dim=1).cpu()
    parts = parts_of(*span, len(shown.slices))
    total = None
    for part, support_slice in enumerate(shown.maps):
        own = [z for z in range(span[0], span[1] + 1) if filled[z] and parts[z - span[0]] == part]
        own = own or torch.nonzero(filled)[:, 0].tolist()
        z = own[len(own) // 2]
        prototypes = segmenter.prototypes(maps[z : z + 1], mask[z : z + 1])
        back = segmenter.margins([prototypes], support_slice[None], mask.shape[1:])[0, 0] > 0
        counts = overlap(back, shown.masks[part])
        total = counts if total is None else total + counts
    return (total.dice or 0.0) if total is not None else 0.0
