"""The images of a DICOM file: where each lies in the patient, and its pixels.

A file holds one image, or several frames (an enhanced file, PS3.3, C.7.6.16), whose places stand in its functional
groups. Both come out as ``Frame``. Positions and directions are in DICOM's frame, whose axes point to the patient's
left, back and head (LPS).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslmed_dist.data.damage import damage_named, reason
from sslmed_dist.data.scans.dicom_file import MOST_BYTES, read_dicom
from sslmed_dist.data.scans.memory import require_voxels

MOST_PIXELS = 2**26  # of a slice, 8,192 x 8,192
MEASURED = ("CT", "PT", "NM")  # modalities whose values are a measure, whatever is shown bright
SAME_DIRECTION = 1e-3  # difference of a direction cosine, and relative difference of pixel spacings
# A file without the preamble of PS3.10 begins with the tag of its first element, of group 0002 or 0008.
BARE = (b"\x02\x00\x00\x00", b"\x08\x00", b"\x00\x02\x00\x00", b"\x00\x08")
# Functional groups (of one frame, or shared by all) and what is read from them as from the header of a plain image.
GROUPS = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness"),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept", "RescaleType"),
}
OF_ALL = (
    *("Rows", "Columns", "Modality", "SeriesInstanceUID", "InstanceNumber", "SamplesPerPixel"),
    *("PhotometricInterpretation", "BitsStored", "PixelRepresentation", "ModalityLUTSequence"),
)


@dataclass(frozen=True)
class Frame:
    """One image of a file, its pixels not read. Positions and directions are in LPS."""

    path: Path
    number: int | None  # among the frames of the file; None for a file of one plain image
    series: str  # SeriesInstanceUID
    shape: tuple[int, int]  # rows, columns
    position: NDArray[np.float64]  # (3,) mm, of the first pixel's centre
    plane: NDArray[np.float64]  # (2, 3) unit vectors: row direction, column direction
    spacing: tuple[float, float]  # mm between rows, between columns
    instance: int | None
    modality: str

    @property
    def name(self) -> str:
        """The file's name, and the number of the frame where there are several."""
        return self.path.name if self.number is None else f"{self.path.name} frame {self.number + 1}"

    @property
    def normal(self) -> NDArray[np.float64]:
        """(3,) unit vector: the cross product row direction x column direction."""
        return np.cross(self.plane[0], self.plane[1])


@dataclass(frozen=True)
class Slice:
    """One image with its pixels."""

    frame: Frame
    pixels: NDArray[np.float32]  # (rows, columns), rescaled
    notice: str  # what was done about MONOCHROME1, "" where it was not met


def read_header(path: Path, *, pixels: bool) -> Any:
    """The header of a DICOM file that holds an image, with its ``pixels`` or without; None for a file that is not
    DICOM or holds no image (DICOMDIR, reports). A file without preamble is DICOM as well. ``ValueError`` naming a
    damaged file; a file that is called ``.dcm`` and is none is one of them."""
    from pydicom.errors import InvalidDicomError

    if pixels and path.stat().st_size > MOST_BYTES:
        require_bytes(path, read_header(path, pixels=False))
    with damage_named(path, "cannot be read, truncated or not DICOM"):
        try:
            header: Any = read_dicom(path, header_only=not pixels)
        except InvalidDicomError:
            with path.open("rb") as file:
                bare = file.read(4).startswith(BARE)
            if not bare and path.suffix.lower() == ".dcm":
                raise
            if not bare:
                return None
            header = read_dicom(path, header_only=not pixels, force=True)
            state_encoding(header)
        if "PixelData" in header if pixels else "Rows" in header and "Columns" in header:
            return header
        # a header that breaks off is read as far as it goes
        if not len(header) or "Image Storage" in getattr(header.get("SOPClassUID"), "name", ""):
            raise ValueError("an image without pixels: its end is missing")
        return None


def require_bytes(path: Path, header: Any) -> None:
    """``ValueError`` for a file of more bytes than the images that its ``header`` speaks of can have: pydicom reads all
    of it. None is no image, whose bytes nobody needs."""
    if header is None:
        return
    count = whole_number(path, header, "NumberOfFrames") or 1
    sides = [whole_number(path, header, name) or 0 for name in ("Rows", "Columns")]
    pixels, size = count * sides[0] * sides[1], path.stat().st_size
    require_voxels(pixels, (count, *sides), path)
    if size > max(MOST_BYTES, 8 * pixels):
        raise ValueError(f"{path}: {size:,} bytes for {pixels:,} pixels; allowed: {max(MOST_BYTES, 8 * pixels):,}")


