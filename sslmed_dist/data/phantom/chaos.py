"""Abdominal phantoms in the layouts three published sets are downloaded in: CHAOS (MR, DICOM with PNG masks; Kavur et
al. 2021), BTCV and FLARE22 (CT, NIfTI; Landman et al. 2015, Ma et al. 2023). The drawings are those of ``abdomen``.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sslmed_dist.data.phantom.abdomen import BREADTH, HEIGHT, abdomen_volume
from sslmed_dist.data.phantom.abdomen import SPACING as PREPARED
from sslmed_dist.data.phantom.publish import publish, require_counts
from sslmed_dist.data.phantom.scanner import scanner
from sslmed_dist.data.scans.nifti_writing import nifti_bytes
from sslmed_dist.randomness import key

GREYS = (0, 63, 126, 189, 252)  # of background, liver, right kidney, left kidney, spleen in a mask of CHAOS
AIR, FAINTEST, BRIGHTEST = -1000.0, -125.0, 275.0  # Hounsfield units of the border and of signals 0 and 1
BORDER = 32  # pixels of air around a CT phantom, which the recipe of preparation cuts off
Array = NDArray[Any]


def uid(*parts: object) -> str:
    """A DICOM identifier made of ``parts`` alone: the same parts give the same one."""
    return f"2.25.{int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:15])}"


def direct(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """The affine (4, 4) from index to mm in DICOM's frame, left-posterior-superior, made of one in RAS."""
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
    tags: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write ``voxels`` as one DICOM file per slice; return the files in the order of the slices.

    ``voxels`` is int16 or uint16 (columns, rows, slices). ``affine`` (4, 4) maps an index to mm in RAS, with axes at
    right angles. It may be left-handed; then the slices run against their normal, which a reader has to find out.
    ``tags`` are further attributes, the same in every file.
    ``names`` and ``instances`` are the file name and InstanceNumber per slice, by default counted from 1. ``series``
    is what the identifiers are made of. The files hold no person's name, date or place.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = voxels.shape[2]
    numbers = list(instances) if instances is not None else list(range(1, count + 1))
    files = [folder / name for name in (names or [f"IMG-0001-{instance:05d}.dcm" for instance in range(1, count + 1)])]
    for k, (path, instance) in enumerate(zip(files, numbers, strict=True)):
        header = slice_header(series, instance, direct(affine), k)
        header.Columns, header.Rows = voxels.shape[:2]
        for name, value in (tags or {}).items():
            setattr(header, name, value)
        header.PixelRepresentation = int(voxels.dtype == np.int16)
        header.RescaleSlope, header.RescaleIntercept = slope, intercept
        header.PixelData = np.ascontiguousarray(voxels[:, :, k].T).astype(voxels.dtype.newbyteorder("<")).tobytes()
        header.save_as(path, enforce_file_format=True)
    return files


def slice_header(series: str, instance: int, affine: NDArray[np.float64], slice_index: int) -> Any:
    """An MR header, without pixels, of slice ``slice_index`` of a grid; its ``affine`` (4, 4) gives mm in LPS."""
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage
    from pydicom.valuerep import format_number_as_ds

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = uid(series, instance)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header: Any = FileDataset("", Dataset(), file_meta=meta, preamble=b"\0" * 128)
    header.SOPClassUID, header.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
    header.StudyInstanceUID, header.SeriesInstanceUID = uid(series, "study"), uid(series, "series")
    header.FrameOfReferenceUID = uid(series, "frame")
    header.Modality, header.PatientID, header.PatientName = "MR", "PHANTOM", "PHANTOM"
    header.PatientBirthDate = header.PatientSex = header.StudyDate = header.StudyTime = ""
    header.StudyID = header.AccessionNumber = header.ReferringPhysicianName = ""
    header.SeriesNumber, header.InstanceNumber = 1, instance
    # columns of the affine: the step along each axis of the grid, its length the spacing
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    directions = (affine[:3, :3] / spacing).T
    text = [format_number_as_ds(float(value)) for value in (*directions[0], *directions[1])]
    header.ImageOrientationPatient = text
    # centre of the slice's first pixel
    corner = affine[:3, 3] + slice_index * affine[:3, 2]
    header.ImagePositionPatient = [format_number_as_ds(float(value)) for value in corner]
    # between rows first, then between columns
    header.PixelSpacing = [format_number_as_ds(float(side)) for side in (spacing[1], spacing[0])]
    header.SliceThickness = format_number_as_ds(float(spacing[2]))
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit = 16, 16, 15
    return header


