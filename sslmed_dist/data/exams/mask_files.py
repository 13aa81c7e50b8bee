"""The masks of an annotated scan in whatever they are stored: a label map, binary masks, DICOM-SEG or RTSTRUCT."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sslmed_dist.data.exams.exam_layouts import names_beside
from sslmed_dist.data.exams.one_series import read_one
from sslmed_dist.data.scans.contours import read_structures
from sslmed_dist.data.scans.dicom_file import read_dicom
from sslmed_dist.data.scans.grid import check_affine
from sslmed_dist.data.scans.masks import NEAR, Mask, Masks, name_of, of_label_map
from sslmed_dist.data.scans.nifti import (
    SUFFIXES,
    affine_mm,
    check_size,
    check_spacing,
    notices_of,
    readable,
    require_nothing_behind,
    states_orientation,
)
from sslmed_dist.data.scans.scan import StoredScan, stem
from sslmed_dist.data.scans.segments import read_segments

READERS = {"SEG": read_segments, "RTSTRUCT": read_structures}  # by the Modality of a DICOM file
ALLOWED = "a NIfTI file, a folder of NIfTI masks, DICOM-SEG, RTSTRUCT, or a folder with a DICOM series of label ids"


def read_masks(path: Path, scan: StoredScan) -> Masks:
    """The masks in ``path`` of the annotated ``scan``. It is one of:

    - a NIfTI file (I, J, K) of label ids, or (I, J, K, C) of C masks of 0 and 1; a fourth axis of 1 counts for nothing;
    - a folder of NIfTI files (I, J, K) of 0 and 1: a label each, numbered in the order of their names;
    - a file, or the one such file of a folder, of DICOM-SEG or RTSTRUCT;
    - a folder with a DICOM series whose pixels are label ids.

    The ids of a label map have the names of the set that it lies in (``exam_layouts.names_beside``). ``ValueError``
    naming the file for anything else, and as the readers.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    names, said = names_beside(path) if path.is_file() else ({}, [])
    if path.is_dir():
        volumes = sorted(entry for entry in path.iterdir() if is_volume_file(entry))
        if volumes:
            return binary_files(path, volumes)
    elif path.name.lower().endswith(SUFFIXES):
        image = opened(path)
        if len(image.shape) == 4 and image.shape[3] > 1:
            return channels(path, image)
        if len(image.shape) == 4:
            return saying(label_map(path, image, names), said)
    objects = dicom_objects(path)
    if len(objects) > 1:
        listed = ", ".join(f"{file.name} ({kind})" for file, kind in objects.items())
        raise ValueError(f"{path}: {len(objects)} files of masks in it ({listed}); give the one that is meant")
    for file, kind in objects.items():
        return READERS[kind](file, scan, frame_of_reference(scan))
    if not path.is_dir() and not path.name.lower().endswith(SUFFIXES):
        raise ValueError(f"{path}: no masks in it; allowed: {ALLOWED}")
    stored, notices = read_one(path)
    return saying(of_label_map(stored, names), [*said, *notices])


def saying(masks: Masks, lines: list[str]) -> Masks:
    """The masks with further notices."""
    return replace(masks, notices=(*lines, *masks.notices))


def is_volume_file(path: Path) -> bool:
    """Whether a file of a folder is NIfTI by its name. What other systems leave beside files (``._liver.nii.gz``) is
    hidden, and is none."""
    return path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".")


def dicom_objects(path: Path) -> dict[Path, str]:
    """The DICOM-SEG and RTSTRUCT files that ``path`` is or holds, with their Modality."""
    from pydicom.errors import InvalidDicomError

    files = sorted(entry for entry in path.iterdir() if entry.is_file()) if path.is_dir() else [path]
    kinds = {}
    for file in files:
        if file.name.lower().endswith(SUFFIXES):
            continue
        try:
            kinds[file] = str(read_dicom(file, header_only=True).get("Modality", ""))
        except (InvalidDicomError, OSError, ValueError, EOFError):
            continue  # what it is instead is said by who reads it
    return {file: kind for file, kind in kinds.items() if kind in READERS}


def frame_of_reference(scan: StoredScan) -> str | None:
    """The FrameOfReferenceUID of a scan that is DICOM; None for NIfTI, which has none."""
    if scan.series is None:
        return None
    header = read_dicom(scan.path / scan.series.files[0], header_only=True, force=True)
    return str(header.get("FrameOfReferenceUID", "") or "")


