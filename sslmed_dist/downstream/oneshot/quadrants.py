"""Quadrant masking (thesis, section 7.4.2.3): an organ is looked for only where the support scan has it.

In slices (S, 1, H, W) rows run from anterior to posterior and columns from the patient's right to the left. The body's
centre divides each slice into four quadrants: anterior and posterior, right and left. Where an organ lies is knowledge
of anatomy, taken from one annotated patient. So a scan's orientation must be known, and the method fails where organs
lie elsewhere (situs inversus, a transplanted kidney). The thesis does not say where a slice is halved, nor how much of
an organ must lie in a quadrant to occupy it; both are decided here.
"""

import torch
from torch import Tensor

# The share of an organ's voxels that a quadrant must exceed to count as occupied. The border between quadrants cuts
# through organs near it, and a few voxels across it must not open a whole quadrant. On the 20 CHAOS scans 0.01 gives
# the liver three quadrants and the other organs 1.15 to 1.65 on average, and removes 0.9 to 2.5 % of another patient's
# true voxels; 0.05 removes up to 4.2 %, 0 opens every quadrant for two livers of three.
SHARE = 0.01
# The share of the body's pixels that is left out at each end of its extent, since it may be arms or noise.
MARGIN = 0.01


def body_centre(slices: Tensor) -> tuple[float, float]:
    """(row, column) of the middle of the body in a stack (S, C, H, W), the same for all its slices, in pixels.

    The body is the pixels of the mean slice that are brighter than its average. Its extent along rows and along columns
    is the range that holds the middle 98 % of these pixels. The body is halved and not the image, because patients do
    not lie in the centre of their images. The result does not depend on the scale of the intensities. ``ValueError``
    for a constant stack.
    """
    mean = slices.double().mean(dim=(0, 1))  # (H, W)
    body = mean > mean.mean()
    if not body.any():
        raise ValueError("slices: expected a body that is brighter than what is around it, got a constant mean slice")
    return middle(body.sum(dim=1)), middle(body.sum(dim=0))


def middle(counts: Tensor) -> float:
    """The middle of the extent of a histogram ``counts`` (L,), after ``MARGIN`` of its sum is cut off at both ends."""
    cumulative_share = counts.double().cumsum(0) / counts.sum()
    # a count of the bins below a limit is the index of the first bin that reaches it
    ends = torch.stack([(cumulative_share < MARGIN).sum(), (cumulative_share < 1 - MARGIN).sum()]).tolist()
    return float(ends[0] + ends[1]) / 2


def sides(centre: tuple[float, float], size: tuple[int, int], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """(bool (H,), bool (W,)): whether each row lies behind the ``centre`` (row, column), and whether each column lies
    to the patient's left of it. ``size`` is (H, W)."""
    rows, columns = (torch.arange(length, device=device) > at for length, at in zip(size, centre, strict=True))
    return rows, columns


def occupied(mask: Tensor, centre: tuple[float, float], share: float = SHARE) -> Tensor:
    """The quadrants that an organ occupies, by its mask (S, H, W): bool (2, 2) on the mask's device, [anterior,
    posterior] x [right, left]. A quadrant is occupied that holds more than ``share`` of the organ's voxels.
    ``ValueError`` for an empty mask."""
    projection = mask.bool().sum(dim=0).double()  # (H, W) voxels over all slices
    if not projection.any():
        raise ValueError("mask: expected at least one voxel, got an empty mask")
    behind, left = (
        side.double() for side in sides(centre, (projection.shape[0], projection.shape[1]), projection.device)
    )
    # voxels of each quadrant: rows summed on both sides of the centre (2, H), then columns (W, 2)
    voxel_counts = torch.stack([1 - behind, behind]) @ projection @ torch.stack([1 - left, left]).T
    return voxel_counts / projection.sum() > share


def allowed(quadrants: Tensor, centre: tuple[float, float], size: tuple[int, int]) -> Tensor:
    """Bool (H, W): the pixels that lie in ``quadrants`` (bool (2, 2)). ``centre`` is that of the body in the scan that
    the pixels belong to, ``size`` is (H, W)."""
    behind, left = sides(centre, size, quadrants.device)
    # each pixel looks up its quadrant: row 0 or 1 by ``behind``, column 0 or 1 by ``left``
    return quadrants[behind.long()[:, None], left.long()[None, :]]
