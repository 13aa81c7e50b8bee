"""One DICOM series as one array with its position in the patient.

Pixel (i, j) of slice k is in column i and row j. It lies at ``position_k + i * column spacing * row direction +
j * row spacing * column direction`` (DICOM PS3.3, C.7.6.2.1.1). That is in DICOM's frame, whose axes point to the
patient's left, back and head (LPS). NIfTI's axes point right, front and head (RAS), so the first two coordinates change
their sign.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
UNEVEN = 0.01  # the most that a slice distance may differ from the usual one, as a share of the usual one
SAME_PLACE = 0.01  # mm: slices closer to each other than this are at one position
SAME_DIRECTION = 1e-3  # difference of a direction cosine, and relative difference of pixel spacings


@dataclass(frozen=True)
class Series:
    """A volume whose slices are sorted along their normal (the cross product row direction x column direction).

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
    """One file, one slice. Positions and directions are in LPS."""

    path: Path
    series: str  # SeriesInstanceUID
    pixels: NDArray[np.float32]  # (rows, columns), rescaled
    position: NDArray[np.float64]  # (3,) mm, of the first pixel's centre
    plane: NDArray[np.float64]  # (2, 3) unit vectors: row direction, column direction
    spacing: tuple[float, float]  # mm between rows, between columns
    instance: int | None
    modality: str


def read_series(folder: str | Path) -> Series:
    """The series whose files lie in ``folder`` (not in folders below it). Files that are not DICOM, or hold no image
    (DICOMDIR, reports), are skipped.

    ``ValueError`` naming the file or folder: no DICOM image, files of two series, a single slice, multi-frame or
    colour images, pixels that cannot be decoded, positions or spacings missing or impossible, slices of different
    sizes, orientations or pixel spacings, two slices at one position, a slice missing (distances differ by more than
    1 %), slices that are not stacked along their normal (tilted gantry).
    """
    series_folder = Path(folder)
    if not series_folder.is_dir():
        raise ValueError(f"{series_folder}: no such folder")
    parsed = [read_slice(path) for path in sorted(series_folder.iterdir()) if path.is_file()]
    slices = [item for item in parsed if item is not None]
    require_one_series(series_folder, slices)
    first = slices[0]
    # file names and instance numbers are not reliable: the order is that of the positions along the normal
    normal = np.cross(first.plane[0], first.plane[1])  # (3,) unit vector in LPS
    slices.sort(key=lambda item: (float(item.position @ normal), item.path.name))
    step = slice_step(series_folder, slices, normal)
    # columns of the affine: one step along i (columns), j (rows) and k (slices), in mm
    affine = np.eye(4)
    axis_vectors = [first.plane[0] * first.spacing[1], first.plane[1] * first.spacing[0], step]
    affine[:3, :3] = LPS_TO_RAS @ np.stack(axis_vectors, axis=1)
    affine[:3, 3] = LPS_TO_RAS @ slices[0].position
    return Series(
        voxels=np.ascontiguousarray(np.stack([item.pixels.T for item in slices], axis=2)),  # (columns, rows, slices)
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
    # two orthonormal rows: their products with each other are the identity
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
    """The ``count`` numbers of the attribute ``name``. ``ValueError`` when it is missing or holds something else."""
    value = header.get(name)
    if value is None or value == "":
        raise ValueError(f"{path}: has no {name}, so where it lies in the patient is unknown")
    try:
        values = [float(part) for part in (value if count > 1 else [value])]
    except (TypeError, ValueError):
        values = []
    if len(values) != count or not np.isfinite(values).all():
        raise ValueError(f"{path}: {name} must be {count} finite number(s), got {value}")
    return values


def rescaled(path: Path, header: Any) -> NDArray[np.float32]:
    """Float32 (rows, columns): stored pixels x slope + intercept. ``ValueError`` when they cannot be decoded."""
    slope = numbers(path, header, "RescaleSlope", 1)[0] if header.get("RescaleSlope") is not None else 1.0
    intercept = numbers(path, header, "RescaleIntercept", 1)[0] if header.get("RescaleIntercept") is not None else 0.0
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
    return (stored.astype(np.float64) * slope + intercept).astype(np.float32)


def require_one_series(folder: Path, slices: Sequence[Slice]) -> None:
    """``ValueError`` unless all slices belong to one series and have one size, orientation and pixel spacing."""
    if not slices:
        raise ValueError(f"{folder}: no DICOM image in it")
    first = slices[0]
    for item in slices:
        if item.series != first.series:
            raise ValueError(f"{folder}: images of two series, {first.path.name} and {item.path.name}; allowed: one")
    if len(slices) == 1:
        raise ValueError(f"{folder}: a single slice ({first.path.name}); a volume has at least 2")
    for item in slices:
        if item.pixels.shape != first.pixels.shape:
            sizes = [" x ".join(map(str, shape)) for shape in (item.pixels.shape, first.pixels.shape)]
            raise ValueError(f"{item.path}: {sizes[0]} pixels, {first.path.name} has {sizes[1]}; one size is allowed")
        if not np.allclose(item.plane, first.plane, atol=SAME_DIRECTION):
            raise ValueError(f"{item.path}: is turned against {first.path.name}; one orientation is allowed")
        if not np.allclose(item.spacing, first.spacing, rtol=SAME_DIRECTION):
            raise ValueError(f"{item.path}: pixel spacing {item.spacing} mm, {first.path.name} has {first.spacing}")


def slice_step(folder: Path, slices: Sequence[Slice], normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """The vector (3,) from one slice to the next, mm in LPS; ``slices`` are sorted along ``normal``. ``ValueError`` as
    ``read_series``."""
    positions = np.stack([item.position for item in slices])  # (S, 3)
    gaps = np.diff(positions @ normal)  # (S - 1,) mm along the normal
    names = [item.path.name for item in slices]
    for k in np.nonzero(gaps < SAME_PLACE)[0]:
        raise ValueError(f"{folder}: {names[k]} and {names[k + 1]} lie in one place (two phases or echoes?)")
    # evenly spaced? the usual distance is the (lower) median, which one missing slice does not move
    usual = float(np.sort(gaps)[(len(gaps) - 1) // 2])
    widest = int(np.abs(gaps - usual).argmax())
    if abs(gaps[widest] - usual) > UNEVEN * usual:
        raise ValueError(
            f"{folder}: {gaps[widest]:.3f} mm from {names[widest]} to {names[widest + 1]}, elsewhere {usual:.3f} mm: "
            "a slice is missing, or the slices are uneven"
        )
    # a step that is not along the normal is a sheared volume, which no rotation and scaling describe
    step: NDArray[np.float64] = (positions[-1] - positions[0]) / (len(slices) - 1)
    sideways = float(np.linalg.norm(step - (step @ normal) * normal))
    if sideways > UNEVEN * usual:
        raise ValueError(
            f"{folder}: each slice is shifted sideways by {sideways:.3f} mm (tilted gantry); not supported"
        )
    # every slice must lie where equal steps from the first one lead
    off = np.abs(positions - positions[0] - np.arange(len(slices))[:, None] * step).max(axis=1)
    worst = int(off.argmax())
    if off[worst] > max(UNEVEN * usual, SAME_PLACE) * 2:
        raise ValueError(f"{folder}: {names[worst]} lies {off[worst]:.3f} mm beside the line of the other slices")
    return step