def opened(path: Path) -> Any:
    """The nibabel image of a file of masks, voxels not read. ``ValueError`` naming the file as ``load_nifti``, but it
    may have a fourth axis."""
    import nibabel

    with readable(path):
        image: Any = nibabel.load(path, keep_file_open=True)
        if len(image.shape) not in (3, 4) or min(image.shape) < 1:
            raise ValueError(f"{path}: expected (I, J, K) or (I, J, K, masks), got shape {tuple(image.shape)}")
        check_size(image, path)
        check_spacing(image, path)
        check_affine(image.affine, str(path))
    require_nothing_behind(image, path)
    return image


def label_map(path: Path, image: Any, names: dict[int, str]) -> Masks:
    """The labels of a file (I, J, K, 1)."""
    with readable(path):
        voxels = np.asarray(image.dataobj[..., 0], dtype=np.float32)
    said = tuple(notices_of(image.header))
    stored = StoredScan(path, voxels, affine_mm(image), states_orientation(image.header))
    return replace(of_label_map(stored, names), notices=said)


def ones(path: Path, image: Any, channel: int | None) -> Mask:
    """Bool (I, J, K): where the file, or one channel of it, is 1. ``ValueError`` for a value other than 0 and 1."""
    with readable(path):
        values = np.asarray(image.dataobj if channel is None else image.dataobj[..., channel], dtype=np.float32)
    values = values.reshape(values.shape[:3])
    near = np.minimum(np.abs(values), np.abs(values - 1))
    if not near.max() <= NEAR:  # NaN as well
        where = "" if channel is None else f" in mask {channel + 1} of its fourth axis"
        raise ValueError(f"{path}: holds values other than 0 and 1{where}; allowed: one mask of 0 and 1 for each label")
    return np.asarray(values > 0.5)


def channels(path: Path, image: Any) -> Masks:
    """The masks of a file (I, J, K, C): label c is the c-th, counted from 1. Where they fill every voxel exactly once,
    the first is the background, and label c is the one after it."""
    count = image.shape[3]
    filled, held = np.zeros(image.shape[:3], np.int32), []
    for channel in range(count):
        mask = ones(path, image, channel)
        filled += mask
        held += [channel] if mask.any() else []
    one_hot = bool((filled == 1).all())
    first = 1 if one_hot else 0
    names = {channel + 1 - first: name_of(channel + 1 - first) for channel in held if channel >= first}
    said = ["its masks fill every voxel once: the first is taken for the background"] if one_hot else []
    said += ["masks overlap; each is used as it is"] if (filled > 1).any() else []
    return Masks(
        path,
        image.shape[:3],
        affine_mm(image),
        states_orientation(image.header),
        names,
        lambda label: ones(path, image, label - 1 + first),
        (*notices_of(image.header), *said),
    )


def binary_files(folder: Path, files: list[Path]) -> Masks:
    """A folder of masks, a file for each label, called after it, as TotalSegmentator writes them. ``ValueError`` for
    files on different grids, and as ``ones``."""
    first = opened(files[0])
    names: dict[int, str] = {}
    empty: list[str] = []
    for label, file in enumerate(files, start=1):
        image = opened(file)
        if image.shape[:3] != first.shape[:3] or not np.allclose(image.affine, first.affine, atol=1e-3):
            raise ValueError(f"{file}: another grid than {files[0].name}; the masks of a folder have one grid")
        if len(image.shape) == 4 and image.shape[3] > 1:
            raise ValueError(f"{file}: expected one mask (I, J, K) a file, got shape {tuple(image.shape)}")
        if stem(file) in (*names.values(), *empty):
            raise ValueError(f"{file}: a second mask called {stem(file)}; each label has a name of its own")
        if ones(file, image, None).any():
            names[label] = stem(file)
        else:
            empty.append(stem(file))
    said = [f"empty masks: {', '.join(empty)}"] if empty else []

    def read(label: int) -> Mask:
        return ones(files[label - 1], opened(files[label - 1]), None)

    affine, oriented = affine_mm(first), states_orientation(first.header)
    notices = (*notices_of(first.header), *said)
    return Masks(folder, first.shape[:3], affine, oriented, names, read, notices, by_files=True)
