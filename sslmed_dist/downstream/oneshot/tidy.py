"""Margins of a whole scan made plausible without its truth: what one slice finds alone, what lies far from where the
support has the organ, and what hangs apart from the rest counts less or not at all.

The constants were chosen on pairs of fold 0's training patients alone (an inner fold); no test mask had a share in it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sslmed_dist.downstream.oneshot.protocol import parts_of, true_range

FREE = 10.0  # mm outside the support's outline within which a pixel loses nothing
PER_MM = 0.2  # what the margin loses for each further millimetre; a head's margins are some units wide
REMOVED = -40.0  # the margin where nothing may be found: the lowest that a cosine head of temperature 1/20 gives

Spacing = tuple[float, float, float]  # mm between rows, columns and slices
Centre = tuple[float, float]  # (row, column), see ``quadrants.body_centre``


@dataclass(frozen=True)
class Place:
    """Where a support scan has the organ, relative to the middle of its body."""

    outside: Tensor  # (U, H, W) float32, mm from the outline of the organ in each part; 0 in it
    centre: Centre  # of the support's body, in pixels
    spacing: Spacing  # of the support
    middle: tuple[float, float]  # mm of the organ's centroid behind and to the left of the body's centre
    height: float  # of the centroid in the stack of slices, 0 to 1
    volume: float  # mm^3


def place_of(mask: Tensor, centre: Centre, spacing: Spacing, parts: int) -> Place:
    """The ``Place`` of a mask bool (S, H, W) that holds a voxel. A part of the organ is all of its slices together."""
    from scipy import ndimage

    organ_range = true_range(mask)
    assert organ_range is not None, "an empty mask has no place"
    first, last = organ_range
    of_slices = parts_of(first, last, parts)
    slices = mask[first : last + 1].cpu()
    outside = []
    for part in range(parts):
        own = slices[of_slices == part].any(dim=0)
        shape = (own if own.any() else slices.any(dim=0)).numpy()  # a range of two slices has no middle part
        outside.append(
            torch.from_numpy(ndimage.distance_transform_edt(~shape, sampling=spacing[:2]).astype(np.float32))
        )
    middle, height = centroid(mask, centre, spacing)
    volume = int(mask.sum()) * spacing[0] * spacing[1] * spacing[2]
    return Place(torch.stack(outside).to(mask.device), centre, spacing, middle, height, volume)


def centroid(mask: Tensor, centre: Centre, spacing: Spacing) -> tuple[tuple[float, float], float]:
    """Of a mask (S, H, W) with a voxel: (mm behind and to the left of the body's ``centre``, height in the stack)."""
    slices, rows, columns = (index.double().mean().item() for index in torch.nonzero(mask, as_tuple=True))
    in_plane = ((rows - centre[0]) * spacing[0], (columns - centre[1]) * spacing[1])
    return in_plane, (slices + 0.5) / len(mask)


def smoothed(margins: Tensor) -> Tensor:
    """Margins (..., S, H, W) averaged with those of the slices below and above, 1 : 2 : 1; the ends are repeated."""
    # In place on one copy: margins of a large scan are half a gigabyte.
    mean = 2 * margins
    mean[..., 1:, :, :] += margins[..., :-1, :, :]
    mean[..., :-1, :, :] += margins[..., 1:, :, :]
    mean[..., 0, :, :] += margins[..., 0, :, :]
    mean[..., -1, :, :] += margins[..., -1, :, :]
    return mean.div_(4)


def moved(outside: Tensor, place: Place, centre: Centre, spacing: Spacing, size: tuple[int, int]) -> Tensor:
    """Maps (U, H, W) of the support laid on a query of ``size`` (h, w) so that the middles of both bodies meet and
    millimetres stay millimetres: (U, h, w), bilinear. Beyond the support's image the value at its border stands."""
    height, width = outside.shape[-2:]
    rows = (torch.arange(size[0], dtype=torch.float64) - centre[0]) * spacing[0] / place.spacing[0] + place.centre[0]
    columns = (torch.arange(size[1], dtype=torch.float64) - centre[1]) * spacing[1] / place.spacing[1] + place.centre[1]
    # pixel numbers to -1 ... 1 between the outer edges of the first and the last pixel
    down, across = (2 * rows + 1) / height - 1, (2 * columns + 1) / width - 1
    grid = torch.stack(torch.meshgrid(down, across, indexing="ij")[::-1], dim=-1)[None].float().to(outside.device)
    return functional.grid_sample(outside[None], grid, padding_mode="border", align_corners=False)[0]


def tidied(margins: Tensor, place: Place, centre: Centre, spacing: Spacing) -> Tensor:
    """Margins (U, S, H, W) of a query by each part: averaged with their neighbours, and lower by ``PER_MM`` for every
    millimetre beyond ``FREE`` from where the support has the part."""
    far = moved(place.outside, place, centre, spacing, (margins.shape[2], margins.shape[3])) - FREE
    return smoothed(margins).sub_(PER_MM * far.clamp_min(0)[:, None])


def in_one_piece(margins: Tensor) -> Tensor:
    """Margins (n, H, W) of an organ's slices with ``REMOVED`` in place of those above 0 that do not hang together with
    the largest piece (voxels that touch by a corner hang together; of equal pieces the first stays).

    By size alone: on 56 spleens of the inner fold's held-out patients (every support) neither the sum of margins nor
    the distance from the support's place chose a better piece, keeping pieces of a fifth or half of the largest one's
    size lost 0.1 to 0.2 points of Dice, and the best piece, chosen by the truth, would have won 0.1.
    """
    from scipy import ndimage

    pieces, count = ndimage.label((margins > 0).cpu().numpy(), structure=np.ones((3, 3, 3), bool))
    if count < 2:
        return margins
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    stray = torch.from_numpy((pieces > 0) & (pieces != sizes.argmax())).to(margins.device)
    return margins.masked_fill(stray, REMOVED)
