"""The scan of an exam and its organs as one label map, whatever layout they are stored in."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sslmed_dist.data.dataset import Stored
from sslmed_dist.data.exams.exam_layouts import Layout
from sslmed_dist.data.exams.one_series import read_one
from sslmed_dist.data.samples import hash_of, in_file
from sslmed_dist.data.scans.masks import NEAR
from sslmed_dist.data.scans.nifti import SUFFIXES, Canonical, read_canonical
from sslmed_dist.data.scans.regrid import spacing, turn

ORGANS = ("liver", "right kidney", "left kidney", "spleen")  # values 1 ... 4 of CHAOS MR
Volume = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


@dataclass(frozen=True)
class OrganTable:
    """The organs that are asked for (value k + 1 of the label map is ``names[k]``), the value that each has in the
    masks, and the values of organs that were not asked for, which become background."""

    names: tuple[str, ...]
    values: tuple[int, ...]
    others: tuple[int, ...] = ()


def organ_table(layout: Layout, organs: Sequence[str], where: Path) -> OrganTable:
    """The table of ``organs`` in a set. Where the set names its organs, they are found by name; the default of a recipe
    that the set does not have stands for all of the set's. Where it names none, value k + 1 is ``organs[k]``.
    ``ValueError`` for an organ that the set does not have."""
    if not layout.organs:
        return OrganTable(tuple(organs), tuple(range(1, len(organs) + 1)))
    by_name = {name: value for value, name in layout.organs.items()}
    missing = [organ for organ in organs if organ not in by_name]
    if missing and tuple(organs) == ORGANS:
        return OrganTable(tuple(by_name), tuple(by_name.values()))
    if missing:
        raise ValueError(f"{where}: organs: no organ {missing[0]!r} in this set; allowed: {', '.join(by_name)}")
    values = tuple(by_name[organ] for organ in organs)
    return OrganTable(tuple(organs), values, tuple(value for value in layout.organs if value not in values))


def unpaired(images: dict[int, Path], masks: dict[int, Path]) -> list[str]:
    """A message for every image without a mask (when others have one), and for every mask without an image."""
    lines = [f"{images[n]}: has no mask label_... beside it, other exams have one" for n in images if n not in masks]
    return (lines if masks else []) + [f"{masks[n]}: has no image_... beside it" for n in masks if n not in images]


def pairs_of(layout: Layout) -> dict[int, tuple[Path, Path | None]]:
    """(image, mask or None) of every exam, by ascending number. ``ValueError`` unless all or none have a mask."""
    for line in unpaired(layout.images, layout.masks):
        raise ValueError(line)
    return {exam_number: (path, layout.masks.get(exam_number)) for exam_number, path in layout.images.items()}


def read_volume(path: Path) -> Canonical:
    """The scan of a NIfTI file or a folder with a DICOM series, turned to right-anterior-superior. ``ValueError`` as
    ``read_canonical`` and ``read_one``."""
    if not path.is_dir():
        return read_canonical(path)
    scan, _ = read_one(path)
    affine, (voxels,) = turn(scan.affine, [scan.voxels], "RAS")
    return Canonical(np.asarray(voxels, dtype=np.float32), spacing(affine), affine, scan.oriented)


def read_mask(path: Path, shape: tuple[int, ...], affine: Any, organs: OrganTable) -> Volume:
    """The organ values 0 to L of a mask, float32 (I, J, K), turned to right-anterior-superior like its image, whose
    ``shape`` and ``affine`` it must have. Values within 0.001 of a whole number are that number. Of masks in files of
    their own that overlap, the organ that comes first in ``organs`` has the voxel. ``ValueError`` naming the file: as
    ``read_canonical``, another shape or position than the image's, or a value that is no organ's."""
    if path.is_dir():
        return read_parts(path, shape, affine, organs)
    labels = fitting(path, shape, affine)
    nearest = np.round(labels)
    known = (0, *organs.values, *organs.others)
    if np.abs(labels - nearest).max() > NEAR or not np.isin(nearest, known).all():
        count = f"0 to {len(organs.names)}" if known == tuple(range(len(known))) else f"0 and {known[1:]}"
        raise ValueError(f"{path}: holds a value outside {count} ({', '.join(organs.names)})")
    if organs.values == tuple(range(1, len(organs.values) + 1)) and not organs.others:
        return nearest
    table = np.zeros(max(known) + 1, np.float32)
    table[list(organs.values)] = np.arange(1, len(organs.values) + 1)
    return np.asarray(table[nearest.astype(np.int64)], dtype=np.float32)


def fitting(path: Path, shape: tuple[int, ...], affine: Any) -> Volume:
    """The voxels of a mask file turned to right-anterior-superior. ``ValueError`` as ``read_mask``."""
    mask = read_canonical(path)
    if mask.voxels.shape != shape or not np.allclose(mask.affine, affine, atol=1e-2):
        raise ValueError(f"{path}: shape {mask.voxels.shape} or position differs from its image {shape}")
    return mask.voxels


def read_parts(folder: Path, shape: tuple[int, ...], affine: Any, organs: OrganTable) -> Volume:
    """``read_mask`` of a folder with a file of 0 and 1 for each organ; an organ without a file is not there."""
    labels: Volume = np.zeros(shape, np.float32)
    for number, organ in reversed(list(enumerate(organs.names, start=1))):
        files = [folder / f"{organ}{suffix}" for suffix in SUFFIXES if (folder / f"{organ}{suffix}").is_file()]
        for file in files[:1]:
            part = fitting(file, shape, affine)
            if np.minimum(np.abs(part), np.abs(part - 1)).max() > NEAR:
                raise ValueError(f"{file}: holds values other than 0 and 1; allowed: the mask of one organ")
            labels[part > 0.5] = number
    return labels


def file_name(folder: Path, path: Path) -> str:
    """How a scan is called in records: its path below the set's folder."""
    return "." if path == folder else path.relative_to(folder).as_posix()


def stored_scan(folder: Path, path: Path) -> Stored:
    """The scan as it is kept in ``folder``: a file, or a folder of files. ``ValueError`` as ``in_file``."""
    name = file_name(folder, path)
    if not path.is_dir():
        return in_file(folder, name)
    files = sorted(entry for entry in path.iterdir() if entry.is_file())
    return Stored(lambda: " ".join(hash_of(file) for file in files), name, sum(file.stat().st_size for file in files))
