"""The slices of one series of an examination, upright."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sslmed_dist.data.exams.planes import slices_last, upright
from sslmed_dist.data.exams.series import Series
from sslmed_dist.data.scans.dicom import SAME_PLACE, TILTED, TOO_UNEVEN, UNEVEN, affine_of, unlike, volume_of
from sslmed_dist.data.scans.frames import Frame, read_slices
from sslmed_dist.data.scans.nifti import load_nifti
from sslmed_dist.data.scans.padding import fill_padding
from sslmed_dist.data.scans.straighten import unshifted

Stack = NDArray[np.float32]  # (S, H, W)


def read_stack(series: Series, said: list[str] | None = None) -> Stack:
    """The slices (S, H, W) float32 of a series, upright; what was guessed, replaced, moved or mirrored is appended to
    ``said``. ``ValueError`` naming the file that is damaged or gone.

    Slices that are shifted sideways against each other (tilted gantry) are moved to where they lie, so H and W may be
    more than ``series.shape`` says. Distances between slices stay as they are."""
    said = [] if said is None else said
    said.extend(series.notices)
    if series.damaged:
        raise ValueError(series.damaged[0])
    if series.nifti:
        _, voxels, affine = load_nifti(series.files[0])
        said.extend(fill_padding(voxels))
        affine, order = slices_last(affine)
        return np.ascontiguousarray(upright(voxels.transpose(order), affine, series.plane))
    slices = [item for path in series.files for item in read_slices(path)]
    slices = [item for item in slices if item.frame.series == series.tags.series]
    expected = series.shape[0]
    if len(slices) != expected or any(unlike(item.frame, slices[0].frame) for item in slices):
        raise ValueError(f"{series.files[0]}: its series was changed while it was read")
    normal = slices[0].frame.normal
    slices.sort(key=lambda item: float(item.frame.position @ normal))
    voxels, replaced = volume_of(series.files[0], slices)
    said.extend([*sorted({item.notice for item in slices} - {""}), *replaced])
    frames = [item.frame for item in slices]
    aside = sideways(frames, series.spacing_mm[0])
    said.extend([*aside, *unevenly(frames, series.spacing_mm[0])])
    if aside:
        voxels = unshifted(voxels, frames[0], np.stack([frame.position for frame in frames]))
    affine = affine_of(slices[0].frame, normal * series.spacing_mm[0])
    return np.ascontiguousarray(upright(voxels, affine, series.plane))


def sideways(frames: Sequence[Frame], step: float) -> list[str]:
    """A line where the sorted ``frames``, ``step`` mm apart, do not lie above each other along their normal."""
    normal = frames[0].normal
    shifts = np.stack([frame.position - frames[0].position for frame in frames])  # (S, 3) mm
    depth = shifts @ normal
    off = shifts - depth[:, None] * normal
    slope = float(np.linalg.norm(off[-1])) / depth[-1]
    beside = float(np.linalg.norm(off - depth[:, None] / depth[-1] * off[-1], axis=1).max())
    if slope > UNEVEN:
        return [f"{TILTED}: slices moved to where they lie, {np.degrees(np.arctan(slope)):.1f} degrees"]
    if beside > max(UNEVEN * step, SAME_PLACE) * 2:
        return [f"slices beside the line of the others: moved to where they lie, {beside:.2g} mm at most"]
    return []


def unevenly(frames: Sequence[Frame], step: float) -> list[str]:
    """A line where the distances of the sorted ``frames`` differ from ``step`` mm, but by less than a missing slice."""
    gaps = np.diff([float(frame.position @ frames[0].normal) for frame in frames])
    uneven = gaps[(np.abs(gaps - step) > UNEVEN * step) & (np.abs(gaps - step) < TOO_UNEVEN * step)]
    return [f"uneven slices taken as they are, {gaps.min():.3g} to {gaps.max():.3g} mm apart"] if len(uneven) else []
