"""Abdominal phantoms in the layouts two published sets are downloaded in: CHAOS (MR, DICOM with PNG masks; Kavur et
al. 2021) and BTCV (CT, NIfTI; Landman et al. 2015). The drawings are those of ``abdomen``.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sslmed_dist.data.phantom.abdomen import BREADTH, HEIGHT, abdomen_volume
from sslmed_dist.data.phantom.abdomen import SPACING as PREPARED
from sslmed_dist.data.phantom.publish import publish, require_counts
from sslmed_dist.data.phantom.scanner import scanner
from sslmed_dist.data.scans.nifti import nifti_bytes
from sslmed_dist.randomness import key

GREYS = (0, 63, 126, 189, 252)  # of background, liver, right kidney, left kidney, spleen in a mask of CHAOS
CT_LABELS = (0, 6, 2, 3, 1)  # the same in BTCV
AIR, FAINTEST, BRIGHTEST = -1000.0, -125.0, 275.0  # Hounsfield units of the border and of signals 0 and 1
BORDER = 32  # pixels of air around a CT phantom, which the recipe of preparation cuts off
Array = NDArray[Any]


def uid(*parts: object) -> str:
    """A DICOM identifier made of ``parts`` alone."""
    return f"2.25.{int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:15])}"


def direct(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """The affine in DICOM's frame, left-posterior-superior."""
    result: NDArray[np.float64] = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    return result


