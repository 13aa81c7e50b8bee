"""Knee MR exams in the layout of KneeMRI (Stajduhar et al. 2017): pickled volumes and one table of ACL diagnoses."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from sslmed_dist.data.dataset import Split, Stored, select_split
from sslmed_dist.data.exams.exam_dataset import ExamDataset
from sslmed_dist.data.listed_paths import composed
from sslmed_dist.data.pickles import as_array, read_pickle
from sslmed_dist.data.samples import in_file
from sslmed_dist.data.text_files import add_once, read_table, whole_number
from sslmed_dist.printable import excerpt, plural

TABLE, SUFFIX = "metadata.csv", ".pck"
COLUMNS = ("examId", "seriesNo", "aclDiagnosis", "kneeLR", "volumeFilename")
CLASSES = ("healthy", "partially injured", "ruptured")  # aclDiagnosis 0, 1, 2
# Split -> folders, as the thesis has them (section 3.5).
FOLDERS = {"train": ("08", "04", "03", "09", "06", "07"), "val": ("10", "05"), "test": ("01", "02")}
Volume = NDArray[Any]


class KneeMRI(ExamDataset):
    """``vol01`` ... ``vol10`` with pickled volumes (S, H, W) and ``metadata.csv`` in ``root``; one sagittal series an
    exam.

    A sample is a volume; its id is its place in the table sorted by file name, its group the exam number. A slice is
    float32 (1, side, side) in [0, 1]: the volume divided by its maximum, resized (bilinear, antialiased). Pickles are
    read by ``data.pickles``, which makes plain arrays and runs nothing that a file names.
    target "binary": float32 (N, 1), ruptured against the rest; "classes": int64 (N,), healthy 0, partially injured 1,
    ruptured 2. Folders that are not there are left out with a line.
    """

    def __init__(
        self,
        root: str | Path,
        split: Split = "train",
        target: Literal["binary", "classes"] = "binary",
        clip: int | None = None,
        side: int = 256,
    ) -> None:
        """``ValueError`` naming the table's line or the file: a diagnosis that is none, a volume without a row or a row
        without its volume, one that is no (S, H, W) of numbers, or all zero."""
        folder = Path(root)
        if not 8 <= side <= 4096:
            raise ValueError(f"data.side: expected 8 to 4096 pixels, got {side}")
        rows = read_rows(folder / TABLE)
        found = find_volumes(folder)
        names = sorted(rows)
        missing = sorted(set(found) - set(rows))
        if missing:
            raise ValueError(f"{found[missing[0]][1]}: has no row in {TABLE}")
        listed = [name for name in names if name in found]
        if not listed:
            raise ValueError(f"{folder}: no vol01 ... vol10 with {SUFFIX} files of {TABLE} in it")
        part = [found[name][0] for name in listed]
        chosen = [listed[i] for i in select_split(part, split, str(folder)).tolist()]
        self.side, self.files = side, [found[name][1] for name in chosen]
        diagnoses = torch.tensor([int(rows[name]["aclDiagnosis"]) for name in chosen])
        shapes = [read_volume(path).shape for path in self.files]
        absent = len(names) - len(listed)
        super().__init__(
            counts=torch.tensor([shape[0] for shape in shapes]),
            clip=clip,
            name=f"{folder.name} sagittal",
            ids=torch.tensor([names.index(name) for name in chosen]),
            labels=(diagnoses == 2).float()[:, None] if target == "binary" else diagnoses,
            classes=CLASSES[2:] if target == "binary" else CLASSES,
            channels=1,
            bits=16,
            groups=torch.tensor([whole_number(rows[name]["examId"], TABLE, "exam number") for name in chosen]),
            records=[
                {
                    "file": name,
                    "slices": shape[0],
                    "shape": list(shape),
                    "knee_lr": rows[name]["kneeLR"],
                }
                for name, shape in zip(chosen, shapes, strict=True)
            ],
            notices=[f"{plural(absent, 'row')} of the table without their volume, left out"] if absent else (),
        )

    def slices(self, position: int, numbers: Tensor) -> Tensor:
        volume = read_volume(self.files[position])
        chosen = torch.from_numpy(volume[numbers.numpy()].astype(np.float32) / np.float32(volume.max()))[:, None]
        if chosen.shape[2:] == (self.side, self.side):
            return chosen
        size = (self.side, self.side)
        return F.interpolate(chosen, size, mode="bilinear", antialias=True, align_corners=False).clamp(0.0, 1.0)

    def value_range(self) -> tuple[float, float]:
        return (0.0, 1.0)

    def stored(self, position: int) -> Stored:
        path = self.files[position]
        return in_file(path.parent.parent, f"{path.parent.name}/{path.name}")


def read_rows(path: Path) -> Mapping[str, Mapping[str, str]]:
    """The rows of the table by the name of their volume (``composed``). ``ValueError`` naming the line that cannot be
    read."""
    rows: dict[str, Mapping[str, str]] = {}
    for line, cells in read_table(path, COLUMNS):
        where = f"{path}: line {line}"
        if cells["aclDiagnosis"] not in ("0", "1", "2"):
            raise ValueError(f"{where}: aclDiagnosis {excerpt(cells['aclDiagnosis'])!r}; allowed: 0, 1, 2")
        whole_number(cells["examId"], where, "exam number")
        add_once(rows, composed(cells["volumeFilename"]), cells, where)
    return rows


def find_volumes(folder: Path) -> dict[str, tuple[str, Path]]:
    """(split, path) of every volume by its file name (``composed``). ``ValueError`` for a name that stands in two
    folders."""
    found: dict[str, tuple[str, Path]] = {}
    for split, numbers in FOLDERS.items():
        for number in numbers:
            for path in sorted((folder / f"vol{number}").glob(f"*{SUFFIX}")):
                add_once(found, composed(path.name), (split, path), str(folder))
    return found


def read_volume(path: Path) -> Volume:
    """The volume (S, H, W) of one file. ``ValueError`` naming a file that is no pickled array of these dimensions, has
    negative or non-finite values, or is all zero."""
    volume = as_array(read_pickle(path), path, "volume")
    if volume.ndim != 3 or min(volume.shape) < 1 or volume.dtype.kind not in "uif":
        raise ValueError(f"{path}: expected numbers (slices, rows, columns), got {volume.dtype} {volume.shape}")
    if not np.isfinite(volume).all() or volume.min() < 0:
        raise ValueError(f"{path}: holds negative numbers, NaN or infinity; intensities are 0 or more")
    if not volume.max() > 0:
        raise ValueError(f"{path}: all of the volume is 0")
    return volume
