"""The pixels of a DICOM file as they are to be seen: decoded, bright where high, rescaled."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslmed_dist.data.damage import reason
from sslmed_dist.data.scans.dicom_file import decoder_heard
from sslmed_dist.data.scans.dicom_header import numbers, whole_number
from sslmed_dist.data.scans.memory import require_voxels

INSTALL = "pip install 'sslmed-dist[medical]' brings one (python-gdcm)"
MEASURED = ("CT", "PT", "NM")  # modalities whose values are a measure, whatever is shown bright


def require_plain_image(path: Path, header: Any) -> None:
    """``ValueError`` unless the file holds grey images with linear rescaling."""
    kind = str(header.get("PhotometricInterpretation", ""))
    samples = whole_number(path, header, "SamplesPerPixel")
    if samples not in (None, 1) or kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise ValueError(f"{path}: pixels are {kind or 'of unknown kind'}, allowed: MONOCHROME1, MONOCHROME2")
    if "ModalityLUTSequence" in header:
        raise ValueError(f"{path}: pixels go through a table (ModalityLUTSequence); allowed: slope and intercept")


def stored_pixels(path: Path, header: Any, count: int, size: tuple[int, int]) -> NDArray[Any]:
    """The stored pixels (frames, rows, columns). ``ValueError`` when they cannot be decoded, are more than
    ``memory.most_voxels`` by the header, or do not fit it."""
    shape = (count, *size)
    require_voxels(shape[0] * shape[1] * shape[2], shape, path)
    try:
        with decoder_heard() as complaints:
            stored: NDArray[Any] = header.pixel_array
        if complaints:  # libjpeg goes on with damaged data, and only says so
            raise ValueError(complaints[0])
    except Exception as error:  # each decoder raises what it likes
        syntax = getattr(getattr(header, "file_meta", None), "TransferSyntaxUID", None)
        coding = getattr(syntax, "name", "unknown coding")
        lacking = getattr(syntax, "is_encapsulated", False) and find_spec("gdcm") is None
        why = f"no decoder for them is installed; {INSTALL}" if lacking else reason(error)
        raise ValueError(f"{path}: pixels ({coding}) cannot be decoded: {why}") from error
    if stored.size != shape[0] * shape[1] * shape[2] or stored.shape[-2:] != size:
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


def padding_of(path: Path, header: Any, stored: NDArray[Any]) -> NDArray[np.bool_]:
    """Which ``stored`` pixels are padding: those of PixelPaddingValue, or from it to PixelPaddingRangeLimit. A value
    that is written without its sign, as some do, is that of the signed pixels."""
    ends = [whole_number(path, header, name) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    bits = 8 * stored.dtype.itemsize
    signed = stored.dtype.kind == "i"
    known = [end - 2**bits if signed and end >= 2 ** (bits - 1) else end for end in ends if end is not None]
    if ends[0] is None:
        return np.zeros(stored.shape, bool)
    padded: NDArray[np.bool_] = (stored >= min(known)) & (stored <= max(known))
    return padded


def private_scale(header: Any) -> float | None:
    """RescaleSlope x the private scale slope of Philips (2005,100E), by which values as displayed are divided to be
    those that were measured; None where the file has none. The private intercept (2005,100D) cancels out."""
    try:
        block = header.private_block(0x2005, "Philips MR Imaging DD 001")
        scale = float(block[0x0E].value) * float(header.get("RescaleSlope") or 1.0)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return scale if 0 < scale < float("inf") else None


def rescaled(path: Path, header: Any, stored: NDArray[Any]) -> NDArray[np.float32]:
    """Float32 (rows, columns): ``stored`` pixels x slope + intercept. ``ValueError`` for a slope of 0."""
    slope = numbers(path, header, "RescaleSlope", 1)[0] if header.get("RescaleSlope") is not None else 1.0
    intercept = numbers(path, header, "RescaleIntercept", 1)[0] if header.get("RescaleIntercept") is not None else 0.0
    if slope == 0.0:
        raise ValueError(f"{path}: RescaleSlope must not be 0")
    return (stored.astype(np.float64) * slope + intercept).astype(np.float32)
