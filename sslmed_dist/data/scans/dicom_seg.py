"""A label map as a DICOM segmentation of the series it was made from (optional extra ``dicom``: highdicom)."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sslmed_dist import __version__
from sslmed_dist.data.scans.dicom import Series
from sslmed_dist.data.scans.dicom_file import read_dicom
from sslmed_dist.data.scans.masks import name_of
from sslmed_dist.data.scans.segments import MAKER

Array = np.ndarray[Any, np.dtype[Any]]


def require_highdicom() -> Any:
    """The module highdicom. ``ValueError`` where it is not installed."""
    try:
        import highdicom
    except ImportError:
        raise ValueError("DICOM-SEG needs highdicom: pip install 'sslmed-dist[dicom]'") from None
    return highdicom


def write_dicom_seg(
    path: Path, folder: Path, series: Series, values: Array, names: Mapping[int, str], *, model: str
) -> Path:
    """Write ``values``, label ids in the voxel order of ``series.voxels``, as a BINARY segmentation (PS3.3, A.51) to
    ``path``; return it. ``names`` are the labels to write, in the order of their segments, with their names. The
    description of a segment is "label ID", so that the id can be read back. A voxel of another value is in none.

    ``folder`` holds the files of the series. Patient, study and frame of reference are theirs, and the frames have
    their order and positions. ``model`` (a hash) is written down as the algorithm's version. The UIDs are a hash of the
    content, so equal segmentations get equal UIDs. ``ValueError``: highdicom is missing, ``values`` has another shape,
    or the files lack an attribute.
    """
    require_highdicom()
    if len(set(series.files)) < len(series.files):
        raise ValueError(
            f"{folder}: a DICOM-SEG of an enhanced multi-frame file is not supported; leave --dicom-seg out"
        )
    if series.resampled:
        raise ValueError(
            f"{folder}: was resampled (tilted gantry or uneven slices), so a DICOM-SEG cannot refer to its slices; "
            "leave --dicom-seg out"
        )
    if values.shape != series.voxels.shape:
        raise ValueError(f"values: expected the shape {series.voxels.shape} of the series, got {values.shape}")
    labels = list(names)
    # label ids may be any numbers; DICOM counts segments from 1
    segment_map = np.zeros(values.shape, np.uint8 if len(labels) < 256 else np.uint16)
    for segment_number, label in enumerate(labels, start=1):
        segment_map[values == label] = segment_number
    frames = np.ascontiguousarray(segment_map.transpose(2, 1, 0))  # slices of rows x columns, as the files hold them
    sources = read_headers(folder, series)
    try:
        dataset = segmentation(sources, frames, names, model)
    except (AttributeError, KeyError) as error:  # highdicom reads what its module tables ask for without looking first
        raise ValueError(f"{folder}: its files lack what a DICOM-SEG refers to: {error}") from error
    dataset.save_as(path)
    return path


def segmentation(sources: list[Any], frames: Array, names: Mapping[int, str], model: str) -> Any:
    """highdicom's dataset of ``frames`` (slices, rows, columns), values 0 to len(names). ``sources`` are the headers
    of the series' files in slice order."""
    import warnings

    import highdicom
    from pydicom.uid import generate_uid

    # UIDs from the content and not at random: the same run writes the same bytes
    digest = hashlib.sha256(frames.tobytes()).hexdigest()
    entropy = [model, digest, *(str(source.SOPInstanceUID) for source in sources)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about names and missing attributes of the source, which are not ours to mend
        return highdicom.seg.Segmentation(
            source_images=sources,
            pixel_array=frames,
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[
                describe(number, label, name, model) for number, (label, name) in enumerate(names.items(), start=1)
            ],
            series_instance_uid=generate_uid(entropy_srcs=[*entropy, "series"]),
            series_number=9000,
            sop_instance_uid=generate_uid(entropy_srcs=[*entropy, "instance"]),
            instance_number=1,
            manufacturer=MAKER,
            manufacturer_model_name="sslmed segment",
            software_versions=__version__,
            device_serial_number=model[:16],
            content_label="ONESHOT",
            content_description="Research use only, not a medical device",
            omit_empty_frames=bool(frames.any()),
        )


def read_headers(folder: Path, series: Series) -> list[Any]:
    """The headers of the series' files in slice order, without their pixels. ``ValueError`` naming a file that lacks
    an identifier which the segmentation refers to."""
    headers: list[Any] = [read_dicom(folder / name, header_only=True) for name in series.files]
    for name, header in zip(series.files, headers, strict=True):
        for attribute in ("SOPInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
            if not header.get(attribute):
                raise ValueError(f"{folder / name}: has no {attribute}, and a DICOM-SEG refers to it")
    return headers


def describe(segment_number: int, label: int, name: str, model: str) -> Any:
    """highdicom's description of segment ``segment_number``: an organ, found by this program."""
    import highdicom
    from pydicom.sr.codedict import codes

    described = highdicom.seg.SegmentDescription(
        segment_number=segment_number,
        segment_label=name[:64],
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=codes.SCT.Organ,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name="sslmed segment", version=model[:16], family=codes.DCM.ArtificialIntelligence
        ),
    )
    described.SegmentDescription = name_of(label)  # (0062,0006)
    return described
