"""The support's mask copied to a query, and how much it counts beside what the network finds.

In scans that are cut to one small structure and lie on each other, copying the support's mask is better than looking
for the organ; elsewhere it is far worse. Two signs that need no truth of the query tell which: how well the network
finds the organ on the support's own other slices, and whether the copied mask leads back from the query to the given
mask as well as the found one does (``reliability.cycle``).

All constants were chosen on inner splits (fold 0's training patients of CHAOS: whole scans, crops, and crops in pixels
three times as large) and on abdomen phantoms. No test mask had a share in it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sslmed_dist.downstream.oneshot.protocol import overlap, parts_of

AUTO, OFF = "auto", "off"
WAYS = (AUTO, OFF)
HEIGHTS = 16  # slices of the support's mask that are kept at most, at even heights of its range
PER_MM, REACH = 0.3, 20.0  # margin for each millimetre from the copied outline, which grows up to so many mm
SURE, LOST = 0.85, 0.45  # Dice on the support's own other slices: no copying is needed, and nothing speaks against it
BEHIND, AHEAD = -0.10, 0.05  # way back of the copied mask less that of the found one: too bad, and good enough
HALF, MOST = 0.5, 0.75  # the former as a share of the Dice on the support's own slices, or of LOST: likewise
LEAST = 0.05  # a weight below it is none


@dataclass(frozen=True)
class Copy:
    """What a support gives to be copied: signed distances float16 (n, H, W) in mm from the organ's outline in n slices
    at even heights of its range, negative in the organ, at most ``REACH``; and ``own``, the Dice with which the network
    finds the organ on those of the support's slices that it has not learnt from."""

    distances: Tensor
    own: float


@dataclass(frozen=True)
class Weighing:
    """How much the copied mask counts, 0 to 1 (``weight``), and why. ``own``: see ``Copy``. ``found`` and ``copied``:
    Dice of the way back from the query to the support with the found mask and with the copied one; None where ``own``
    alone has decided."""

    own: float
    found: float | None = None
    copied: float | None = None

    @property
    def weight(self) -> float:
        """The product of two numbers, 0 to 1, and 0 where that is below ``LEAST``.

        How much the network needs it: 0 from ``SURE`` on and 1 up to ``LOST``. How well the scans lie on each other:
        the lesser of two, by the ways back (``BEHIND`` to ``AHEAD``) and by the copied mask's alone (``HALF`` to
        ``MOST``)."""
        if self.found is None or self.copied is None:
            return 0.0
        beside = between(self.copied - self.found, BEHIND, AHEAD)
        alone = between(self.copied / max(self.own, LOST), HALF, MOST)
        weight = need(self.own) * min(beside, alone)
        return weight if weight >= LEAST else 0.0

    @property
    def why(self) -> str:
        """The weight and its reasons in words."""
        if self.found is None or self.copied is None:
            return f"not needed: the support's own other slices are found with Dice {self.own:.2f}"
        signs = (
            f"Dice of the way back {self.copied:.2f} copied, {self.found:.2f} found; the support's own other slices "
            f"are found with {self.own:.2f}"
        )
        return f"{f'aligned with the support: {self.weight:.2f}' if self.weight > 0 else 'not aligned'} ({signs})"


def check(way: str, where: str = "copying") -> str:
    """The way. ``ValueError`` for one that is not allowed."""
    if way not in WAYS:
        raise ValueError(f"{where}: expected one of {', '.join(WAYS)}, got {way!r}")
    return way


def between(value: float, low: float, high: float) -> float:
    """0 up to ``low``, 1 from ``high`` on, and a straight line between."""
    return min(max((value - low) / (high - low), 0.0), 1.0)


def need(own: float) -> float:
    """How much the network needs the copied mask, 0 to 1, by the Dice ``own`` on the support's own other slices."""
    return between(SURE - own, 0.0, SURE - LOST)


def copy_of(
    mask: Tensor, margins: Tensor, slices: list[int], span: tuple[int, int], sides: tuple[float, float]
) -> Copy:
    """What a support with the organ's ``mask`` bool (S, H, W) in the range ``span`` gives to be copied. ``margins``
    (U, S, H, W) are what its ``slices`` (U,) find in it; ``sides`` are mm between rows and columns. Where there are no
    slices but those, they are judged themselves."""
    first, last = span
    own_range = torch.arange(first, last + 1)
    others = torch.tensor([z not in slices for z in own_range.tolist()])
    judged = (others if others.any() else ~others).to(mask.device)
    parts = parts_of(first, last, len(margins))
    found = margins[parts.to(mask.device), own_range.to(mask.device)] > 0  # (n, H, W)
    dice = overlap(found[judged], mask[first : last + 1][judged]).dice or 0.0
    count = last - first + 1
    # heights of ``kept`` slices of the range: each is the middle of an equal share
    kept = min(count, HEIGHTS)
    chosen = [first + (2 * k + 1) * count // (2 * kept) for k in range(kept)]
    return Copy(distances(mask[chosen], sides), dice)


def distances(mask: Tensor, sides: tuple[float, float]) -> Tensor:
    """Signed mm float16 (n, H, W) from the outline of the masks bool (n, H, W), slice by slice: negative in the mask,
    at most ``REACH``, which an empty slice has everywhere."""
    from scipy import ndimage

    result = np.full(tuple(mask.shape), REACH, np.float32)
    for z, shape in enumerate(mask.cpu().numpy()):
        if shape.any():
            beyond, inside = (ndimage.distance_transform_edt(one, sampling=sides) for one in (~shape, shape))
            result[z] = np.clip(beyond - inside, -REACH, REACH)
    return torch.from_numpy(result).half().to(mask.device)


def at_heights(of: Tensor, count: int) -> Tensor:
    """Maps (n, H, W) at even heights of a range as maps of its ``count`` slices, linear between heights."""
    middles = (torch.arange(count, dtype=torch.float64) + 0.5) / count * len(of) - 0.5
    middles = middles.clamp(0, len(of) - 1)
    below = middles.floor().long()
    share = (middles - below).to(of.dtype)[:, None, None].to(of.device)
    above = (below + 1).clamp(max=len(of) - 1)
    return torch.lerp(of[below.to(of.device)], of[above.to(of.device)], share)


def mixed(margins: Tensor, laid: Tensor, weight: float) -> Tensor:
    """Margins (n, H, W) of a range's slices, mixed with those of the copied mask by its ``weight``. ``laid`` float32
    (m, H, W) are the signed distances on the query at even heights of the range. Weight 0 gives the margins as they
    are, 1 the copied mask."""
    if not weight > 0:
        return margins
    copied = at_heights(laid, len(margins)).mul_(-PER_MM)
    return torch.lerp(margins, copied, weight)
