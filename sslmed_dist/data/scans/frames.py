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

from sslmed_dist.data.scans.completeness import stated_count
from sslmed_dist.data.scans.dicom_file import readable_dicom
from sslmed_dist.data.scans.dicom_header import numbers, positive, read_header, whole_number
from sslmed_dist.data.scans.dicom_pixels import (
    bright_is_high,
    padding_of,
    private_scale,
    require_plain_image,
    rescaled,
    stored_pixels,
)

MOST_PIXELS = 2**26  # of a slice, 8,192 x 8,192
SAME_DIRECTION = 1e-3  # difference of a direction cosine, and relative difference of pixel spacings
# Functional groups (of one frame, or shared by all) and what is read from them as from the header of a plain image.
GROUPS = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept", "RescaleType"),
}
OF_ALL = (
    *("Rows", "Columns", "Modality", "SeriesInstanceUID", "InstanceNumber", "SamplesPerPixel"),
    *("PhotometricInterpretation", "BitsStored", "PixelRepresentation", "ModalityLUTSequence"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "PatientID", "FrameOfReferenceUID"),
)


# What slices of one volume have in common, and what one calls several of them.
BELONGS = {
    "PatientID": "patients",
    "Modality": "modalities",
    "FrameOfReferenceUID": "frames of reference",
    "PhotometricInterpretation": "photometric interpretations",
}


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
    stated: int | None = None  # how many slices its volume has, by the file itself
    of: tuple[str, ...] = ()  # the values of ``BELONGS``; never shown
    between: float | None = None  # SpacingBetweenSlices, mm
    thickness: float | None = None  # SliceThickness, mm

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
    pixels: NDArray[np.float32]  # (rows, columns), rescaled; NaN where the file says that it is padding
    notice: str  # what was done about MONOCHROME1, "" where it was not met
    scale: float | None = None  # ``dicom_pixels.private_scale``


def frames_of(path: Path, header: Any) -> list[Frame]:
    """Where the images of a file lie. ``ValueError`` naming the file where it does not say so, or says something
    impossible."""
    with readable_dicom(path):
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
        stated=stated_count(path, header) if number is None else None,
        of=tuple(str(header.get(name, "") or "") for name in BELONGS),
        between=positive(header, "SpacingBetweenSlices"),
        thickness=positive(header, "SliceThickness"),
    )


def read_slices(path: Path) -> list[Slice]:
    """The images of a file with their pixels, in the order of its frames; none for a file that is not DICOM or holds no
    image. ``ValueError`` naming a file that is damaged or does not say where its images lie, and for colour images and
    pixels that cannot be decoded."""
    header = read_header(path, pixels=True)
    if header is None:
        return []
    # pydicom parses a value when it is asked for, so everything that asks stands in the block
    with readable_dicom(path):
        headers = frame_headers(path, header)
        require_plain_image(path, header)
        frames = [frame_of(path, number, own) for number, own in headers]
        stored = stored_pixels(path, header, len(frames), frames[0].shape)
        slices = []
        for frame, (_, own), image in zip(frames, headers, stored, strict=True):
            pixels, notice = bright_is_high(path, own, image)
            values = rescaled(path, own, pixels)
            values[padding_of(path, own, image)] = np.nan
            slices.append(Slice(frame, values, notice, private_scale(own)))
        return slices
