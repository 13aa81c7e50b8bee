"""One DICOM series as one array with its place in the patient.

Pixel (i, j) of the slice k, column i and row j, lies at (DICOM PS3.3, C.7.6.2.1.1, in the LPS frame)
``position_k + i * column spacing * row direction + j * row spacing * column direction``; NIfTI's frame is RAS, so the
first two coordinates change their sign.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
UNEVEN = 0.01  # of the usual distance: by so much may the distance of two neighbouring slices differ from it
SAME_PLACE = 0.01  # mm
SAME_DIRECTION = 1e-3  # difference of a direction cosine, and relative difference of pixel spacings


@dataclass(frozen=True)
class Series:
    """A volume in the order of its slices along their normal, row direction x column direction.

    voxels            (columns, rows, slices) float32, rescaled (RescaleSlope, RescaleIntercept)
    affine            (4, 4) float64: index (i, j, k) to millimetres in RAS; voxels and affine make a NIfTI as they are
    files             names of the files in slice order; ``files[k]`` holds ``voxels[:, :, k]``
    instance_numbers  InstanceNumber of each, None where it is missing
    modality          "MR", "CT", ... or "" where it is missing
    """

    voxels: NDArray[np.float32]
    affine: NDArray[np.float64]
    files: tuple[str, ...]
    instance_numbers: tuple[int | None, ...]
    modality: str

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between columns, rows and slices."""
        i, j, k = (float(np.linalg.norm(self.affine[:3, axis])) for axis in range(3))
        return i, j, k


@dataclass(frozen=True)
class Slice:
    """One file: pixels (rows, columns) float32, ``plane`` = row direction, column direction, in LPS."""

    path: Path
    series: str
    pixels: NDArray[np.float32]
    position: NDArray[np.float64]
    plane: NDArray[np.float64]
    spacing: tuple[float, float]  # of rows, of columns
    instance: int | None
    modality: str


def read_series(folder: str | Path) -> Series:
    """The series whose files lie in ``folder`` (not in folders below it). Files that are not DICOM, or hold no image
    (DICOMDIR, reports), are passed over.

    ``ValueError`` naming the file or folder: no DICOM image, files of two series, a single slice, multi-frame or
    colour images, pixels that cannot be decoded, positions or spacings missing or impossible, slices of different
    sizes, orientations or pixel spacings, two slices in one place, a slice missing (distances differ by more than
    1 %), slices that are not stacked along their normal (tilted gantry).
    """
    place = Path(folder)
    if not place.is_dir():
        raise ValueError(f"{place}: no such folder")
    read = [read_slice(path) for path in sorted(place.iterdir()) if path.is_file()]
    slices = [item for item in read if item is not None]
    require_one_series(place, slices)
    first = slices[0]
    normal = np.cross(first.plane[0], first.plane[1])
    slices.sort(key=lambda item: (float(item.position @ normal), item.path.name))
    step = slice_step(place, slices, normal)
    affine = np.eye(4)
    columns = [first.plane[0] * first.spacing[1], first.plane[1] * first.spacing[0], step]
    affine[:3, :3] = LPS_TO_RAS @ np.stack(columns, axis=1)
    affine[:3, 3] = LPS_TO_RAS @ slices[0].position
    return Series(
        voxels=np.ascontiguousarray(np.stack([item.pixels.T for item in slices], axis=2)),
        affine=affine,
        files=tuple(item.path.name for item in slices),
        instance_numbers=tuple(item.instance for item in slices),
        modality=first.modality,
    )


