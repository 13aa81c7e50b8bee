"""Volumes on another grid, every voxel where it was in the patient: turned, resampled, cropped; the affine follows.

Volumes are (I, J, K) arrays with an affine from index to millimetres in RAS, as in NIfTI.
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
    directions = affine[:3, :3] / lengths
    if np.abs(directions.T @ directions - np.eye(3)).max() > RIGHT_ANGLE:
        raise ValueError(f"{name}: the axes are not at right angles (sheared); allowed: rotations and flips")


def spacing(affine: Affine) -> tuple[float, float, float]:
    """Millimetres between voxels along each axis."""
    i, j, k = (float(length) for length in np.linalg.norm(affine[:3, :3], axis=0))
    return i, j, k


def turn(affine: Affine, volumes: Sequence[NDArray[np.generic]], axes: str) -> tuple[Affine, list[NDArray[np.generic]]]:
    """Swap and flip the axes of ``volumes``, all on one grid, so that they point closest to ``axes``, e.g. "LAS":
    towards the patient's left, front and head. No voxel changes its value or place."""
    import nibabel.orientations as orientations

    now = orientations.io_orientation(affine)
    moves = orientations.ornt_transform(now, orientations.axcodes2ornt(tuple(axes)))
    turned: Affine = affine @ orientations.inv_ornt_aff(moves, volumes[0].shape)
    return turned, [np.ascontiguousarray(orientations.apply_orientation(volume, moves)) for volume in volumes]


def positions_at(size: int, old: float, new: float) -> NDArray[np.float64]:
    """Where the voxels of an axis with spacing ``new`` lie on one of ``size`` voxels of spacing ``old``: the first on
    the first, ``int(size * old / new + 1)`` of them (Ouyang et al. 2020), so the last may lie beyond the scan."""
    positions: NDArray[np.float64] = np.arange(int(round(size * old / new, 6) + 1), dtype=np.float64) * (new / old)
    return positions


def weights(positions: NDArray[np.float64], size: int) -> tuple[Volume, NDArray[np.bool_]]:
    """Linear interpolation as a matrix (new, size), and which rows lie in the scan: up to half a voxel beyond the
    centres of its ends, where the end's value goes on."""
    inside = (positions >= -0.5) & (positions <= size - 0.5)
    at = np.clip(positions, 0, size - 1)
    low = np.minimum(at.astype(np.int64), max(size - 2, 0))
    matrix = np.zeros((len(positions), size), np.float32)
    rows = np.arange(len(positions))
    matrix[rows, low] = 1.0 - (at - low)
    matrix[rows, np.minimum(low + 1, size - 1)] += at - low
    return matrix, inside


def resample(volume: Volume, positions: Positions, fill: float) -> Volume:
    """Linear interpolation at ``positions`` (an array of indices per axis); ``fill`` outside the scan."""
    result = volume
    outside = []
    for axis, where in enumerate(positions):
        matrix, inside = weights(where, volume.shape[axis])
        outside.append(~inside)
        result = np.moveaxis(np.tensordot(matrix, result, axes=(1, axis)), 0, axis)
    for axis, beyond in enumerate(outside):
        result[(slice(None),) * axis + (beyond,)] = fill
    return np.ascontiguousarray(result, dtype=np.float32)


def resample_labels(labels: Labels, positions: Positions, count: int) -> Labels:
    """Each of the labels 1 ... ``count`` interpolated linearly by itself: a voxel gets the largest where that is 0.5 or
    more (the lower label of a tie), else 0."""
    best = np.full([len(where) for where in positions], 0.5 - 1e-6, np.float32)
    result = np.zeros(best.shape, np.uint8)
    for value in range(1, count + 1):
        share = resample((labels == value).astype(np.float32), positions, 0.0)
        result[share > best] = value
        best = np.maximum(best, share)
    return result


def moved(affine: Affine, positions: Positions) -> Affine:
    """The affine of a grid whose voxels lie at evenly spaced ``positions`` of the old one."""
    result = affine.copy()
    for axis, where in enumerate(positions):
        result[:3, axis] = affine[:3, axis] * float(where[1] - where[0] if len(where) > 1 else 1.0)
    result[:3, 3] = affine[:3, :3] @ np.array([where[0] for where in positions]) + affine[:3, 3]
    return result


def crop_or_pad(
    volume: NDArray[np.generic], affine: Affine, size: tuple[int, int], fill: float
) -> tuple[NDArray[np.generic], Affine]:
    """The middle ``size`` voxels of the first two axes, filled up evenly where there are fewer. Of an odd surplus the
    extra voxel goes at the far end. The affine moves along."""
    result = np.full((*size, volume.shape[2]), fill, volume.dtype)
    plane = volume.shape[:2]
    starts = [
        (have - want) // 2 if have >= want else -((want - have) // 2) for have, want in zip(plane, size, strict=True)
    ]
    source, target = [], []
    for start, have, want in zip(starts, plane, size, strict=True):
        source.append(slice(max(start, 0), min(start + want, have)))
        target.append(slice(max(-start, 0), max(-start, 0) + source[-1].stop - source[-1].start))
    result[tuple(target)] = volume[tuple(source)]
    shifted = affine.copy()
    shifted[:3, 3] += affine[:3, :2] @ np.array(starts, dtype=np.float64)
    return result, shifted
