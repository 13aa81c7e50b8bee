"""Reading NIfTI files. The only module that knows nibabel's files and the errors that it raises."""

import gzip
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sslmed_dist.data.damage import damage_named
from sslmed_dist.data.scans.grid import check_affine, check_grid
from sslmed_dist.data.scans.memory import require_voxels
from sslmed_dist.data.scans.regrid import Affine, Volume, require_right_angles

SUFFIXES = (".nii.gz", ".nii")
PACKED = (".gz", ".bz2", ".zst")
MOST_RATIO = 1032  # deflate packs at most so many bytes into one
PART = 2**22  # voxels that are read at a time: as stored, and scaled in float64
MADE_BY = "sslmed segment"  # the intent's name in the header of every volume that it writes
INTENT_ESTIMATE, INTENT_LABEL = 1001, 1002  # the intent's code (nifti1.h): a number per voxel, the id of a label
# Code of xyzt_units: its unit, and mm in it. The first is "unknown", taken for mm as everywhere.
UNITS = {0: ("", 1.0), 1: ("metre", 1000.0), 2: ("millimetre", 1.0), 3: ("micron", 0.001)}
WORDS = {"L": "left", "R": "right", "A": "anterior", "P": "posterior", "S": "superior", "I": "inferior"}


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """A block that reads ``path``: whatever nibabel raises in it becomes a ``ValueError`` that names the file. What
    nibabel logs of a damaged header is not printed: it is refused by name, or of no account."""
    from nibabel.imageglobals import logger

    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    before, logger.disabled = logger.disabled, True
    try:
        with damage_named(path, "cannot be read, truncated or not NIfTI"):
            yield
    finally:
        logger.disabled = before


@dataclass(frozen=True)
class Canonical:
    """A volume turned to right-anterior-superior: its axes point closest to the patient's right, front and head."""

    voxels: Volume  # (I, J, K) float32
    spacing: tuple[float, ...]  # mm along I, J, K
    affine: Affine  # (4, 4) voxel index to RAS mm
    oriented: bool  # whether the file says how the patient lay


def load_nifti(path: Path) -> tuple[Any, Volume, Affine]:
    """(nibabel image, float32 voxels (I, J, K), affine in mm) as stored. ``ValueError`` naming the file when it cannot
    be read, is not 3-D (a fourth dimension of 1 is left away), has a voxel size of 0, a singular affine, an unknown
    unit or an implausible size (``grid.check_grid``), or holds NaN or infinity."""
    image = open_volume(path)
    return image, read_voxels(image, path), affine_mm(image)


def unit(header: Any) -> str:
    """The unit of a header's geometry, "" where it states none. ``ValueError`` for a code that there is not."""
    code = int(header["xyzt_units"]) & 7
    if code not in UNITS:
        raise ValueError(f"xyzt_units {code} is no unit of length; allowed: {', '.join(map(str, UNITS))}")
    return UNITS[code][0]


def affine_mm(image: Any) -> Affine:
    """(4, 4) voxel index to RAS mm of an image, whatever unit its header states; without one, mm."""
    factor = UNITS[int(image.header["xyzt_units"]) & 7][1]
    affine = np.array(image.affine, np.float64)
    affine[:3] *= factor
    return affine


def notices_of(header: Any) -> list[str]:
    """What is converted or has to be guessed of a header's geometry, a line each."""
    doubt, stated = orientation_doubt(header), unit(header)
    lines = [f"{doubt}: where left and right are is a guess"] if doubt else []
    return lines + ([f"its unit is the {stated}: converted to mm"] if stated not in ("", "millimetre") else [])