def write_series(
    folder: Path,
    voxels: Array,
    affine: NDArray[np.float64],
    *,
    series: str = "series",
    names: Sequence[str] | None = None,
    instances: Sequence[int] | None = None,
    slope: float = 1.0,
    intercept: float = 0.0,
) -> list[Path]:
    """Write ``voxels`` (columns, rows, slices), int16 or uint16, with ``affine`` (index to mm in RAS, axes at right
    angles) as one DICOM file per slice; return the files in the order of the slices. The affine may be left-handed:
    then the slices run against their normal, which a reader has to find out by itself.

    ``names`` and ``instances``: file name and InstanceNumber per slice, as counted from 1 unless given. ``series``:
    what the identifiers are made of. Nobody's name, date or place is in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = voxels.shape[2]
    numbers = list(instances) if instances is not None else list(range(1, count + 1))
    files = [folder / name for name in (names or [f"IMG-0001-{number:05d}.dcm" for number in range(1, count + 1)])]
    for k, (path, number) in enumerate(zip(files, numbers, strict=True)):
        header = slice_header(series, number, direct(affine), k)
        header.Columns, header.Rows = voxels.shape[:2]
        header.PixelRepresentation = int(voxels.dtype == np.int16)
        header.RescaleSlope, header.RescaleIntercept = slope, intercept
        header.PixelData = np.ascontiguousarray(voxels[:, :, k].T).astype(voxels.dtype.newbyteorder("<")).tobytes()
        header.save_as(path, enforce_file_format=True)
    return files


def slice_header(series: str, number: int, affine: NDArray[np.float64], k: int) -> Any:
    """A MR header with the geometry of slice ``k`` of a grid whose ``affine`` is in LPS; without pixels."""
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage
    from pydicom.valuerep import format_number_as_ds

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = uid(series, number)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header: Any = FileDataset("", Dataset(), file_meta=meta, preamble=b"\0" * 128)
    header.SOPClassUID, header.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
    header.StudyInstanceUID, header.SeriesInstanceUID = uid(series, "study"), uid(series, "series")
    header.FrameOfReferenceUID = uid(series, "frame")
    header.Modality, header.PatientID, header.PatientName = "MR", "PHANTOM", "PHANTOM"
    header.PatientBirthDate = header.PatientSex = header.StudyDate = header.StudyTime = ""
    header.StudyID = header.AccessionNumber = header.ReferringPhysicianName = ""
    header.SeriesNumber, header.InstanceNumber = 1, number
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    directions = (affine[:3, :3] / spacing).T
    text = [format_number_as_ds(float(value)) for value in (*directions[0], *directions[1])]
    header.ImageOrientationPatient = text
    corner = affine[:3, 3] + k * affine[:3, 2]
    header.ImagePositionPatient = [format_number_as_ds(float(value)) for value in corner]
    header.PixelSpacing = [format_number_as_ds(float(side)) for side in (spacing[1], spacing[0])]
    header.SliceThickness = format_number_as_ds(float(spacing[2]))
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit = 16, 16, 15
    return header


def centred(shape: Sequence[int], sides: Sequence[float]) -> NDArray[np.float64]:
    """The affine of a grid with axes left, anterior, superior about the origin."""
    affine = np.diag([-sides[0], sides[1], sides[2], 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def write_patient(folder: Path, image: Array, mask: Array, affine: NDArray[np.float64], *, upwards: bool) -> None:
    """One patient of CHAOS MR: T2SPIR/DICOM_anon and T2SPIR/Ground below ``folder``, from volumes with axes left,
    anterior, superior. Files are numbered towards the head or, unless ``upwards``, the feet."""
    from torchvision.io import write_png

    # DICOM's rows run to the back
    flipped = affine.copy()
    flipped[:3, 1] *= -1
    flipped[:3, 3] += (image.shape[1] - 1) * affine[:3, 1]
    count = image.shape[2]
    order = list(range(1, count + 1)) if upwards else list(range(count, 0, -1))
    names = [f"IMG-0004-{number:05d}" for number in order]
    place = folder / "T2SPIR"
    voxels = np.ascontiguousarray(image[:, ::-1])
    files = [f"{name}.dcm" for name in names]
    write_series(place / "DICOM_anon", voxels, flipped, series=folder.name, names=files, instances=order)
    (place / "Ground").mkdir()
    grey = np.array(GREYS, np.uint8)[mask[:, ::-1]]
    for k, name in enumerate(names):
        write_png(torch.from_numpy(np.ascontiguousarray(grey[:, :, k].T))[None], str(place / "Ground" / f"{name}.png"))


def write_chaos(
    root: str | Path, *, exams: int = 4, size: int = 128, slices: int = 24, prepared: bool = False, seed: int = 0
) -> Path:
    """Write phantoms in the layout of CHAOS MR into ``root`` and return it: P/T2SPIR/DICOM_anon/IMG-0004-00001.dcm, ...
    and P/T2SPIR/Ground/IMG-0004-00001.png, ..., P from 1. Files of patients 2, 4, ... are numbered from head to feet.

    The body has its true size whatever the number of voxels, or, ``prepared``, voxels of 1.25 x 1.25 x 7.7 mm.
    ``ValueError`` for fewer than 32 pixels or 8 slices, or for a folder that holds something else.
    """
    require_counts(exams=exams)
    require_voxels(size, slices)
    spec = {"kind": "chaos", "version": 1, "exams": exams, "size": size, "slices": slices, "prepared": prepared}
    spec |= {"seed": seed, "scanner": asdict(scanner(0, seed))}
    sides = PREPARED if prepared else (BREADTH / size, BREADTH / size, HEIGHT / slices)

    def fill(folder: Path) -> None:
        for number in range(1, exams + 1):
            image, mask = abdomen_volume(key(seed, "abdomen", number), scanner(0, seed), size=size, slices=slices)
            place = centred(image.shape, sides)
            write_patient(folder / str(number), image, mask, place, upwards=number % 2 == 1)

    return publish(root, spec, fill)


def write_btcv(root: str | Path, *, exams: int = 4, size: int = 192, slices: int = 24, seed: int = 0) -> Path:
    """Write phantoms in the layout of BTCV into ``root`` and return it: imagesTr/img0001.nii.gz int16 in Hounsfield
    units, labelsTr/label0001.nii.gz uint8, ..., axes left, anterior, superior; 32 of the ``size`` pixels on each side
    are air. The contrasts are those of the MR phantom.

    ``ValueError`` for fewer than 96 pixels or 8 slices, or for a folder that holds something else.
    """
    require_counts(exams=exams)
    require_voxels(size - 2 * BORDER, slices)
    spec = {"kind": "btcv", "version": 1, "exams": exams, "size": size, "slices": slices}
    spec |= {"seed": seed, "scanner": asdict(scanner(0, seed))}
    side = BREADTH / (size - 2 * BORDER)
    air = ((BORDER, BORDER), (BORDER, BORDER), (0, 0))

    def fill(folder: Path) -> None:
        for place in ("imagesTr", "labelsTr"):
            (folder / place).mkdir()
        for number in range(1, exams + 1):
            drawn = abdomen_volume(
                key(seed, "abdomen", number), scanner(0, seed), size=size - 2 * BORDER, slices=slices
            )
            signal = drawn[0] / np.float32(max(int(drawn[0].max()), 1))
            units = np.rint(FAINTEST + (BRIGHTEST - FAINTEST) * signal).astype(np.int16)
            image = np.pad(units, air, constant_values=int(AIR))
            mask = np.pad(np.array(CT_LABELS, np.uint8)[drawn[1]], air)
            affine = centred(image.shape, (side, side, HEIGHT / slices))
            (folder / "imagesTr" / f"img{number:04d}.nii.gz").write_bytes(nifti_bytes(image, affine))
            (folder / "labelsTr" / f"label{number:04d}.nii.gz").write_bytes(nifti_bytes(mask, affine))

    return publish(root, spec, fill)


def require_voxels(size: int, slices: int) -> None:
    """``ValueError`` for a body of fewer than 32 pixels or 8 slices."""
    if size < 32 or slices < 8:
        raise ValueError(f"size, slices: expected 32 pixels of body and 8 slices or more, got {size} and {slices}")
