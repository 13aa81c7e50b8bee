"""What the exam sets share: which slice is drawn, which exams belong to a split, which site an exam is from."""

import csv
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sslmed_dist import randomness


def draw_slices(counts: Tensor, ids: Tensor, *, seed: int, epoch: int, draw: Tensor) -> Tensor:
    """One uniform slice number in [0, counts) per exam (int64 (B,)), keyed by (seed, "slice", epoch, id, draw)."""
    return randomness.integers(counts, seed, "slice", epoch, ids, draw)


def split_exams(numbers: Sequence[int], fractions: tuple[float, float], seed: int, where: str) -> list[str]:
    """The split of each of the N exams. In a random order that is keyed by ``seed``, the first round(test fraction x N)
    are "test", the next round(val fraction x N) "val", the rest "train". ``fractions`` is (val, test).

    ``ValueError`` when they are out of range or leave no exam to train on.
    """
    val, test = (round(fraction * len(numbers)) for fraction in fractions)
    if min(fractions) < 0 or val + test >= len(numbers):
        raise ValueError(
            f"{where}: val_fraction {fractions[0]} and test_fraction {fractions[1]} of {len(numbers)} exams must be "
            "0 or more and leave at least one exam to train on"
        )
    names = ["test"] * test + ["val"] * val + ["train"] * (len(numbers) - val - test)
    # positions in random order; the first ones are test, then val, then train
    order = randomness.order(torch.tensor(numbers), seed, "split").tolist()
    split_of = dict(zip(order, names, strict=True))
    return [split_of[i] for i in range(len(numbers))]


def read_sites(path: Path, numbers: Sequence[int]) -> Tensor | None:
    """Site number of each exam, int64 (N,), from a CSV file of "id,site" rows (a heading is skipped); None without the
    file.

    Sites that are all integers keep their numbers; names are numbered in alphabetical order. ``ValueError`` for an
    exam without a row, or a row that cannot be read.
    """
    if not path.is_file():
        return None
    table: dict[int, str] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for line, row in enumerate(csv.reader(file), start=1):
            if not row or (line == 1 and not row[0].strip().isdigit()):
                continue
            if len(row) != 2 or not row[0].strip().isdigit() or not row[1].strip():
                raise ValueError(f"{path}: line {line} is {','.join(row)!r}; expected exam number,site")
            table[int(row[0])] = row[1].strip()
    missing = [exam_number for exam_number in numbers if exam_number not in table]
    if missing:
        raise ValueError(f"{path}: no site for exam {missing[0]}")
    if all(site.isdigit() for site in table.values()):
        return torch.tensor([int(table[exam_number]) for exam_number in numbers])
    site_names = sorted(set(table.values()))
    return torch.tensor([site_names.index(table[exam_number]) for exam_number in numbers])
