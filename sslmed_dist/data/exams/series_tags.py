"""What the tags of an image say about its series: names, sequence, scanner, side of the body.

Identifiers and descriptions stay at the site: they stand in records and nowhere else.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslmed_dist.data.scans.dicom_file import readable_dicom
from sslmed_dist.data.scans.dicom_header import positive
from sslmed_dist.printable import printable

SIDES = {"L": "left", "R": "right"}
BODY_SIDE = re.compile(r"^(L|R)(?=KNEE|HIP|SHOULDER|ANKLE|WRIST|ELBOW)|\b(LEFT|RIGHT)\b", re.IGNORECASE)
# Functional groups of an enhanced file, and what stands in them.
ECHO, TIMING, ANATOMY = "MREchoSequence", "MRTimingAndRelatedParametersSequence", "FrameAnatomySequence"


@dataclass(frozen=True)
class Tags:
    """``image_type``: the values of ImageType in capitals. ``lossy``: a lossy compression, which alone makes an image
    DERIVED. ``scanner``: manufacturer, model and field strength, "" where no tag says it. ``laterality``: "left",
    "right" or ""."""

    description: str = ""
    number: int = 0
    series: str = ""
    study: str = ""
    patient: str = ""
    instance: str = ""
    image_type: tuple[str, ...] = ()
    lossy: bool = False
    modality: str = ""
    scanner: str = ""
    field_tesla: float | None = None
    echo_ms: float | None = None
    repetition_ms: float | None = None
    laterality: str = ""


def read_tags(path: Path, header: Any) -> Tags:
    """The tags of one image file. ``ValueError`` naming a file whose tags cannot be read."""
    with readable_dicom(path):
        maker, model = (text(header, name) for name in ("Manufacturer", "ManufacturerModelName"))
        tesla = positive(header, "MagneticFieldStrength")
        return Tags(
            description=text(header, "SeriesDescription") or text(header, "ProtocolName"),
            number=int(positive(header, "SeriesNumber") or 0),
            series=text(header, "SeriesInstanceUID"),
            study=text(header, "StudyInstanceUID"),
            patient=text(header, "PatientID"),
            instance=text(header, "SOPInstanceUID"),
            image_type=tuple(str(value).upper() for value in header.get("ImageType") or ()),
            lossy=text(header, "LossyImageCompression") == "01",
            modality=text(header, "Modality"),
            scanner=" ".join(word for word in (maker, model, f"{tesla:g} T" if tesla else "") if word),
            field_tesla=tesla,
            echo_ms=positive(header, "EchoTime") or positive(of_group(header, ECHO), "EffectiveEchoTime"),
            repetition_ms=positive(header, "RepetitionTime") or positive(of_group(header, TIMING), "RepetitionTime"),
            laterality=side_of(header),
        )


def text(header: Any, name: str) -> str:
    """The attribute as text on one line, "" where it is missing."""
    value = header.get(name)
    return "" if value is None else " ".join(printable(str(value)).split())


def of_group(header: Any, sequence: str) -> Any:
    """The first item of a functional group of an enhanced file: of all frames, or of the first; empty without one."""
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in list(header.get(groups) or [])[:1]:
            for item in list(group.get(sequence) or [])[:1]:
                return item
    return {}


def side_of(header: Any) -> str:
    """The side of the body that an image shows: by ImageLaterality, Laterality, that of the frame, or the name of the
    body part. "" where none says left or right."""
    for value in (
        text(header, "ImageLaterality"),
        text(header, "Laterality"),
        text(of_group(header, ANATOMY), "FrameLaterality"),
    ):
        if value.upper() in SIDES:
            return SIDES[value.upper()]
    match = BODY_SIDE.search(text(header, "BodyPartExamined").replace("_", " "))
    return SIDES[(match[1] or match[2])[0].upper()] if match else ""
