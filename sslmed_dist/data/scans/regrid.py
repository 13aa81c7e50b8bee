"""Volumes brought to another grid: turned, resampled, cropped.

The affine is changed along with the voxels, so everything stays where it was in the patient. Volumes are (I, J, K)
arrays with an affine from index to millimetres in RAS, as in NIfTI.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Volume = NDArray[np.float32]
Labels = NDArray[np.uint8]
Affine = NDArray[np.float64]
Positions = Sequence[NDArray[np.float64]]
RIGHT_ANGLE = 1e-3  # largest cosine between two axes


def require_right_angles(affine: Affine, name: str) -> None:
    """``ValueError`` naming ``name`` when an axis has no length or two are not at right angles."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or (lengths <= 0).any():
        raise ValueError(f"{name}: voxel spacing must be above 0 mm, got {', '.join(f'{x:g}' for x in lengths)}")
    directions = affine[:3, :3] / lengths  # (3, 3), a unit vector in each column
    # the cosines between the axes; the identity where all are at right angles
    if np.abs(directions.T @ directions - np.eye(3)).max() > RIGHT_ANGLE:
        raise ValueError(f"{name}: the axes are not at right angles (sheared); allowed: rotations and flips")


def spacing(affine: Affine) -> tuple[float, float, float]:
    """Millimetres between voxels along each axis: the lengths of the affine's first three columns."""
    i, j, k = (float(length) for length in np.linalg.norm(affine[:3, :3], axis=0))
    return i, j, k


def turn(affine: Affine, volumes: Sequence[NDArray[np.generic]], axes: str) -> tuple[Affine, list[NDArray[np.generic]]]:
    """Swap and flip the axes of ``volumes`` (I, J, K), all on one grid, so that they point closest to ``axes``, e.g.
    "LAS": towards the patient's left, front and head. No voxel changes its value, or its position in mm."""
    import nibabel.orientations as orientations

    now = orientations.io_orientation(affine)
    moves = orientations.ornt_transform(now, orientations.axcodes2ornt(tuple(axes)))
    turned: Affine = affine @ orientations.inv_ornt_aff(moves, volumes[0].shape)
    return turned, [np.ascontiguousarray(orientations.apply_orientation(volume, moves)) for volume in volumes]


def positions_at(size: int, old: float, new: float) -> NDArray[np.float64]:
    """(N,) float64: where the voxels of a new axis of spacing ``new`` mm lie, counted in the voxels of an old axis of
    ``size`` voxels of spacing ``old`` mm.

    The first new voxel lies on the first old one. There are N = ``int(size * old / new + 1)`` of them (Ouyang et al.
    2020), so the last may lie beyond the scan.
    """
    # rounded before int(): 7.999999 of floating point is 8
    positions: NDArray[np.float64] = np.arange(int(round(size * old / new, 6) + 1), dtype=np.float64) * (new / old)
    return positions


def weights(positions: NDArray[np.float64], size: int) -> tuple[Volume, NDArray[np.bool_]]:
    """(matrix float32 (N, size), inside bool (N,)): linear interpolation at ``positions`` (N,) among ``size`` voxels.

    ``inside`` says which positions lie in the scan, up to half a voxel beyond the centres of its outer voxels. Beyond
    those centres the value is that of the outer voxel.
    """
    inside = (positions >= -0.5) & (positions <= size - 0.5)
    clipped = np.clip(positions, 0, size - 1)
    low = np.minimum(clipped.astype(np.int64), max(size - 2, 0))
    # each row has two weights that add up to 1: of the voxel below the position and of the one above it
    matrix = np.zeros((len(positions), size), np.float32)
    rows = np.arange(len(positions))
    matrix[rows, low] = 1.0 - (clipped - low)
    matrix[rows, np.minimum(low + 1, size - 1)] += clipped - low
    return matrix, inside


def resample(volume: Volume, positions: Positions, fill: float) -> Volume:
    """Linear interpolation of ``volume`` (I, J, K) at ``positions``, for each axis an array of indices that need not be
    whole: float32 of the shape of the lengths of ``positions``. Voxels outside the scan hold ``fill``."""
    result = volume
    outside = []
    for axis, where in enumerate(positions):
        matrix, inside = weights(where, volume.shape[axis])
        outside.append(~inside)
        # tensordot puts the interpolated axis first: back to its own position
        result = np.moveaxis(np.tensordot(matrix, result, axes=(1, axis)), 0, axis)
    for axis, beyond in enumerate(outside):
        result[(slice(None),) * axis + (beyond,)] = fill
    return np.ascontiguousarray(result, dtype=np.float32)


def resample_labels(labels: Labels, positions: Positions, count: int) -> Labels:
    """``resample`` for labels 1 ... ``count`` (0 = none), uint8.

    The mask of each label is interpolated linearly by itself, which gives the label's share of a new voxel. A voxel
    gets the label of the largest share where that is 0.5 or more (of equal shares the lower label), else 0.
    """
    # starts just below 0.5, so that a share of exactly 0.5 wins in spite of rounding
    best_share = np.full([len(where) for where in positions], 0.5 - 1e-6, np.float32)
    result = np.zeros(best_share.shape, np.uint8)
    for value in range(1, count + 1):
        share = resample((labels == value).astype(np.float32), positions, 0.0)
        result[share > best_share] = value
        best_share = np.maximum(best_share, share)
    return result


def moved(affine: Affine, positions: Positions) -> Affine:
    """The affine of a new grid whose voxels lie at evenly spaced ``positions`` (for each axis an array of indices) of
    the old one."""
    result = affine.copy()
    # columns are scaled to the new steps; the origin is where the first new voxel lies
    for axis, where in enumerate(positions):
        result[:3, axis] = affine[:3, axis] * float(where[1] - where[0] if len(where) > 1 else 1.0)
    result[:3, 3] = affine[:3, :3] @ np.array([where[0] for where in positions]) + affine[:3, 3]
    return result


def crop_or_pad(
    volume: NDArray[np.generic], affine: Affine, size: tuple[int, int], fill: float
) -> tuple[NDArray[np.generic], Affine]:
    """The middle ``size`` voxels of the first two axes of ``volume`` (I, J, K), padded evenly with ``fill`` where it
    has fewer. Where the difference is odd, the extra voxel is cut or added at the far end. The affine's origin moves
    along.
    """
    result = np.full((*size, volume.shape[2]), fill, volume.dtype)
    plane = volume.shape[:2]
    # index of the old grid at which the new one starts; negative where padding comes first
    starts = [
        (old_size - new_size) // 2 if old_size >= new_size else -((new_size - old_size) // 2)
        for old_size, new_size in zip(plane, size, strict=True)
    ]
    # the overlap of the two grids, in the indices of the old one (source) and of the new one (target)
    source, target = [], []
    for start, old_size, new_size in zip(starts, plane, size, strict=True):
        source.append(slice(max(start, 0), min(start + new_size, old_size)))
        target.append(slice(max(-start, 0), max(-start, 0) + source[-1].stop - source[-1].start))
    result[tuple(target)] = volume[tuple(source)]
    shifted = affine.copy()
    shifted[:3, 3] += affine[:3, :2] @ np.array(starts, dtype=np.float64)
    return result, shifted
