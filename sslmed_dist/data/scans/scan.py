"""One scan as it is stored, in its own array order: a NIfTI file, or a folder with one DICOM series."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sslmed_dist.data.scans.grid import check_affine
from sslmed_dist.data.scans.nifti import SUFFIXES, load_nifti, notices_of, orientation_doubt

Voxels = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class StoredScan:
    """A volume in the order it is stored in."""

    path: Path
    voxels: Voxels  # (I, J, K) float32
    affine: Array  # (4, 4) float64, voxel index to right-anterior-superior mm
    oriented: bool  # False: a NIfTI file that does not say where the patient's left is, so that it is a guess
    header: Any = None  # of the NIfTI file
    series: Any = None  # of the DICOM folder: dicom.Series
    doubt: str = ""  # in words, why it is not oriented
    notices: tuple[str, ...] = ()  # what reading changed or had to guess, a line each

    @property
    def name(self) -> str:
        """The file's name without its suffix, or the folder's name."""
        return stem(self.path)


def stem(path: Path) -> str:
    """``liver`` for ``a/liver.nii.gz``, ``a/liver.nii`` and the folder ``a/liver``."""
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix) and len(path.name) > len(suffix):
            return path.name[: -len(suffix)]
    return path.resolve().name


def read_scan(path: Path, files: Sequence[Path] | None = None) -> StoredScan:
    """Read a NIfTI file, or a folder that holds one DICOM series: of the folder all files, or ``files`` alone.
    ``ValueError`` naming it as ``load_nifti`` and ``dicom.read_series`` do, also for a file that is not NIfTI."""
    if path.is_dir():
        from sslmed_dist.data.scans.dicom import read_series

        series = read_series(path, files)
        voxels: Voxels = np.asarray(series.voxels, dtype=np.float32)
        if not np.isfinite(voxels).all():
            raise ValueError(f"{path}: {int((~np.isfinite(voxels)).sum())} voxels are NaN or infinite")
        affine = np.array(series.affine, dtype=np.float64)
        check_affine(affine, str(path))
        return StoredScan(path, voxels, affine, oriented=True, series=series, notices=series.notices)
    if path.exists() and not path.name.lower().endswith(SUFFIXES):
        raise ValueError(f"{path}: not a scan; allowed: a NIfTI file (.nii, .nii.gz) or a folder with a DICOM series")
    image, stored, affine = load_nifti(path)
    doubt, said = orientation_doubt(image.header), tuple(notices_of(image.header))
    return StoredScan(path, stored, affine, not doubt, header=image.header, doubt=doubt, notices=said)
