"""A volume of any orientation as a stack of square axial slices of one pixel size, and maps of the stack brought back.

The stack is what the 2-D encoders are trained on. The volume is turned to the nearest right-anterior-superior order
and cut along its third axis. In a slice, rows run from anterior to posterior and columns from the patient's right to
the left. Slices are resampled in the plane and cropped or padded about their centre. Nothing is resampled across
slices, so those of an oblique volume stay oblique. On the way back every voxel of the volume reads the map at its own
position, so shape and affine are those of the file.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

SNAP = 0.05  # pixels: a pixel size that moves the image's border by less than this counts as the volume's own
SIDES, FIELDS = (0.01, 100.0), (1.0, 5000.0)  # mm: voxels, and fields of view, that a scanner makes
IMPLAUSIBLE = "an implausible size"
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class PixelAxis:
    """The model's pixels along one axis of the plane. Model pixel j lies at the position ``start + j * step``, counted
    in source pixels, of which there are ``count``."""

    count: int
    start: float
    step: float


@dataclass(frozen=True)
class Placement:
    """Where the slices of a volume lie in the model's pixels.

    ``shape`` (I, J, K) and ``affine`` (4, 4) are the volume's own. ``axes`` are the array axes that run (left-right,
    posterior-anterior, inferior-superior). ``flips`` says which of them run the other way, ``spacing`` is their voxel
    size in mm. ``pixel`` is the model's pixel size in mm, ``size`` the number of its pixels along a side. ``rows`` and
    ``columns`` are the model's pixels along the height and the width of a slice.
    """

    shape: tuple[int, int, int]
    affine: Array
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    spacing: tuple[float, float, float]
    pixel: float
    size: int
    rows: PixelAxis
    columns: PixelAxis

    @property
    def slices(self) -> int:
        """The number of slices of the stack."""
        return self.shape[self.axes[2]]


def check_affine(affine: Array, name: str) -> None:
    """``ValueError`` naming ``name`` unless ``affine`` is 4 x 4 and finite, every axis has a length, and no two axes
    run the same way (a singular matrix)."""
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise ValueError(f"{name}: its affine is not a finite 4 x 4 matrix")
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    if not (sides > 0).all():
        raise ValueError(f"{name}: voxel sizes {[round(float(s), 4) for s in sides]} mm; each must be above 0")
    # the determinant of unit axes: 1 at right angles, 0 where they lie in one plane
    if abs(np.linalg.det(affine[:3, :3] / sides)) < 1e-3:
        raise ValueError(f"{name}: its affine is singular (two axes run the same way); no orientation follows from it")


def check_grid(shape: Sequence[int], affine: Array, name: str) -> None:
    """``ValueError`` naming ``name`` for a volume (I, J, K) whose voxels or whose field of view no scanner makes, as
    when metres or microns are taken for mm."""
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    fields = sides * np.array(shape)
    if (
        not ((sides >= SIDES[0]) & (sides <= SIDES[1])).all()
        or not ((fields >= FIELDS[0]) & (fields <= FIELDS[1])).all()
    ):
        both = [" x ".join(f"{value:g}" for value in values) for values in (sides, fields)]
        raise ValueError(
            f"{name}: {IMPLAUSIBLE}: voxels of {both[0]} mm, a field of view of {both[1]} mm; allowed: "
            f"{SIDES[0]:g} to {SIDES[1]:g} mm and {FIELDS[0]:g} to {FIELDS[1]:,g} mm (is the unit mm?)"
        )


def place(shape: tuple[int, ...], affine: Array, *, pixel: float, size: int) -> Placement:
    """The placement of a volume (I, J, K) with ``affine`` (voxel index to RAS mm) in slices of ``size`` x ``size``
    pixels of ``pixel`` mm. ``ValueError`` for a shape that is not 3-D, a pixel size that is not above 0 mm, a size
    below 1, or a singular affine.
    """
    from nibabel.orientations import io_orientation

    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape: expected (I, J, K), got {tuple(shape)}")
    if not (0 < pixel < float("inf")) or size < 1:
        raise ValueError(f"pixel, size: expected a pixel size above 0 mm and a size of at least 1, got {pixel}, {size}")
    affine = np.array(affine, dtype=np.float64)
    check_affine(affine, "affine")
    orientation = io_orientation(affine)  # per array axis: which of R, A, S it runs along, and in which direction
    # the other way round: which array axis runs along R, which along A, which along S
    order = [int(np.nonzero(orientation[:, 0] == world)[0][0]) for world in range(3)]
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    spacing = tuple(float(sides[axis]) for axis in order)
    # in the plane: x (left-right) becomes the columns, y (posterior-anterior) the rows
    x, y = (pixel_axis(shape[axis], pixel / side, size) for axis, side in zip(order[:2], spacing[:2], strict=True))
    return Placement(
        shape=(int(shape[0]), int(shape[1]), int(shape[2])),
        affine=affine,
        axes=(order[0], order[1], order[2]),
        flips=(orientation[order[0], 1] < 0, orientation[order[1], 1] < 0, orientation[order[2], 1] < 0),
        spacing=(spacing[0], spacing[1], spacing[2]),
        pixel=float(pixel),
        size=size,
        rows=y,
        columns=x,
    )


def corners(placement: Placement) -> Array:
    """(8, 3) mm in RAS: the centres of the eight corner voxels of the upright stack. Two volumes of one upright shape
    whose corners agree are one grid, in whatever order each is stored."""
    # bit b of the corner's number says whether it lies at the far end of the upright axis b
    index = np.zeros((8, 3))
    for bit, (axis, flip) in enumerate(zip(placement.axes, placement.flips, strict=True)):
        ends = (placement.shape[axis] - 1, 0) if flip else (0, placement.shape[axis] - 1)
        index[:, axis] = [ends[(corner >> bit) & 1] for corner in range(8)]
    return index @ placement.affine[:3, :3].T + placement.affine[:3, 3]


def same_grid(a: Placement, b: Placement, tolerance: float = 0.1) -> bool:
    """Whether two volumes have the same upright shape, and corners that differ by less than ``tolerance`` voxels. A
    voxel's length is here its shortest side."""
    if [a.shape[axis] for axis in a.axes] != [b.shape[axis] for axis in b.axes]:
        return False
    return bool(np.linalg.norm(corners(a) - corners(b), axis=1).max() < tolerance * min(a.spacing))


