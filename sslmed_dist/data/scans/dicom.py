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

from sslmed_dist.data.damage import damage_named, reason
from sslmed_dist.data.scans.memory import require_voxels

MOST_PIXELS = 2**26  # of a slice, 8,192 x 8,192
MOST_BYTES = 2**29  # of a file, which pydicom reads as a whole: a slice of 32 bits, and as much again
MEASURED = ("CT", "PT", "NM")  # modalities whose values are a measure, whatever is shown bright
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
    notices           what was changed while reading, a line each
    """

    voxels: NDArray[np.float32]
    affine: NDArray[np.float64]
    files: tuple[str, ...]
    instance_numbers: tuple[int | None, ...]
    modality: str
    notices: tuple[str, ...] = ()

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
    notice: str  # what was done about MONOCHROME1, "" where it was not met


def read_series(folder: str | Path) -> Series:
    """The series whose files lie in ``folder`` (not in folders below it). Files that are not DICOM, or hold no image
    (DICOMDIR, reports), are skipped.

    ``ValueError`` naming the file or folder: no DICOM image, files of two series, a single slice, multi-frame or
    colour images, pixels that cannot be decoded, positions or spacings missing or impossible, slices of different
    sizes, orientations or pixel spacings, two slices at one position, a slice missing (distances differ by more than
    1 %), slices that are not stacked along their normal (tilted gantry), or more voxels than ``memory.most_voxels``.
    """
    series_folder = Path(folder)
    if not series_folder.is_dir():
        raise ValueError(f"{series_folder}: no such folder")
    slices: list[Slice] = []
    count = 0  # voxels so far
    for path in sorted(series_folder.iterdir()):
        item = read_slice(path) if path.is_file() else None
        if item is not None:
            slices.append(item)
            count += item.pixels.size
            require_voxels(count, (*item.pixels.shape[::-1], len(slices)), series_folder)
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
        notices=tuple(sorted({item.notice for item in slices} - {""})),
    )


def read_slice(path: Path) -> Slice | None:
    """The image in ``path``; None when it is no DICOM file or holds no image. ``ValueError`` as ``read_series``."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    # pydicom parses a value when it is asked for, so everything that asks stands in the block
    with damage_named(path, "cannot be read, truncated or not DICOM"):
        try:
            large = path.stat().st_size > MOST_BYTES
            header: Any = pydicom.dcmread(path, stop_before_pixels=large)
        except InvalidDicomError:
            return None
        if large and "Rows" in header:
            require_plain_image(path, header)  # what it holds may say more than its size
            raise ValueError(f"{path}: {path.stat().st_size:,} bytes; allowed for one slice: {MOST_BYTES:,}")
        return parse_slice(path, header) if "PixelData" in header else None


def parse_slice(path: Path, header: Any) -> Slice:
    """The slice of an image file's header and pixels. ``ValueError`` as ``read_series``."""
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
    pixels, notice = bright_is_high(path, header, stored_pixels(path, header))
    return Slice(
        path=path,
        series=str(header.get("SeriesInstanceUID", "")),
        pixels=rescaled(path, header, pixels),
        position=np.array(numbers(path, header, "ImagePositionPatient", 3)),
        plane=plane,
        spacing=(rows, columns),
        instance=whole_number(path, header, "InstanceNumber"),
        modality=str(header.get("Modality", "") or ""),
        notice=notice,
    )


def require_plain_image(path: Path, header: Any) -> None:
    """``ValueError`` unless the file holds one grey image with linear rescaling."""
    frames = whole_number(path, header, "NumberOfFrames")
    if frames is not None and frames > 1:
        raise ValueError(f"{path}: {frames} frames in one file (enhanced DICOM); allowed: one slice per file")
    kind = str(header.get("PhotometricInterpretation", ""))
    samples = whole_number(path, header, "SamplesPerPixel")
    if samples not in (None, 1) or kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise ValueError(f"{path}: pixels are {kind or 'of unknown kind'}, allowed: MONOCHROME1, MONOCHROME2")
    if "ModalityLUTSequence" in header:
        raise ValueError(f"{path}: pixels go through a table (ModalityLUTSequence); allowed: slope and intercept")


def whole_number(path: Path, header: Any, name: str) -> int | None:
    """The number of the attribute ``name``, None where it is missing or empty. ``ValueError`` for anything else, such
    as several values."""
    value = header.get(name)
    if value is None or value == "":
        return None
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{path}: {name} must be one whole number, got {str(value)[:80]}") from None


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


def stored_pixels(path: Path, header: Any) -> NDArray[Any]:
    """The stored pixels (rows, columns). ``ValueError`` when they cannot be decoded, are larger than 2^26 by the
    header, or do not fit it."""
    sides = [whole_number(path, header, name) or 0 for name in ("Rows", "Columns")]
    if not (min(sides) > 0 and sides[0] * sides[1] <= MOST_PIXELS):
        raise ValueError(f"{path}: {sides[0]} rows x {sides[1]} columns; allowed: 1 to {MOST_PIXELS:,} pixels")
    try:
        stored: NDArray[Any] = header.pixel_array
    except Exception as error:  # each decoder raises what it likes
        syntax = getattr(getattr(header, "file_meta", None), "TransferSyntaxUID", None)
        coding = getattr(syntax, "name", "unknown coding")
        raise ValueError(f"{path}: pixels ({coding}) cannot be decoded: {reason(error)}") from error
    if stored.ndim != 2:
        raise ValueError(f"{path}: expected one image of rows x columns, got shape {stored.shape}")
    return stored


def bright_is_high(path: Path, header: Any, stored: NDArray[Any]) -> tuple[NDArray[Any], str]:
    """(pixels of which the high ones are to be seen bright, what was done, "" for nothing).

    In MONOCHROME1 the low ones are (PS3.3, C.7.6.3.1.2), so they are mirrored in the range of the stored bits. Values
    that measure something (Hounsfield units, counts of PET) mean the same under both, and stay.
    """
    if header.get("PhotometricInterpretation") != "MONOCHROME1":
        return stored, ""
    unit, modality = str(header.get("RescaleType", "") or "US"), str(header.get("Modality", "") or "")
    if modality in MEASURED or unit != "US":
        return stored, f"MONOCHROME1: values of {modality or unit} are measures and were kept as they are"
    bits = whole_number(path, header, "BitsStored") or 0
    signed = whole_number(path, header, "PixelRepresentation") == 1
    if not 1 <= bits <= 32:
        raise ValueError(f"{path}: BitsStored must be 1 to 32, got {bits}")
    # lowest + highest of the range: what a value and its mirror image add up to
    mirrored: NDArray[Any] = (-1 if signed else 2**bits - 1) - stored.astype(np.int64)
    return mirrored, "MONOCHROME1: pixels were mirrored, so that high values are bright as in MONOCHROME2"


def rescaled(path: Path, header: Any, stored: NDArray[Any]) -> NDArray[np.float32]:
    """Float32 (rows, columns): ``stored`` pixels x slope + intercept. ``ValueError`` for a slope of 0."""
    slope = numbers(path, header, "RescaleSlope", 1)[0] if header.get("RescaleSlope") is not None else 1.0
    intercept = numbers(path, header, "RescaleIntercept", 1)[0] if header.get("RescaleIntercept") is not None else 0.0
    if slope == 0.0:
        raise ValueError(f"{path}: RescaleSlope must not be 0")
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
