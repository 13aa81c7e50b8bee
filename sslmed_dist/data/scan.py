"""One scan as it is stored: a NIfTI file or a folder with one DICOM series, in its own array order."""

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sslmed_dist.data.grid import check_affine

SUFFIXES = (".nii.gz", ".nii")
# Fields of a NIfTI header that hold geometry: all that a file written beside another one takes over from it.
GEOMETRY = (
    "pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "srow_x", "srow_y", "srow_z", "xyzt_units",
)  # fmt: skip
Voxels = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Scan:
    """A volume in the order it is stored in."""

    path: Path
    voxels: Voxels  # (I, J, K) float32
    affine: Array  # (4, 4) float64, voxel index to right-anterior-superior mm
    oriented: bool  # False: a NIfTI file that has neither a qform nor an sform, so left and right are a guess
    header: Any = None  # of the NIfTI file
    series: Any = None  # of the DICOM folder: data.dicom.Series

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


def load_nifti(path: Path, *, canonical: bool = False) -> tuple[Any, Voxels]:
    """(nibabel image, float32 voxels), ``canonical``: both turned to right-anterior-superior. ``ValueError`` naming the
    file when it cannot be read, is not 3-D, has a voxel size of 0 or a singular affine, or holds NaN or infinity."""
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.imageglobals import LoggingOutputSuppressor
    from nibabel.spatialimages import HeaderDataError

    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with LoggingOutputSuppressor():  # it reports on stderr what is refused below by name
            image: Any = nibabel.load(path)
        shape = tuple(image.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"{path}: expected a 3-D volume, got shape {shape}")
        check_spacing(image, path)
        check_affine(image.affine, str(path))
        image = nibabel.as_closest_canonical(image) if canonical else image
        voxels: Voxels = np.asarray(image.dataobj, dtype=np.float32)
    except (OSError, EOFError, zlib.error, ImageFileError, HeaderDataError) as error:
        raise ValueError(f"{path}: cannot be read, truncated or not NIfTI: {error}") from error
    if not np.isfinite(voxels).all():
        raise ValueError(f"{path}: {int((~np.isfinite(voxels)).sum())} voxels are NaN or infinite")
    return image, voxels


def check_spacing(image: Any, path: Path) -> None:
    """``ValueError`` for a voxel size of 0 in the file's header, which nibabel would quietly take for 1 mm."""
    stored = image.file_map.get("image")
    if not hasattr(image.header, "from_fileobj") or "pixdim" not in image.header or stored is None:
        return
    with stored.get_prepare_fileobj("rb") as file:
        header = type(image.header).from_fileobj(file, check=False)
    sides = [float(side) for side in header["pixdim"][1:4]]
    if not all(np.isfinite(side) and side != 0 for side in sides):
        raise ValueError(f"{path}: voxel sizes {[round(side, 4) for side in sides]} mm; each must be above 0")


def read_scan(path: Path) -> Scan:
    """Read a NIfTI file, or a folder that holds one DICOM series. ``ValueError`` naming it as ``load_nifti`` and
    ``data.dicom.read_series`` do, also for a file that is not NIfTI."""
    if path.is_dir():
        from sslmed_dist.data.dicom import read_series

        series = read_series(path)
        voxels: Voxels = np.asarray(series.voxels, dtype=np.float32)
        if not np.isfinite(voxels).all():
            raise ValueError(f"{path}: {int((~np.isfinite(voxels)).sum())} voxels are NaN or infinite")
        affine = np.array(series.affine, dtype=np.float64)
        check_affine(affine, str(path))
        return Scan(path, voxels, affine, oriented=True, series=series)
    if path.exists() and not path.name.lower().endswith(SUFFIXES):
        raise ValueError(f"{path}: not a scan; allowed: a NIfTI file (.nii, .nii.gz) or a folder with a DICOM series")
    image, voxels = load_nifti(path)
    header = image.header
    oriented = bool(header["qform_code"] > 0 or header["sform_code"] > 0)
    return Scan(path, voxels, np.array(image.affine, dtype=np.float64), oriented, header=header)


def nifti_like(scan: Scan, values: Array) -> bytes:
    """A gzipped NIfTI file of ``values`` (I, J, K) or (I, J, K, C) in the voxels of ``scan``: the affine of its file
    bit for bit. Nothing else is taken from it: no text, no extension, no time stamp. Units are mm."""
    import gzip

    import nibabel

    old, header = scan.header, nibabel.Nifti1Header()
    image: Any
    if old is None:
        header.set_data_dtype(values.dtype)  # a header that is given keeps its own type, float32
        image = nibabel.Nifti1Image(values, scan.affine, header)
        image.set_qform(scan.affine, 1)
        image.set_sform(scan.affine, 1)
        image.header.set_xyzt_units("mm")
    else:
        kind = nibabel.Nifti2Image if "unused_str" in old else nibabel.Nifti1Image
        header = kind.header_class()
        header.set_data_shape(values.shape)
        for field in GEOMETRY:
            header[field] = old[field]
        header["pixdim"][4:] = 1.0
        header.set_data_dtype(values.dtype)
        image = kind(values, None, header)
    return gzip.compress(image.to_bytes(), compresslevel=4, mtime=0)
