"""Quadrant masking (thesis, section 7.4.2.3): an organ is looked for only where the support scan has it.

Slices (S, 1, H, W) run anterior to posterior and patient right to left, so the body's centre cuts them into right and
left anterior and posterior quadrants. This is knowledge of anatomy, of one annotated patient: it takes a scan whose
orientation is known, and fails where organs lie elsewhere (situs inversus, a transplanted kidney). The thesis does not
say where a slice is halved, nor how much of an organ occupies a quadrant.
"""

import torch
from torch import Tensor

# Of an organ's voxels: quadrants with less do not count as occupied. The quadrants' border cuts through organs near it,
# and a few voxels across it must not open a whole quadrant. On the 20 CHAOS scans 0.01 gives the liver three quadrants
# and the others 1.15 to 1.65 on average, and removes 0.9 to 2.5 % of another patient's true voxels; 0.05 removes up to
# 4.2 %, 0 opens every quadrant for two livers of three.
SHARE = 0.01
# Of the body's pixels, left out at each end of its extent: arms and noise.
MARGIN = 0.01


def body_centre(slices: Tensor) -> tuple[float, float]:
    """(row, column) of the middle of the body in a stack (S, C, H, W), the same for all its slices, in pixels.

    The body are the pixels above the average of the mean slice; its extent along rows and columns is what holds the
    middle 98 % of them. The body and not the image is halved, for patients lie off the centre of their images. Does not
    depend on the scale of the intensities. ``ValueError`` for a constant stack.
    """
    mean = slices.double().mean(dim=(0, 1))
    body = mean > mean.mean()
    if not body.any():
        raise ValueError("slices: expected a body that is brighter than what is around it, got a constant mean slice")
    return middle(body.sum(dim=1)), middle(body.sum(dim=0))


def middle(counts: Tensor) -> float:
    """The middle of the extent of a histogram (L,), ``MARGIN`` of it cut off at both ends."""
    share = counts.double().cumsum(0) / counts.sum()
    ends = torch.stack([(share < MARGIN).sum(), (share < 1 - MARGIN).sum()]).tolist()
    return float(ends[0] + ends[1]) / 2


def sides(centre: tuple[float, float], size: tuple[int, int], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Whether each row lies behind the centre (H,), and each column to the patient's left of it (W,)."""
    rows, columns = (torch.arange(length, device=device) > at for length, at in zip(size, centre, strict=True))
    return rows, columns


def occupied(mask: Tensor, centre: tuple[float, float], share: float = SHARE) -> Tensor:
    """The quadrants of an organ's mask (S, H, W): bool (2, 2) on its device, [anterior, posterior] x [right, left];
    those that hold more than ``share`` of its voxels. ``ValueError`` for an empty mask."""
    area = mask.bool().sum(dim=0).double()
    if not area.any():
        raise ValueError("mask: expected at least one voxel, got an empty mask")
    behind, left = (side.double() for side in sides(centre, (area.shape[0], area.shape[1]), area.device))
    half = torch.stack([1 - behind, behind]) @ area @ torch.stack([1 - left, left]).T
    return half / area.sum() > share


def allowed(quadrants: Tensor, centre: tuple[float, float], size: tuple[int, int]) -> Tensor:
    """The pixels bool (H, W) of a scan with its own body's ``centre`` that lie in ``quadrants`` (bool (2, 2))."""
    behind, left = sides(centre, size, quadrants.device)
    return quadrants[behind.long()[:, None], left.long()[None, :]]
