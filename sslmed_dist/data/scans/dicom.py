"""One DICOM series as one array with its position in the patient.

Pixel (i, j) of slice k is in column i and row j. It lies at ``position_k + i * column spacing * row direction +
j * row spacing * column direction`` (DICOM PS3.3, C.7.6.2.1.1). That is in DICOM's frame, whose axes point to the
patient's left, back and head (LPS). NIfTI's axes point right, front and head (RAS), so the first two coordinates change
their sign.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sslmed_dist.data.scans.completeness import ends_missing, ends_unknown, stride_of
from sslmed_dist.data.scans.frames import BELONGS, SAME_DIRECTION, Frame, Slice, read_slices
from sslmed_dist.data.scans.grid import check_grid
from sslmed_dist.data.scans.memory import require_voxels
from sslmed_dist.data.scans.padding import fill_padding
from sslmed_dist.data.scans.straighten import straighten
from sslmed_dist.printable import plural

Voxels = NDArray[np.float32]
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
# How far a slice distance may differ from the usual one, as a share of it: up to the first they are equal, below the
# second the slices are resampled, from there on one is missing.
UNEVEN, TOO_UNEVEN = 0.01, 0.5
TILTED = "tilted gantry"  # begins a notice
ENDS_UNKNOWN = "its files do not say how many slices it has: one that is missing at an end would not be noticed"
SAME_SCALE = 1e-6  # relative difference of the private scales of slices
SAME_PLACE = 0.01  # mm: slices closer to each other than this are at one position


@dataclass(frozen=True)
class Series:
    """A volume whose slices are sorted along their normal (the cross product row direction x column direction).

    voxels            (columns, rows, slices) float32, rescaled (RescaleSlope, RescaleIntercept)
    affine            (4, 4) float64: index (i, j, k) to millimetres in RAS; voxels and affine make a NIfTI as they are
    files             paths of the files from the folder, in slice order; ``files[k]`` holds ``voxels[:, :, k]``
    instance_numbers  InstanceNumber of each, None where it is missing
    modality          "MR", "CT", ... or "" where it is missing
    notices           what was changed while reading, a line each
    """

    voxels: NDArray[np.float32]
    affine: NDArray[np.float64]
    files: tuple[str, ...]
    instance_numbers: tuple[int | None, ...]
    modality: str
    notices: tuple[str, ...] = ()
    resampled: bool = False  # straightened: ``files[k]`` does not hold ``voxels[:, :, k]``

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between columns, rows and slices."""
        i, j, k = (float(np.linalg.norm(self.affine[:3, axis])) for axis in range(3))
        return i, j, k


def read_series(folder: str | Path, files: Sequence[Path] | None = None) -> Series:
    """The series whose ``files`` lie in or below ``folder``; without them it is all files right in the folder. Files
    that are not DICOM, or hold no image (DICOMDIR, reports), are skipped; damaged ones never. An enhanced file holds
    several slices.

    ``ValueError`` naming the file or folder: no DICOM image, files of two series, a single slice, colour images, pixels
    that cannot be decoded, positions or spacings missing or impossible, slices of different sizes, orientations or
    pixel spacings, two slices at one position, a slice missing (distances differ by half or more, or the files
    count more), or more voxels than ``memory.most_voxels``.
    """
    series_folder = Path(folder)
    if not series_folder.is_dir():
        raise ValueError(f"{series_folder}: no such folder")
    if files is None:
        files = [path for path in sorted(series_folder.iterdir()) if path.is_file()]
    slices: list[Slice] = []
    count = 0  # voxels so far
    for path in files:
        of_file = read_slices(path)
        slices += of_file
        count += sum(item.pixels.size for item in of_file)
        if of_file:
            require_voxels(count, (*of_file[0].pixels.shape[::-1], len(slices)), series_folder)
    require_one_series(series_folder, [item.frame for item in slices])
    # file names and instance numbers are not reliable: the order is that of the positions along the normal
    normal = slices[0].frame.normal  # (3,) unit vector in LPS
    slices.sort(key=lambda item: (float(item.frame.position @ normal), item.frame.name))
    frames = [item.frame for item in slices]
    step = slice_step(series_folder, frames, normal)
    voxels, said = volume_of(series_folder, slices)
    notices = {item.notice for item in slices} - {""}
    notices |= require_complete(series_folder, frames, float(step @ normal))
    resampled = resampling(frames, step, normal)
    if resampled:
        usual = float(step @ normal)
        voxels, origin = straighten(voxels, frames[0], np.stack([frame.position for frame in frames]), usual)
        affine, said = affine_of(replace(frames[0], position=origin), normal * usual), (resampled, *said)
    else:
        affine = affine_of(frames[0], step)
    check_grid(voxels.shape, affine, str(series_folder))
    return Series(
        voxels=voxels,
        affine=affine,
        files=tuple(name_below(series_folder, frame.path) for frame in frames),
        instance_numbers=tuple(frame.instance for frame in frames),
        modality=frames[0].modality,
        notices=(*sorted(notices), *said),
        resampled=bool(resampled),
    )


