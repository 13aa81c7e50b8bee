"""The header of a DICOM file: whether it is an image, whether it is whole, and its numbers.

A file that is no image is passed over, a damaged image never: it would take a slice out of its series.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from sslmed_dist.data.damage import reason
from sslmed_dist.data.scans.dicom_file import MARK, MOST_BYTES, begins_bare, read_dicom, readable_dicom
from sslmed_dist.data.scans.memory import require_voxels

SUFFIXES = (".dcm", ".dicom", ".ima")  # names that say DICOM
LEAST_PACKED = 24  # bytes of compressed pixels: the tag, an empty table of offsets, one fragment
IMAGES = ("Image Storage", "Volume Storage")  # in the names of the classes of images (PS3.4, B.5)


def read_header(path: Path, *, pixels: bool, kinds: tuple[str, ...] = IMAGES) -> Any:
    """The header of a DICOM file that holds an image, with its ``pixels`` or without; None for a file that is not
    DICOM or holds no image (DICOMDIR, reports, segmentations). A file without preamble is DICOM as well. ``kinds``:
    words in the names of the classes that count as images.

    ``ValueError`` naming a damaged file. One that is called like DICOM and is none is damaged; so is one that is empty,
    or is the beginning of a preamble, unless a suffix of letters says that it is something else."""
    from pydicom.errors import InvalidDicomError

    if pixels and path.stat().st_size > MOST_BYTES:
        require_bytes(path, read_header(path, pixels=False, kinds=kinds))
    with readable_dicom(path):
        try:
            header: Any = read_dicom(path, header_only=not pixels)
        except InvalidDicomError:
            with path.open("rb") as file:
                start = file.read(MARK + 4)
            if not begins_bare(start):
                require_other(path, start)
                return None
            header = read_dicom(path, header_only=not pixels, force=True)
            state_encoding(header)
        # a header that breaks off is read as far as it goes
        kind, sized = storage_class(header), "Rows" in header and "Columns" in header
        if not kind and not sized:
            raise ValueError("does not say what it is: its end is missing")
        if kind and not any(word in kind for word in kinds) and not (kind[0].isdigit() and sized):
            return None
        if not sized or (pixels and "PixelData" not in header):
            raise ValueError("an image without pixels: its end is missing")
        return header


def storage_class(header: Any) -> str:
    """The name of what a file is (its SOP class), its number where it has no public name, "" where none is given."""
    for values in (header, getattr(header, "file_meta", None) or {}):
        for name in ("SOPClassUID", "MediaStorageSOPClassUID"):
            value = values.get(name)
            if value:
                return str(getattr(value, "name", value))
    return ""


def require_other(path: Path, start: bytes) -> None:
    """``ValueError`` for a file that is not DICOM but must have been: by its name, or because it is empty or begins
    with zeros and ends in the preamble."""
    if path.suffix.lower() in SUFFIXES:
        raise ValueError("empty" if not start else "without the mark of DICOM")
    if len(start) < MARK + 4 and not any(start) and not path.suffix[1:].isalpha():
        raise ValueError("empty" if not start else "ends in the preamble")


def shape_of_name(name: str) -> str:
    """A file's name without its numbers: files of one series are called alike, but for these."""
    return re.sub(r"\d+", "#", name)


def pixels_lost(path: Path, header: Any) -> str:
    """In words, naming the file, that the pixels behind a header that was read alone are not all there; "" where they
    may be. Whether compressed pixels are whole shows only when they are decoded."""
    behind = header.bytes_behind
    if behind is None:
        return ""
    syntax = header.file_meta.get("TransferSyntaxUID")
    needed = LEAST_PACKED
    with readable_dicom(path):  # a syntax that is none
        packed = syntax is not None and bool(syntax.is_compressed)
    if not packed:
        names = ("Rows", "Columns", "BitsAllocated")
        sizes = [whole_number(path, header, name) or 0 for name in names]
        many = [whole_number(path, header, name) or 1 for name in ("NumberOfFrames", "SamplesPerPixel")]
        needed = (sizes[0] * sizes[1] * sizes[2] * many[0] * many[1] + 7) // 8
    return "" if behind >= needed else f"{path}: truncated: {behind:,} bytes of its pixels, which are {needed:,}"


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


def whole_number(path: Path, header: Any, name: str) -> int | None:
    """The number of the attribute ``name``, None where it is missing or empty. ``ValueError`` for anything else, such
    as several values."""
    try:
        value = header.get(name)  # pydicom parses it here
    except Exception as error:
        raise ValueError(f"{path}: {name} must be one whole number: {reason(error)}") from None
    if value is None or value == "":
        return None
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{path}: {name} must be one whole number, got {str(value)[:80]}") from None


def positive(header: Any, name: str) -> float | None:
    """The attribute as a number above 0, None where it is missing or none."""
    try:
        value = float(str(header.get(name)))
    except Exception:  # pydicom parses it here, and raises what it likes
        return None
    return value if 0 < value < float("inf") else None


def numbers(path: Path, header: Any, name: str, count: int) -> list[float]:
    """The ``count`` numbers of the attribute ``name``. ``ValueError`` when it is missing or holds something else."""
    try:
        value = header.get(name)  # pydicom parses it here
    except Exception as error:
        raise ValueError(f"{path}: {name} must be {count} finite number(s): {reason(error)}") from None
    if value is None or value == "":
        raise ValueError(f"{path}: has no {name}, so where it lies in the patient is unknown")
    try:
        values = [float(part) for part in (value if count > 1 else [value])]
    except (TypeError, ValueError):
        values = []
    if len(values) != count or not np.isfinite(values).all():
        raise ValueError(f"{path}: {name} must be {count} finite number(s), got {value}")
    return values
