"""The scans that episodes are cut from, and a folder of NIfTI exams as their source. The other source is a packed file
(``exam_archive``)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sslmed_dist.data.exams.abdominal import require_slices
from sslmed_dist.data.exams.exam_layouts import find_layout
from sslmed_dist.data.exams.exam_masks import OrganTable, file_name, organ_table, pairs_of, read_mask, read_volume
from sslmed_dist.data.exams.exam_set import read_sites
from sslmed_dist.data.exams.superpixels import Maps, Recipe, Slices, superpixel_maps
from sslmed_dist.data.scans.nifti import axial_slices
from sslmed_dist.data.scans.padding import fill_padding
from sslmed_dist.user_cache import user_cache

CACHE = "superpixels"  # folder below the user's cache: the data may be mounted read-only
Organs = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class UprightExam:
    """One volume with its raw intensities, cut into axial slices that lie upright (see ``axial_slices``)."""

    number: int
    file: str
    where: str  # names the volume in messages
    slices: Slices  # (S, H, W) float32, as stored
    organs: Organs | None  # (S, H, W) uint8; None when masks are not read
    spacing: tuple[float, float, float]  # mm between rows, columns, slices
    oriented: bool  # whether the file says how the patient lay
    padded: bool = False  # whether padding was replaced

    def moments(self) -> "tuple[np.float64, np.float64]":
        """(mean, standard deviation) of all voxels. ``ValueError`` for a constant volume."""
        mean, deviation = self.slices.mean(dtype=np.float64), self.slices.std(dtype=np.float64)
        if not deviation > 0:
            raise ValueError(f"{self.where}: the volume is constant ({float(mean):g})")
        return mean, deviation


class ExamFolder:
    """Exams in one folder, in one of the layouts of ``exam_layouts``; ``numbers`` ascend."""

    def __init__(self, folder: Path, labelled: bool, why: str) -> None:
        """``labelled``: masks are needed, and ``why`` is what needs them (for the message). ``ValueError`` when there
        are none, or not one for each image."""
        self.place, self.name = folder, folder.name
        self.files: dict[int, tuple[Path, Path | None]]
        self.layout = find_layout(folder)
        if labelled:
            self.files = pairs_of(self.layout)
        else:
            self.files = {exam_number: (path, None) for exam_number, path in self.layout.images.items()}
        if labelled and any(mask is None for _, mask in self.files.values()):
            without = "; data.exclude=[] 'evaluate.protocols=[]' train without masks, and measure nothing"
            raise ValueError(f"{why}: needs organ masks label_... in {folder}, and there are none{without}")
        self.numbers = list(self.files)

    def table(self, organs: Sequence[str]) -> OrganTable:
        """The organs of a recipe in this set. ``ValueError`` as ``organ_table``."""
        return organ_table(self.layout, organs, self.place)

    def read(self, number: int, organs: OrganTable) -> UprightExam:
        """One exam. ``ValueError`` as ``read_volume`` and ``read_mask``."""
        return read_upright_exam(number, *self.files[number], self.place, organs)

    def superpixels(self, scans: Sequence[UprightExam], recipe: Recipe, cache: str | None, workers: int) -> list[Maps]:
        """The superpixels of every scan, uint16 (S, H, W), from ``cache`` (None: the user's cache folder; "": none) or
        computed. ``ValueError`` as ``superpixel_maps``."""
        cache_folder = user_cache(CACHE) if cache is None else Path(cache) if cache else None
        names = [scan.where for scan in scans]
        return superpixel_maps(
            [scan.slices for scan in scans], recipe, names=names, cache=cache_folder, workers=workers
        )

    def sites(self, numbers: Sequence[int]) -> Tensor | None:
        """The site of each exam, as ``read_sites``."""
        return read_sites(self.place / "sites.csv", numbers)


def read_upright_exam(number: int, image: Path, mask: Path | None, folder: Path, organs: OrganTable) -> UprightExam:
    """Read one exam of the set in ``folder``. Raises as ``read_volume`` and ``read_mask``."""
    volume = read_volume(image)
    voxels = volume.voxels
    padded = bool(fill_padding(voxels))
    require_slices(voxels.shape, str(image))
    organ_values = (
        None if mask is None else axial_slices(read_mask(mask, voxels.shape, volume.affine, organs)).astype(np.uint8)
    )
    return UprightExam(
        number=number,
        file=file_name(folder, image),
        where=str(image),
        slices=axial_slices(voxels),
        organs=organ_values,
        spacing=(volume.spacing[1], volume.spacing[0], volume.spacing[2]),  # rows run along J, columns along I
        oriented=volume.oriented,
        padded=padded,
    )