def state_encoding(header: Any) -> None:
    """Write down how a file without preamble is encoded, where it does not say so itself."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if getattr(header, "file_meta", None) is None:
        header.file_meta = FileMetaDataset()
    if "TransferSyntaxUID" not in header.file_meta:
        implicit, little = header.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        header.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit


def frames_of(path: Path, header: Any) -> list[Frame]:
    """Where the images of a file lie. ``ValueError`` naming the file where it does not say so, or says something
    impossible."""
    with damage_named(path, "cannot be read, truncated or not DICOM"):
        return [frame_of(path, number, own) for number, own in frame_headers(path, header)]


def frame_headers(path: Path, header: Any) -> list[tuple[int | None, Any]]:
    """(number, header) of every image of a file; each header is like that of a file of one plain image."""
    count = whole_number(path, header, "NumberOfFrames")
    per_frame = list(header.get("PerFrameFunctionalGroupsSequence") or [])
    if not per_frame:
        if count is not None and count > 1:
            reason_why = "which do not say where they lie (no functional groups)"
            raise ValueError(f"{path}: {count} frames in one file, {reason_why}; allowed: enhanced DICOM, or one slice")
        return [(None, header)]
    if len(per_frame) != (count or 1):
        raise ValueError(f"{path}: NumberOfFrames is {count}, places are given for {len(per_frame)} frames")
    shared = list(header.get("SharedFunctionalGroupsSequence") or [])
    return [(number, merged(header, [*shared, groups])) for number, groups in enumerate(per_frame)]


def merged(header: Any, groups: list[Any]) -> Any:
    """The attributes of one frame: those of the file, then those of the functional ``groups``; the last counts."""
    from pydicom.dataset import Dataset

    own = Dataset()
    for name in OF_ALL:
        if name in header:
            own[name] = header[name]
    for group in groups:
        for sequence, names in GROUPS.items():
            for item in list(group.get(sequence) or [])[:1]:
                for name in names:
                    if name in item:
                        own[name] = item[name]
    return own


def frame_of(path: Path, number: int | None, header: Any) -> Frame:
    """The place of one image. ``ValueError`` as ``frames_of``."""
    rows, columns = numbers(path, header, "PixelSpacing", 2)
    if rows <= 0 or columns <= 0:
        raise ValueError(f"{path}: PixelSpacing must be above 0 mm, got {rows} and {columns}")
    plane = np.array(numbers(path, header, "ImageOrientationPatient", 6)).reshape(2, 3)
    # two orthonormal rows: their products with each other are the identity
    if not np.allclose(plane @ plane.T, np.eye(2), atol=SAME_DIRECTION):
        raise ValueError(
            f"{path}: ImageOrientationPatient must be two unit vectors at right angles, got {plane.ravel().tolist()}"
        )
    sides = [whole_number(path, header, name) or 0 for name in ("Rows", "Columns")]
    if not (min(sides) > 0 and sides[0] * sides[1] <= MOST_PIXELS):
        raise ValueError(f"{path}: {sides[0]} rows x {sides[1]} columns; allowed: 1 to {MOST_PIXELS:,} pixels")
    return Frame(
        path=path,
        number=number,
        series=str(header.get("SeriesInstanceUID", "")),
        shape=(sides[0], sides[1]),
        position=np.array(numbers(path, header, "ImagePositionPatient", 3)),
        plane=plane,
        spacing=(rows, columns),
        instance=whole_number(path, header, "InstanceNumber"),
        modality=str(header.get("Modality", "") or ""),
    )


def read_slices(path: Path) -> list[Slice]:
    """The images of a file with their pixels, in the order of its frames; none for a file that is not DICOM or holds no
    image. ``ValueError`` naming a file that is damaged or does not say where its images lie, and for colour images and
    pixels that cannot be decoded."""
    header = read_header(path, pixels=True)
    if header is None:
        return []
    # pydicom parses a value when it is asked for, so everything that asks stands in the block
    with damage_named(path, "cannot be read, truncated or not DICOM"):
        headers = frame_headers(path, header)
        require_plain_image(path, header)
        frames = [frame_of(path, number, own) for number, own in headers]
        stored = stored_pixels(path, header, frames)
        slices = []
        for frame, (_, own), image in zip(frames, headers, stored, strict=True):
            pixels, notice = bright_is_high(path, own, image)
            slices.append(Slice(frame, rescaled(path, own, pixels), notice))
        return slices


def require_plain_image(path: Path, header: Any) -> None:
    """``ValueError`` unless the file holds grey images with linear rescaling."""
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


def stored_pixels(path: Path, header: Any, frames: list[Frame]) -> NDArray[Any]:
    """The stored pixels (frames, rows, columns). ``ValueError`` when they cannot be decoded, are more than
    ``memory.most_voxels`` by the header, or do not fit it."""
    shape = (len(frames), *frames[0].shape)
    require_voxels(shape[0] * shape[1] * shape[2], shape, path)
    try:
        stored: NDArray[Any] = header.pixel_array
    except Exception as error:  # each decoder raises what it likes
        syntax = getattr(getattr(header, "file_meta", None), "TransferSyntaxUID", None)
        coding = getattr(syntax, "name", "unknown coding")
        raise ValueError(f"{path}: pixels ({coding}) cannot be decoded: {reason(error)}") from error
    if stored.size != shape[0] * shape[1] * shape[2] or stored.shape[-2:] != frames[0].shape:
        raise ValueError(f"{path}: expected images of rows x columns {shape}, got shape {stored.shape}")
    return stored.reshape(shape)


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
