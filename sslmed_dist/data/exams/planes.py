"""The three planes: to which one slices belong, and how they lie upright."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslmed_dist.data.scans.regrid import turn

PLANES = ("sagittal", "coronal", "axial")  # the plane whose slices follow each other along right, front, head


def slices_last(affine: NDArray[np.float64]) -> tuple[NDArray[np.float64], list[int]]:
    """(affine, order of the axes) with the axis of the largest voxel side put last."""
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    thickest = 2 if sides.max() < 1.05 * sides[2] else int(sides.argmax())
    order = [axis for axis in range(3) if axis != thickest] + [thickest]
    return affine[:, [*order, 3]], order


def nearest_plane(affine: NDArray[np.float64]) -> tuple[str, float]:
    """(plane, degrees off it) of slices that follow each other along the third axis, counted by their normal."""
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    cosines = np.abs(normal) / np.linalg.norm(normal)
    nearest = int(cosines.argmax())
    return PLANES[nearest], float(np.degrees(np.arccos(min(cosines[nearest], 1.0))))


def plane_spacing(affine: NDArray[np.float64], plane: str) -> tuple[float, float]:
    """Millimetres between the rows and between the columns of the upright slices."""
    turned, _ = turn(affine, [np.empty((2, 2, 2), bool)], "RAS")
    right, front, up = (float(side) for side in np.linalg.norm(turned[:3, :3], axis=0))
    return {"sagittal": (up, front), "coronal": (up, right), "axial": (front, right)}[plane]


def upright(voxels: NDArray[Any], affine: NDArray[np.float64], plane: str) -> NDArray[Any]:
    """(I, J, K) -> (S, H, W) as a slice is looked at. Sagittal slices follow each other from the patient's right to the
    left, coronal ones from front to back, axial ones from feet to head. Rows run from head to feet (axial: from front
    to back), columns from right to left (sagittal: from front to back)."""
    _, (turned,) = turn(affine, [voxels], "RAS")
    if plane == "axial":
        return turned[::-1, ::-1].transpose(2, 1, 0)
    backwards = turned[::-1, ::-1, ::-1]
    return backwards.transpose(1, 2, 0) if plane == "coronal" else backwards.transpose(0, 2, 1)


def mirrored(stack: NDArray[Any], plane: str) -> NDArray[Any]:
    """The stack (S, H, W) of the other side of the body: the order of sagittal slices is reversed, in the other planes
    left and right are flipped."""
    return stack[::-1] if plane == "sagittal" else stack[:, :, ::-1]