def pixel_axis(count: int, step: float, size: int) -> PixelAxis:
    """``size`` model pixels, ``step`` source pixels apart, about the middle of ``count`` source pixels.

    A step of 1 starts at a whole pixel, so that equal grids are cropped and not resampled. Where the surplus is odd,
    the extra pixel is cut or added at the end.
    """
    # how far the step, summed up from the middle, moves the border
    if abs(step - 1.0) * max(count, size) / 2 < SNAP:
        return PixelAxis(count, float(int((count - size) / 2)), 1.0)
    return PixelAxis(count, (count - 1) / 2 - step * (size - 1) / 2, step)


def upright(volume: Array, placement: Placement) -> Array:
    """(I, J, K) -> (S, H, W): a view with rows anterior to posterior, columns right to left, slices upwards."""
    turned = volume.transpose(placement.axes)  # array axes in the order of the patient's R, A, S
    right, front, up = (slice(None, None, -1) if flip else slice(None) for flip in placement.flips)
    # first all axes towards R, A, S; then x to the left and y to the back, as a slice is looked at
    return turned[right, front, up][::-1, ::-1].transpose(2, 1, 0)


def restored(stack: Array, placement: Placement) -> Array:
    """(S, H, W) -> (I, J, K): undoes ``upright``."""
    # the same steps backwards: a flip undoes itself, argsort inverts the order of axes
    turned = stack.transpose(2, 1, 0)[::-1, ::-1]
    right, front, up = (slice(None, None, -1) if flip else slice(None) for flip in placement.flips)
    return turned[right, front, up].transpose(np.argsort(placement.axes))