def read_canonical(path: Path) -> Canonical:
    """The volume turned to right-anterior-superior by swapping and flipping axes; no voxel is interpolated.
    ``ValueError`` as ``load_nifti``."""
    import nibabel
    import nibabel.orientations as orientations

    image = open_volume(path)
    voxels = read_voxels(image, path)
    with readable(path):
        # the geometry is nibabel's, of an image that takes no memory; the voxels are turned as a view of themselves
        empty = np.broadcast_to(np.uint8(0), image.shape[:3])
        turned: Any = nibabel.as_closest_canonical(type(image)(empty, image.affine, image.header))
        voxels = orientations.apply_orientation(voxels, orientations.io_orientation(image.affine))
    factor = UNITS[int(image.header["xyzt_units"]) & 7][1]
    spacing = tuple(float(side) * factor for side in turned.header.get_zooms())
    return Canonical(voxels, spacing, affine_mm(turned), states_orientation(image.header))


def open_volume(path: Path) -> Any:
    """The nibabel image of a file, voxels not read. ``ValueError`` as ``load_nifti``."""
    import nibabel

    with readable(path):
        image: Any = nibabel.load(path, keep_file_open=True)  # so that parts of a packed file are read in one go
        shape = tuple(image.shape)
        if not is_volume(shape) or min(shape) < 1:
            raise ValueError(f"{path}: expected a 3-D volume, got shape {shape}")
        check_size(image, path)
        check_spacing(image, path)
        unit(image.header)
        check_affine(image.affine, str(path))
        check_grid(shape[:3], affine_mm(image), str(path))
    return image


def is_volume(shape: tuple[int, ...]) -> bool:
    """Whether an array of this shape is one volume: 3-D, perhaps with further dimensions of 1."""
    return len(shape) >= 3 and all(side == 1 for side in shape[3:])