def centred(shape: Sequence[int], sides: Sequence[float]) -> NDArray[np.float64]:
    """The affine (4, 4), index to mm in RAS, of a grid centred at the origin, axes to the left, the front and up."""
    affine = np.diag([-sides[0], sides[1], sides[2], 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def write_patient(folder: Path, image: Array, mask: Array, affine: NDArray[np.float64], *, upwards: bool) -> None:
    """Write one patient of CHAOS MR: T2SPIR/DICOM_anon and T2SPIR/Ground below ``folder``.

    ``image`` and ``mask`` have the axes left, anterior, superior. ``upwards``: files are numbered towards the head,
    otherwise towards the feet.
    """
    from torchvision.io import write_png

    # DICOM's rows run to the back: turn the second axis round, and move the origin to what was its last voxel
    flipped_affine = affine.copy()
    flipped_affine[:3, 1] *= -1
    flipped_affine[:3, 3] += (image.shape[1] - 1) * affine[:3, 1]
    count = image.shape[2]
    order = list(range(1, count + 1)) if upwards else list(range(count, 0, -1))
    names = [f"IMG-0004-{number:05d}" for number in order]
    series_folder = folder / "T2SPIR"
    voxels = np.ascontiguousarray(image[:, ::-1])
    files = [f"{name}.dcm" for name in names]
    write_series(series_folder / "DICOM_anon", voxels, flipped_affine, series=folder.name, names=files, instances=order)
    (series_folder / "Ground").mkdir()
    grey = np.array(GREYS, np.uint8)[mask[:, ::-1]]
    for slice_index, name in enumerate(names):
        write_png(
            torch.from_numpy(np.ascontiguousarray(grey[:, :, slice_index].T))[None],
            str(series_folder / "Ground" / f"{name}.png"),
        )


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
        for patient in range(1, exams + 1):
            image, mask = abdomen_volume(key(seed, "abdomen", patient), scanner(0, seed), size=size, slices=slices)
            affine = centred(image.shape, sides)
            write_patient(folder / str(patient), image, mask, affine, upwards=patient % 2 == 1)

    return publish(root, spec, fill)


@dataclass(frozen=True)
class CTSet:
    """How a published CT set is laid out: folders of images and masks, the names of an exam's files in them, and the
    values of background, liver, right kidney, left kidney and spleen in a mask."""

    folders: tuple[str, str]
    names: tuple[str, str]
    values: tuple[int, ...]


CT_SETS = {
    "btcv": CTSet(("imagesTr", "labelsTr"), ("img{:04d}.nii.gz", "label{:04d}.nii.gz"), (0, 6, 2, 3, 1)),
    "flare22": CTSet(
        ("images", "labels"), ("FLARE22_Tr_{:04d}_0000.nii.gz", "FLARE22_Tr_{:04d}.nii.gz"), (0, 1, 2, 13, 3)
    ),
}


def write_ct(kind: str, root: str | Path, *, exams: int, size: int, slices: int, seed: int) -> Path:
    """Write phantoms in the layout of one of ``CT_SETS`` into ``root`` and return it. Images are int16 in Hounsfield
    units, masks uint8, axes left, anterior, superior; 32 of the ``size`` pixels on each side are air. The contrasts are
    those of the MR phantom, and only the four organs of ``abdomen`` are drawn.

    ``ValueError`` for fewer than 96 pixels or 8 slices, or for a folder that holds something else.
    """
    require_counts(exams=exams)
    require_voxels(size - 2 * BORDER, slices)
    spec = {"kind": kind, "version": 1, "exams": exams, "size": size, "slices": slices}
    spec |= {"seed": seed, "scanner": asdict(scanner(0, seed))}
    side, ct_set = BREADTH / (size - 2 * BORDER), CT_SETS[kind]
    air = ((BORDER, BORDER), (BORDER, BORDER), (0, 0))

    def fill(folder: Path) -> None:
        for subfolder in ct_set.folders:
            (folder / subfolder).mkdir()
        for exam in range(1, exams + 1):
            drawn = abdomen_volume(key(seed, "abdomen", exam), scanner(0, seed), size=size - 2 * BORDER, slices=slices)
            # signals 0 to 1 become Hounsfield units, then air is added around
            signal = drawn[0] / np.float32(max(int(drawn[0].max()), 1))
            units = np.rint(FAINTEST + (BRIGHTEST - FAINTEST) * signal).astype(np.int16)
            image = np.pad(units, air, constant_values=int(AIR))
            mask = np.pad(np.array(ct_set.values, np.uint8)[drawn[1]], air)
            affine = centred(image.shape, (side, side, HEIGHT / slices))
            for subfolder, name, voxels in zip(ct_set.folders, ct_set.names, (image, mask), strict=True):
                (folder / subfolder / name.format(exam)).write_bytes(nifti_bytes(voxels, affine))

    return publish(root, spec, fill)


def write_btcv(root: str | Path, *, exams: int = 4, size: int = 192, slices: int = 24, seed: int = 0) -> Path:
    """Write phantoms in the layout of BTCV: imagesTr/img0001.nii.gz, labelsTr/label0001.nii.gz, ... (``write_ct``)."""
    return write_ct("btcv", root, exams=exams, size=size, slices=slices, seed=seed)


def write_flare22(root: str | Path, *, exams: int = 4, size: int = 192, slices: int = 24, seed: int = 0) -> Path:
    """Write phantoms in the layout of FLARE22: images/FLARE22_Tr_0001_0000.nii.gz, labels/FLARE22_Tr_0001.nii.gz, ...
    (``write_ct``)."""
    return write_ct("flare22", root, exams=exams, size=size, slices=slices, seed=seed)


def require_voxels(size: int, slices: int) -> None:
    """``ValueError`` for a body of fewer than 32 pixels or 8 slices."""
    if size < 32 or slices < 8:
        raise ValueError(f"size, slices: expected 32 pixels of body and 8 slices or more, got {size} and {slices}")
