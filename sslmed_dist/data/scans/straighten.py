"""A stack whose slices are shifted sideways (tilted gantry) or unevenly spaced, brought to a grid at right angles."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sslmed_dist.data.scans.frames import Frame
from sslmed_dist.data.scans.memory import require_voxels
from sslmed_dist.data.scans.regrid import resample

Voxels = NDArray[np.float32]


def straighten(
    voxels: Voxels, first: Frame, positions: NDArray[np.float64], step: float
) -> tuple[Voxels, NDArray[np.float64]]:
    """(voxels (columns, rows, slices) of the new grid, position (3,) of its first voxel in LPS mm).

    ``voxels`` are the slices at ``positions`` (S, 3) mm in LPS, sorted along their normal, all of the plane and pixel
    spacing of ``first``. The new slices follow each other along the normal by ``step`` mm; the first lies on the first
    old one. Each old slice is moved in its plane to where it lies, and between two of them the new ones are
    interpolated, both linearly. The new plane holds all that any slice shows; what none shows is the volume's minimum.
    ``ValueError`` for more voxels than are read.
    """
    depth = (positions - positions[0]) @ first.normal  # (S,) mm
    count = int(round(depth[-1] / step)) + 1
    sizes, moved, corner = one_plane(voxels, first, positions, count)
    result = np.empty((*sizes, count), np.float32)
    for m in range(count):
        below = int(np.clip(np.searchsorted(depth, m * step, side="right") - 1, 0, len(depth) - 2))
        share = np.float32(np.clip((m * step - depth[below]) / (depth[below + 1] - depth[below]), 0.0, 1.0))
        # rounding of positions moves no slice
        share = np.float32(round(float(share), 3))
        result[:, :, m] = moved(below) if share == 0 else moved(below + 1)
        if 0 < share < 1:
            result[:, :, m] = (1 - share) * moved(below) + share * moved(below + 1)
    return result, corner


def unshifted(voxels: Voxels, first: Frame, positions: NDArray[np.float64]) -> Voxels:
    """``straighten`` within the slices alone: each is moved in its plane to where it lies; none is added between."""
    sizes, moved, _ = one_plane(voxels, first, positions, len(positions))
    result = np.empty((*sizes, len(positions)), np.float32)
    for k in range(len(positions)):
        result[:, :, k] = moved(k)
    return result


def one_plane(
    voxels: Voxels, first: Frame, positions: NDArray[np.float64], count: int
) -> tuple[list[int], Callable[[int], Voxels], NDArray[np.float64]]:
    """(columns and rows of the plane that holds all that any slice shows, a function from the number of a slice to that
    slice in it, position (3,) of its first pixel in LPS mm). ``ValueError`` where ``count`` slices of it are more
    voxels than are read."""
    aside = positions - positions[0]
    # how far each slice is shifted, in columns and in rows
    shifts = [aside @ direction / side for direction, side in zip(first.plane, first.spacing[::-1], strict=True)]
    starts = [int(np.floor(shift.min() + 1e-6)) for shift in shifts]
    sizes = [
        size + int(np.ceil(shift.max() - 1e-6)) - start
        for size, shift, start in zip(voxels.shape, shifts, starts, strict=False)
    ]
    require_voxels(sizes[0] * sizes[1] * count, (*sizes, count), first.path.parent)
    fill = float(voxels.min())

    def moved(k: int) -> Voxels:
        where = [np.arange(size) + start - shift[k] for size, start, shift in zip(sizes, starts, shifts, strict=True)]
        return resample(voxels[:, :, k : k + 1], [*where, np.zeros(1)], fill)[:, :, 0]

    corner = sum(
        start * side * direction
        for start, side, direction in zip(starts, first.spacing[::-1], first.plane, strict=True)
    )
    return sizes, moved, first.position + corner