def resampling(frames: Sequence[Frame], step: NDArray[np.float64], normal: NDArray[np.float64]) -> str:
    """In words, why the sorted ``frames`` have to be brought to a grid at right angles; "" where they lie on one."""
    gaps = np.diff([float(frame.position @ normal) for frame in frames])
    usual = float(step @ normal)
    sideways = float(np.linalg.norm(step - usual * normal))
    if sideways > UNEVEN * usual:
        degrees = np.degrees(np.arctan2(sideways, usual))
        return f"{TILTED} ({degrees:.1f} degrees): its slices were resampled to a grid at right angles"
    if np.abs(gaps - usual).max() > UNEVEN * usual:
        return f"slices {gaps.min():.3g} to {gaps.max():.3g} mm apart: resampled to {usual:.3g} mm"
    return ""


def volume_of(folder: Path, slices: Sequence[Slice]) -> tuple[Voxels, tuple[str, ...]]:
    """(voxels (columns, rows, slices) of the sorted ``slices``, what was replaced or rescaled in them). ``ValueError``
    for pixels that are no numbers, and where all are padding.

    Values are those that are to be displayed (RescaleSlope, RescaleIntercept). Where Philips scaled the slices of one
    series differently they are divided by these scales, so that all slices are in one unit.
    """
    scales = [item.scale for item in slices]
    known = [scale for scale in scales if scale is not None]
    said: tuple[str, ...] = ()
    voxels = np.empty((*slices[0].pixels.T.shape, len(slices)), np.float32)  # (columns, rows, slices)
    if known and len(known) == len(scales) and max(known) > min(known) * (1 + SAME_SCALE):
        said = (f"Philips' private scales differ between its slices ({min(known):g} to {max(known):g}) and are used",)
    for k, item in enumerate(slices):
        if np.isinf(item.pixels).any():
            raise ValueError(f"{item.frame.path}: pixels that are infinite")
        voxels[:, :, k] = item.pixels.T / np.float32(known[k]) if said else item.pixels.T
    if known and not said:
        reason = "are equal" if len(known) == len(scales) else "are not in all of its files"
        said = (f"Philips' private scales {reason}, and are not used",)
    try:
        return voxels, (*said, *fill_padding(voxels))
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def name_below(folder: Path, path: Path) -> str:
    """A file's path from the folder it lies in or below; its name where it lies elsewhere."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


def require_complete(folder: Path, frames: Sequence[Frame], step: float) -> set[str]:
    """What is to be said where nothing tells whether a slice is missing at an end of the sorted ``frames``, or every
    second one of them, which follow each other by ``step`` mm. ``ValueError`` where one is (``completeness``)."""
    stride = stride_of(step, frames)
    if stride.every > 1:
        many = (stride.every - 1) * (len(frames) - 1)
        raise ValueError(f"{folder}: {plural(len(frames), 'slice')}, but {stride.why}: {many} missing between them")
    stated = [frame.stated for frame in frames]
    missing, why = ends_missing([frame.instance for frame in frames], stated)
    if missing:
        raise ValueError(f"{folder}: {plural(len(frames), 'slice')}, but {why}: {missing} missing at an end")
    one_file = len({frame.path for frame in frames}) == 1  # its frames are counted by the file itself
    unknown = {ENDS_UNKNOWN} if ends_unknown(stated) and not one_file else set()
    return unknown | ({stride.doubt} if stride.doubt and not one_file else set())


def affine_of(first: Frame, step: NDArray[np.float64]) -> NDArray[np.float64]:
    """(4, 4): index (column, row, slice) to RAS mm of slices that begin with ``first`` and follow each other by
    ``step`` (3,) mm in LPS."""
    affine = np.eye(4)
    axis_vectors = [first.plane[0] * first.spacing[1], first.plane[1] * first.spacing[0], step]
    affine[:3, :3] = LPS_TO_RAS @ np.stack(axis_vectors, axis=1)
    affine[:3, 3] = LPS_TO_RAS @ first.position
    return affine


def require_one_series(folder: Path, frames: Sequence[Frame]) -> None:
    """``ValueError`` unless all frames belong to one series and have one size, orientation and pixel spacing."""
    if not frames:
        raise ValueError(f"{folder}: no DICOM image in it")
    first = frames[0]
    for frame in frames:
        if frame.series != first.series:
            raise ValueError(f"{folder}: images of two series, {first.name} and {frame.name}; allowed: one")
    if len(frames) == 1:
        raise ValueError(f"{folder}: a single slice ({first.name}); a volume has at least 2")
    for frame in frames[1:]:
        difference = unlike(frame, first)
        if difference:
            raise ValueError(f"{frame.path}: {difference}")


def unlike(frame: Frame, first: Frame) -> str:
    """In words, why two frames are not slices of one volume: another patient, modality, frame of reference or
    meaning of grey, another size, orientation or pixel spacing; empty where they may be. Values that name a patient are
    not told."""
    for name, own, other in zip(BELONGS, frame.of, first.of, strict=False):
        if differ(own, other):
            return f"{name} is not that of {first.name}; one volume has one"
    if frame.shape != first.shape:
        sizes = [" x ".join(map(str, shape)) for shape in (frame.shape, first.shape)]
        return f"{sizes[0]} pixels, {first.name} has {sizes[1]}; one size is allowed"
    if not np.allclose(frame.plane, first.plane, atol=SAME_DIRECTION):
        return f"is turned against {first.name}; one orientation is allowed"
    if not np.allclose(frame.spacing, first.spacing, rtol=SAME_DIRECTION):
        return f"pixel spacing {frame.spacing} mm, {first.name} has {first.spacing}"
    return ""


def differ(own: str, other: str) -> bool:
    """Whether two slices say two things; one that says nothing agrees with all."""
    return bool(own and other and own != other)


def slice_step(folder: Path, frames: Sequence[Frame], normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """The vector (3,) from one slice to the next, mm in LPS, of the usual length; ``frames`` are sorted along
    ``normal``. ``ValueError`` as ``read_series``."""
    positions = np.stack([frame.position for frame in frames])  # (S, 3)
    gaps = np.diff(positions @ normal)  # (S - 1,) mm along the normal
    names = [frame.name for frame in frames]
    for k in np.nonzero(gaps < SAME_PLACE)[0]:
        raise ValueError(f"{folder}: {names[k]} and {names[k + 1]} lie in one place (two phases or echoes?)")
    # evenly spaced? the usual distance is the (lower) median, which one missing slice does not move
    usual = usual_gap(gaps)
    widest = int(np.abs(gaps - usual).argmax())
    if abs(gaps[widest] - usual) >= TOO_UNEVEN * usual:
        raise ValueError(
            f"{folder}: {gaps[widest]:.3f} mm from {names[widest]} to {names[widest + 1]}, elsewhere {usual:.3f} mm: "
            "a slice is missing, or the slices are uneven"
        )
    # every slice must lie on the line from the first to the last
    whole = positions[-1] - positions[0]
    shares = np.concatenate([[0.0], np.cumsum(gaps)]) / gaps.sum()
    off = np.abs(positions - positions[0] - shares[:, None] * whole).max(axis=1)
    worst = int(off.argmax())
    if off[worst] > max(UNEVEN * usual, SAME_PLACE) * 2:
        raise ValueError(f"{folder}: {names[worst]} lies {off[worst]:.3f} mm beside the line of the other slices")
    even = bool((np.abs(gaps - usual) <= UNEVEN * usual).all())
    length = float(gaps.mean()) if even else usual
    step: NDArray[np.float64] = whole * (length / gaps.sum())
    return step


def usual_gap(gaps: NDArray[np.float64]) -> float:
    """The lower median of the distances between neighbouring slices, mm."""
    return float(np.sort(gaps)[(len(gaps) - 1) // 2])
