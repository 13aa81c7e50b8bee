"""Knee MR exams in the layout of MRNet (Bien et al. 2018): one keyed random slice per fetch."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sslmed_dist.data.dataset import Split, Stored, select_split
from sslmed_dist.data.exams.exam_dataset import ExamDataset
from sslmed_dist.data.exams.exam_set import read_sites
from sslmed_dist.data.npz import map_array
from sslmed_dist.data.samples import in_file
from sslmed_dist.data.text_files import add_once, read_rows, whole_number
from sslmed_dist.printable import excerpt

LABELS = ("abnormal", "acl", "meniscus")
FOLDERS = {"train": "train", "val": "valid"}  # split name -> folder and file prefix on disk
SIDE = 256
Stack = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


class MRNet(ExamDataset):
    """``{train,valid}/{axial,coronal,sagittal}/NNNN.npy`` (uint8, S x side x side) of one ``plane``, and
    ``{train,valid}-{abnormal,acl,meniscus}.csv`` (id,label without heading) in ``root``.

    A sample is an exam; its id and group are NNNN. A slice is uint8 (1, side, side), 256 pixels in MRNet itself; only
    the drawn ones are read from disk, one of an exam, or ``clip`` of them. Labels are float32 (N, 3); without any label
    file int64 -1.
    ``sites.csv`` (id,site) gives the sites, where there is one. split "val" is valid/; the test part of the publication
    was never released.
    """

    def __init__(
        self,
        root: str | Path,
        split: Split = "train",
        plane: Literal["axial", "coronal", "sagittal"] = "sagittal",
        clip: int | None = None,
        side: int = SIDE,
    ) -> None:
        """``ValueError`` names the missing or damaged file, or the exam without a label."""
        folder = Path(root)
        present = [name for name, split_folder in FOLDERS.items() if (folder / split_folder / plane).is_dir()]
        if not present:
            raise ValueError(f"{folder}: no train/{plane} or valid/{plane} in it; this is not the MRNet layout")
        listed = {name: sorted((folder / FOLDERS[name] / plane).glob("*.npy")) for name in present}
        # one entry for each file: its split and its path
        part = [name for name in present for _ in listed[name]]
        files = [path for name in present for path in listed[name]]
        chosen = select_split(part, split, str(folder)).tolist()
        numbers = [exam_number(path) for path in files]
        repeated = sorted(exam_id for exam_id in set(numbers) if numbers.count(exam_id) > 1)
        if repeated:
            raise ValueError(f"{folder}: exam {repeated[0]:04d} is in train and in valid")
        self.files = [files[i] for i in chosen]
        counts = torch.tensor([len(open_stack(path, side)) for path in self.files])
        self.side = side
        exam_numbers = [numbers[i] for i in chosen]
        labels = read_labels(folder, sorted({part[i] for i in chosen}), exam_numbers)
        super().__init__(
            counts=counts,
            clip=clip,
            name=f"{folder.name} {plane}",
            ids=torch.tensor(exam_numbers, dtype=torch.int64),
            labels=torch.full((len(exam_numbers),), -1) if labels is None else labels,
            classes=() if labels is None else LABELS,
            channels=1,
            sites=read_sites(folder / "sites.csv", exam_numbers),
            records=[{"file": path.name, "slices": int(n)} for path, n in zip(self.files, counts, strict=True)],
        )

    def slices(self, position: int, numbers: Tensor) -> Tensor:
        return torch.from_numpy(open_stack(self.files[position], self.side)[numbers.numpy()]).unsqueeze(1)

    def value_range(self) -> tuple[float, float]:
        return (0.0, 255.0)

    def stored(self, position: int) -> Stored:
        return in_file(self.files[position].parent, self.files[position].name)


def exam_number(path: Path) -> int:
    """NNNN of ``NNNN.npy``. ``ValueError`` for another name."""
    if not path.stem.isdecimal():
        raise ValueError(f"{path}: the file name is not an exam number like 0000.npy")
    return whole_number(path.stem, str(path), "exam number")


def open_stack(path: Path, side: int = SIDE) -> Stack:
    """The slices (S, side, side) uint8 of one exam, memory-mapped and not read. ``ValueError`` naming a file that
    cannot be read or holds something else."""
    stack = map_array(path)
    if stack.dtype != np.uint8 or stack.ndim != 3 or stack.shape[0] < 1 or stack.shape[1:] != (side, side):
        other = "" if side != SIDE or stack.ndim != 3 else "; for a phantom of another size set data.side"
        raise ValueError(f"{path}: expected uint8 (slices, {side}, {side}), got {stack.dtype} {stack.shape}{other}")
    return stack


def read_labels(folder: Path, splits: list[str], numbers: list[int]) -> Tensor | None:
    """(N, 3) float32 of the exams ``numbers``, None when there is no label file at all. ``ValueError`` for a missing
    file or exam, and for a value other than 0 and 1."""
    paths = {name: [folder / f"{FOLDERS[split]}-{name}.csv" for split in splits] for name in LABELS}
    if not any(path.is_file() for group in paths.values() for path in group):
        return None
    columns = []
    for name in LABELS:
        table: dict[int, float] = {}
        for path in paths[name]:
            for exam_id, value in read_table(path).items():
                add_once(table, exam_id, value, f"{path}: the exams of all label files of {name}")
        missing = [exam_id for exam_id in numbers if exam_id not in table]
        if missing:
            raise ValueError(f"{paths[name][0]}: no label for exam {missing[0]:04d}")
        columns.append(torch.tensor([table[exam_id] for exam_id in numbers]))
    return torch.stack(columns, 1)


def read_table(path: Path) -> dict[int, float]:
    """Exam number -> 0.0 or 1.0 of one label file. ``ValueError`` naming the file, its line that cannot be read, or an
    exam that stands in it twice."""
    table: dict[int, float] = {}
    for line, row in read_rows(path):
        where = f"{path}: line {line}"
        if len(row) != 2 or row[1] not in ("0", "1"):
            raise ValueError(f"{where} is {excerpt(','.join(row))!r}; expected exam number,0 or 1")
        add_once(table, whole_number(row[0], where, "exam number"), float(row[1]), where)
    return table
