"""A picture of a scan with its mask, so that one sees at a glance whether the contours lie on the organs."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sslmed_dist.data.scans.regrid import Labels, Volume

COLOURS = ((255, 64, 64), (64, 224, 64), (64, 160, 255), (255, 208, 0))  # labels 1 to 4: red, green, blue, yellow
DARKEST, BRIGHTEST = 0.5, 99.5  # percentiles shown as black and white


def outline(labels: Labels) -> NDArray[np.bool_]:
    """Bool (I, J, K): the voxels of an organ in ``labels`` (I, J, K) that have one of their four in-plane neighbours
    outside it."""
    # a voxel is inside when all four neighbours have its label; beyond the image lies 0
    padded = np.pad(labels, ((1, 1), (1, 1), (0, 0)))
    inner = labels > 0
    for neighbour in (padded[2:, 1:-1], padded[:-2, 1:-1], padded[1:-1, 2:], padded[1:-1, :-2]):
        inner &= labels == neighbour
    return (labels > 0) & ~inner


def shown_slices(volume: Volume, labels: Labels | None, count: int) -> list[int]:
    """The numbers of ``count`` slices (fewer in a volume with fewer), lowest first. They are evenly spread over the
    slices with an organ; without any, over those that are not constant; without any, over all slices."""
    content = np.ptp(volume, axis=(0, 1)) > 0 if labels is None or not labels.any() else labels.any(axis=(0, 1))
    candidates = np.nonzero(content)[0]
    if not len(candidates):
        candidates = np.arange(volume.shape[2])
    picks = np.linspace(0, len(candidates) - 1, min(count, len(candidates))).round().astype(int)
    return [int(candidates[pick]) for pick in picks]


def contact_sheet(volume: Volume, labels: Labels | None, *, columns: int = 4, rows: int = 2) -> NDArray[np.uint8]:
    """Slices of a volume (I, J, K) whose axes run left, anterior, superior, with contours of the organs in ``COLOURS``.

    uint8 (rows x J, columns x I, 3), the lowest slice first. Each slice is shown as seen from the feet: the patient's
    right is on the left, the front is up.
    """
    low, high = np.percentile(volume, (DARKEST, BRIGHTEST))
    grey = np.clip((volume - low) / max(high - low, 1e-6), 0, 1) * 255
    picture = np.repeat(grey.round().astype(np.uint8)[..., None], 3, axis=3)  # (I, J, K, RGB)
    if labels is not None:
        border = outline(labels)
        for value, colour in enumerate(COLOURS, start=1):
            picture[border & (labels == value)] = colour
    upright = picture[:, ::-1].transpose(2, 1, 0, 3)  # (K, J, I, RGB), the front in the first row
    sheet = np.zeros((rows * volume.shape[1], columns * volume.shape[0], 3), np.uint8)
    for tile_index, slice_number in enumerate(shown_slices(volume, labels, rows * columns)):
        top, left = tile_index // columns * volume.shape[1], tile_index % columns * volume.shape[0]
        sheet[top : top + volume.shape[1], left : left + volume.shape[0]] = upright[slice_number]
    return sheet


def write_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    """A picture (H, W, 3) as PNG."""
    from torchvision.io import write_png

    write_png(torch.from_numpy(picture).permute(2, 0, 1).contiguous(), str(path))