def read_voxels(image: Any, path: Path) -> Volume:
    """The voxels (I, J, K) float32 of an opened image, read ``PART`` at a time: no second copy of them is ever there.
    ``ValueError`` as ``load_nifti``."""
    voxels: Volume = np.empty(image.shape[:3], np.float32, order="F")
    rows, columns, slices = image.shape[:3]
    first = (0,) * (len(image.shape) - 3)  # of dimensions of 1
    # whole slices as far as a part has room for them, else parts of one slice: in the order of the file
    across, along = (columns, max(1, PART // (rows * columns))) if rows * columns <= PART else (max(1, PART // rows), 1)
    bad = 0
    with readable(path):
        for k in range(0, slices, along):
            for j in range(0, columns, across):
                part = np.s_[:, j : j + across, k : k + along]
                voxels[part] = image.dataobj[(*part, *first)]
                bad += int((~np.isfinite(voxels[part])).sum())
    require_nothing_behind(image, path)
    if bad:
        raise ValueError(f"{path}: {bad} voxels are NaN or infinite")
    return voxels


def check_size(image: Any, path: Path) -> None:
    """``ValueError`` for voxels that are no real numbers, for more of them than are read (``memory.most_voxels``), and
    for more than the file can hold: a header may claim any size."""
    kind, count = image.get_data_dtype(), math.prod(image.shape)
    if kind.kind not in "iuf":
        raise ValueError(f"{path}: voxels of type {kind}; allowed: whole or real numbers")
    require_voxels(count, image.shape, path)
    held = path.stat().st_size * (MOST_RATIO if path.name.lower().endswith(PACKED) else 1)
    if count * kind.itemsize > held:
        needed = f"{count * kind.itemsize:,} bytes of voxels in shape {tuple(image.shape)}"
        raise ValueError(f"{path}: cannot be read, truncated: {needed}, the file can hold at most {held:,}")


def require_nothing_behind(image: Any, path: Path) -> None:
    """``ValueError`` for a file that holds a slice or more behind the voxels that its header claims. To be asked once
    these have been read: before, a packed file may be cut off."""
    size, shape = image.get_data_dtype().itemsize, tuple(image.shape)
    claimed = int(image.dataobj.offset) + math.prod(shape) * size
    a_slice = math.prod(shape[:2]) * size
    with readable(path):
        behind = bytes_held(path, claimed + a_slice) - claimed
    if behind >= a_slice:
        raise ValueError(f"{path}: {behind:,} bytes or more behind its voxels in shape {shape}: a damaged header")


def bytes_held(path: Path, enough: int) -> int:
    """The bytes of a file, of a gzipped one those that are packed in it, which are counted up to ``enough``; of other
    packings 0. The gzipped one is read to its end, where its checksum stands: a bit that was flipped is found there."""
    if not path.name.lower().endswith(PACKED):
        return path.stat().st_size
    if not path.name.lower().endswith(".gz"):
        return 0
    count = 0
    with gzip.open(path) as file:
        while count < enough and (part := file.read(PART)):
            count += len(part)
    return count


def check_spacing(image: Any, path: Path) -> None:
    """``ValueError`` for a voxel size of 0 in the file's header, which nibabel would quietly take for 1 mm."""
    file_holder = image.file_map.get("image")
    if not hasattr(image.header, "from_fileobj") or "pixdim" not in image.header or file_holder is None:
        return
    # the header as it is in the file: that of ``image`` has been mended by nibabel already
    with file_holder.get_prepare_fileobj("rb") as file:
        header = type(image.header).from_fileobj(file, check=False)
    sides = [float(side) for side in header["pixdim"][1:4]]
    if not all(np.isfinite(side) and side != 0 for side in sides):
        raise ValueError(f"{path}: voxel sizes {[round(side, 4) for side in sides]} mm; each must be above 0")


def axial_slices(voxels: Volume) -> Volume:
    """Axial slices (S, H, W) of a right-anterior-superior volume (I, J, K). Rows run from anterior to posterior,
    columns from the patient's right to the left."""
    return np.ascontiguousarray(voxels[::-1, ::-1].transpose(2, 1, 0))


def states_orientation(header: Any) -> bool:
    """Whether a NIfTI header says how the patient lay. Where it does not, left and right are a guess."""
    return not orientation_doubt(header)


def orientation_doubt(header: Any) -> str:
    """In words, why a NIfTI header does not say where the patient's left is: it has neither a qform nor an sform, or
    both, and they contradict each other about it. "" where it does."""
    import nibabel

    if not (header["qform_code"] > 0 or header["sform_code"] > 0):
        return "has neither a qform nor an sform"
    if header["qform_code"] > 0 and header["sform_code"] > 0:
        try:
            codes = [nibabel.aff2axcodes(affine) for affine in (header.get_qform(), header.get_sform())]
        except Exception:  # a quaternion that is none: nibabel goes by the sform then
            return ""
        sideways = [[(axis, code) for axis, code in enumerate(three) if code in ("L", "R")] for three in codes]
        if sideways[0] != sideways[1]:
            return "has a qform and an sform of which one is mirrored"
    return ""


def require_stated_orientation(path: Path) -> None:
    """``ValueError`` for a file that is no volume of 2 slices or more, does not say how the patient lay, or has axes
    that are not at right angles. Voxels are not read."""
    import nibabel

    with readable(path):
        image: Any = nibabel.load(path)
        check_size(image, path)
    if not is_volume(image.shape) or min(image.shape[:3]) < 2:
        raise ValueError(f"{path}: expected a 3-D volume of 2 slices or more, got shape {tuple(image.shape)}")
    doubt = orientation_doubt(image.header)
    if doubt:
        raise ValueError(f"{path}: {doubt}, so the orientation is unknown")
    require_right_angles(image.affine, str(path))


def read_intent(path: Path) -> tuple[int, str]:
    """(code, name) of the intent in a NIfTI file's header: what its voxels are, and for ours who wrote them. (0, "")
    for a file that cannot be read, which whoever reads its voxels refuses."""
    import nibabel

    try:
        with readable(path):
            header: Any = nibabel.load(path).header
            return int(header["intent_code"]), header["intent_name"].item().decode("latin-1")
    except (ValueError, KeyError, AttributeError):
        return 0, ""


def stored_axes(path: Path) -> str:
    """The directions of the stored axes, e.g. "left, anterior, superior". ``ValueError`` as ``load_nifti``."""
    import nibabel

    return ", ".join(WORDS[code] for code in nibabel.aff2axcodes(open_volume(path).affine))