def weights(positions: Tensor, count: int, step: float) -> tuple[Tensor, Tensor]:
    """(weights float32 (N, count), inside bool (N,)): linear interpolation at ``positions`` (N,) among ``count``
    pixels.

    ``inside`` says which positions lie in the image, up to half a pixel beyond the centres of its outer pixels. Rows of
    weights for positions outside are 0. ``step`` is the distance of the positions in pixels: above 1 the interpolation
    triangle is widened by it, against aliasing.
    """
    distance = (positions[:, None] - torch.arange(count, dtype=torch.float64)).abs()  # (N, count)
    triangle = (1.0 - distance / max(step, 1.0)).clamp_min(0.0)
    inside = (positions >= -0.5) & (positions <= count - 0.5)
    # each row sums to 1, also at the border, where part of the triangle lies outside
    total = triangle.sum(1, keepdim=True)
    return torch.where(inside[:, None], triangle / total.clamp_min(1e-12), 0.0).float(), inside


def resample(stack: Tensor, rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor], outside: float) -> Tensor:
    """(S, h, w) -> (S, H, W), with what ``weights`` gave for the rows and for the columns. Pixels outside the source
    hold ``outside``."""
    # interpolation is separable: (H, h) @ (S, h, w) @ (w, W)
    resampled = torch.matmul(torch.matmul(rows[0], stack), columns[0].T)  # (S, H, W)
    return resampled.masked_fill_(~(rows[1][:, None] & columns[1][None, :]), outside)


def slab(placement: Placement, first: int, last: int) -> tuple[tuple[slice, slice, slice], Placement]:
    """The slices ``first`` ... ``last`` (inclusive) of the stack by themselves: the part of the volume (I, J, K) that
    they are, as an index, and the placement of that part."""
    axis = placement.axes[2]
    start = placement.shape[axis] - 1 - last if placement.flips[2] else first
    stop = start + last - first + 1
    index, shape = [slice(None)] * 3, list(placement.shape)
    index[axis], shape[axis] = slice(start, stop), stop - start
    affine = placement.affine.copy()
    affine[:3, 3] += affine[:3, axis] * start
    return (index[0], index[1], index[2]), replace(placement, shape=(shape[0], shape[1], shape[2]), affine=affine)


def to_model_weights(placement: Placement) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """``weights`` of the model's rows and of its columns among the volume's pixels."""
    steps = torch.arange(placement.size, dtype=torch.float64)
    rows, columns = (
        weights(a.start + a.step * steps, a.count, a.step) for a in (placement.rows, placement.columns)
    )  # where the model's pixels lie, counted in the volume's pixels
    return rows, columns


def in_view(placement: Placement) -> Tensor:
    """Bool (size, size): the model's pixels that lie in the volume. The others are padding."""
    (_, rows), (_, columns) = to_model_weights(placement)
    return rows[:, None] & columns[None, :]


def to_model(volume: Array, placement: Placement, *, outside: float | None = None) -> Tensor:
    """(I, J, K) -> float32 (S, 1, size, size): the stack that an encoder sees. Pixels outside the volume hold
    ``outside``, by default its minimum. ``ValueError`` for a volume whose shape is not the placement's."""
    if volume.shape != placement.shape:
        raise ValueError(f"volume: expected the shape {placement.shape} of its placement, got {volume.shape}")
    stack = torch.from_numpy(np.ascontiguousarray(upright(volume, placement), dtype=np.float32))
    rows, columns = to_model_weights(placement)
    return resample(stack, rows, columns, float(stack.min()) if outside is None else outside)[:, None]


def from_model(maps: Tensor, placement: Placement, *, outside: float = 0.0) -> Array:
    """(S, size, size) float -> float32 (I, J, K) in the volume's own array order: the value of the map at each voxel's
    position, and ``outside`` for voxels that lie outside the model's square. ``ValueError`` for maps of another shape.
    """
    expected = (placement.slices, placement.size, placement.size)
    if tuple(maps.shape) != expected:
        raise ValueError(f"maps: expected {expected}, got {tuple(maps.shape)}")
    # the inverse of ``to_model``: where the volume's pixels lie, counted in the model's pixels
    axes = (placement.rows, placement.columns)
    rows, columns = (
        weights((torch.arange(a.count, dtype=torch.float64) - a.start) / a.step, placement.size, 1.0 / a.step)
        for a in axes
    )
    return restored(resample(maps.detach().float().cpu(), rows, columns, outside).numpy(), placement)