def read_slice(path: Path) -> Slice | None:
    """The image in ``path``; None when it is no DICOM file or holds no image. ``ValueError`` as ``read_series``."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        header: Any = pydicom.dcmread(path)
    except InvalidDicomError:
        return None
    except (OSError, EOFError, ValueError, NotImplementedError) as error:
        raise ValueError(f"{path}: cannot be read, truncated or not DICOM: {error}") from error
    if "PixelData" not in header:
        return None
    require_plain_image(path, header)
    rows, columns = numbers(path, header, "PixelSpacing", 2)
    if rows <= 0 or columns <= 0:
        raise ValueError(f"{path}: PixelSpacing must be above 0 mm, got {rows} and {columns}")
    plane = np.array(numbers(path, header, "ImageOrientationPatient", 6)).reshape(2, 3)
    if not np.allclose(plane @ plane.T, np.eye(2), atol=SAME_DIRECTION):
        raise ValueError(
            f"{path}: ImageOrientationPatient must be two unit vectors at right angles, got {plane.ravel().tolist()}"
        )
    instance = header.get("InstanceNumber")
    return Slice(
        path=path,
        series=str(header.get("SeriesInstanceUID", "")),
        pixels=rescaled(path, header),
        position=np.array(numbers(path, header, "ImagePositionPatient", 3)),
        plane=plane,
        spacing=(rows, columns),
        instance=None if instance in (None, "") else int(instance),
        modality=str(header.get("Modality", "") or ""),
    )


def require_plain_image(path: Path, header: Any) -> None:
    """``ValueError`` unless the file holds one grey image with linear rescaling."""
    if int(header.get("NumberOfFrames", 1) or 1) > 1:
        frames = int(header.NumberOfFrames)
        raise ValueError(f"{path}: {frames} frames in one file (enhanced DICOM); allowed: one slice per file")
    kind = str(header.get("PhotometricInterpretation", ""))
    if int(header.get("SamplesPerPixel", 1)) != 1 or not kind.startswith("MONOCHROME"):
        raise ValueError(f"{path}: pixels are {kind or 'of unknown kind'}, allowed: MONOCHROME1, MONOCHROME2")
    if "ModalityLUTSequence" in header:
        raise ValueError(f"{path}: pixels go through a table (ModalityLUTSequence); allowed: slope and intercept")


def numbers(path: Path, header: Any, name: str, count: int) -> list[float]:
    """The ``count`` numbers of an attribute. ``ValueError`` when it is missing or holds something else."""
    value = header.get(name)
    if value is None or value == "":
        raise ValueError(f"{path}: has no {name}, so where it lies in the patient is unknown")
    try:
        found = [float(part) for part in (value if count > 1 else [value])]
    except (TypeError, ValueError):
        found = []
    if len(found) != count or not np.isfinite(found).all():
        raise ValueError(f"{path}: {name} must be {count} finite number(s), got {value}")
    return found


def rescaled(path: Path, header: Any) -> NDArray[np.float32]:
    """Pixels (rows, columns) x slope + intercept. ``ValueError`` when they cannot be decoded."""
    slope = numbers(path, header, "RescaleSlope", 1)[0] if header.get("RescaleSlope") is not None else 1.0
    shift = numbers(path, header, "RescaleIntercept", 1)[0] if header.get("RescaleIntercept") is not None else 0.0
    if slope == 0.0:
        raise ValueError(f"{path}: RescaleSlope must not be 0")
    try:
        stored: NDArray[Any] = header.pixel_array
    except Exception as error:  # each decoder raises what it likes
        syntax = getattr(getattr(header, "file_meta", None), "TransferSyntaxUID", None)
        coding = getattr(syntax, "name", "unknown coding")
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: pixels ({coding}) cannot be decoded: {reason}") from error
    if stored.ndim != 2:
        raise ValueError(f"{path}: expected one image of rows x columns, got shape {stored.shape}")
    return (stored.astype(np.float64) * slope + shift).astype(np.float32)


def require_one_series(place: Path, slices: Sequence[Slice]) -> None:
    """``ValueError`` unless all slices belong to one series and have one size, orientation and pixel spacing."""
    if not slices:
        raise ValueError(f"{place}: no DICOM image in it")
    first = slices[0]
    for item in slices:
        if item.series != first.series:
            raise ValueError(f"{place}: images of two series, {first.path.name} and {item.path.name}; allowed: one")
    if len(slices) == 1:
        raise ValueError(f"{place}: a single slice ({first.path.name}); a volume has at least 2")
    for item in slices:
        if item.pixels.shape != first.pixels.shape:
            sizes = [" x ".join(map(str, shape)) for shape in (item.pixels.shape, first.pixels.shape)]
            raise ValueError(f"{item.path}: {sizes[0]} pixels, {first.path.name} has {sizes[1]}; one size is allowed")
        if not np.allclose(item.plane, first.plane, atol=SAME_DIRECTION):
            raise ValueError(f"{item.path}: is turned against {first.path.name}; one orientation is allowed")
        if not np.allclose(item.spacing, first.spacing, rtol=SAME_DIRECTION):
            raise ValueError(f"{item.path}: pixel spacing {item.spacing} mm, {first.path.name} has {first.spacing}")


def slice_step(place: Path, slices: Sequence[Slice], normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """From one slice to the next, mm in LPS; ``slices`` are sorted along ``normal``. ``ValueError`` as
    ``read_series``."""
    positions = np.stack([item.position for item in slices])
    gaps = np.diff(positions @ normal)
    names = [item.path.name for item in slices]
    for k in np.nonzero(gaps < SAME_PLACE)[0]:
        raise ValueError(f"{place}: {names[k]} and {names[k + 1]} lie in one place (two phases or echoes?)")
    usual = float(np.sort(gaps)[(len(gaps) - 1) // 2])
    widest = int(np.abs(gaps - usual).argmax())
    if abs(gaps[widest] - usual) > UNEVEN * usual:
        raise ValueError(
            f"{place}: {gaps[widest]:.3f} mm from {names[widest]} to {names[widest + 1]}, elsewhere {usual:.3f} mm: "
            "a slice is missing, or the slices are uneven"
        )
    step: NDArray[np.float64] = (positions[-1] - positions[0]) / (len(slices) - 1)
    sideways = float(np.linalg.norm(step - (step @ normal) * normal))
    if sideways > UNEVEN * usual:
        raise ValueError(f"{place}: each slice is shifted sideways by {sideways:.3f} mm (tilted gantry); not supported")
    off = np.abs(positions - positions[0] - np.arange(len(slices))[:, None] * step).max(axis=1)
    worst = int(off.argmax())
    if off[worst] > max(UNEVEN * usual, SAME_PLACE) * 2:
        raise ValueError(f"{place}: {names[worst]} lies {off[worst]:.3f} mm beside the line of the other slices")
    return step
