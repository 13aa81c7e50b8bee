"""What the exam sets share: which slice is drawn, which exams belong to a split, which site an exam is from."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sslmed_dist import randomness
from sslmed_dist.data.exams.exam_layouts import DIGITS
from sslmed_dist.data.text_files import add_once, read_rows, whole_number
from sslmed_dist.printable import excerpt


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


def fold_splits(numbers: Sequence[int], fold: int, folds: int, seed: int, where: str) -> list[str]:
    """The split of each of the N exams in cross-validation: in a random order that is keyed by ``seed`` they are dealt
    in turn to ``folds`` folds. Fold ``fold`` is "test", the one after it (after the last the first) "val", the others
    are "train". So every exam is tested in one fold.

    ``ValueError`` unless 3 <= folds <= N and 0 <= fold < folds.
    """
    if not 3 <= folds <= len(numbers):
        raise ValueError(
            f"data.folds: expected 3 (train, val, test) to {len(numbers)} (the exams of {where}), got {folds}"
        )
    if not 0 <= fold < folds:
        raise ValueError(f"data.fold: expected 0 to {folds - 1}, got {fold}")
    order = randomness.order(torch.tensor(numbers), seed, "fold").tolist()
    names = {fold: "test", (fold + 1) % folds: "val"}
    split_of = {exam: names.get(place % folds, "train") for place, exam in enumerate(order)}
    return [split_of[i] for i in range(len(numbers))]


def parts_of(
    numbers: Sequence[int], fractions: tuple[float, float], fold: int | None, folds: int, seed: int, where: str
) -> list[str]:
    """The split of each exam: ``fold_splits``, or without a fold ``split_exams``. ``ValueError`` as these, and for a
    fold beside ``fractions``."""
    if fold is None:
        return split_exams(numbers, fractions, seed, where)
    if any(fractions):
        raise ValueError("data.fold: the fold decides the splits; allowed: no val_fraction and test_fraction beside")
    return fold_splits(numbers, fold, folds, seed, where)


def read_sites(path: Path, numbers: Sequence[int]) -> Tensor | None:
    """Site number of each exam, int64 (N,), from a CSV file of "id,site" rows (a heading is skipped); None without the
    file.

    Sites that are all integers keep their numbers; names are numbered in alphabetical order. ``ValueError`` for an
    exam without a row or with two, or a row that cannot be read.
    """
    if not path.is_file():
        return None
    table: dict[int, str] = {}
    for line, row in read_rows(path):
        where = f"{path}: line {line}"
        if line == 1 and not row[0].isdecimal():
            continue
        if len(row) != 2 or not row[1]:
            raise ValueError(f"{where} is {excerpt(','.join(row))!r}; expected exam number,site")
        add_once(table, whole_number(row[0], where, "exam number", 10**DIGITS), row[1], where)
    missing = [exam_number for exam_number in numbers if exam_number not in table]
    if missing:
        raise ValueError(f"{path}: no site for exam {missing[0]}")
    if all(site.isdecimal() for site in table.values()):
        values = {exam: whole_number(site, f"{path}: exam {exam}", "site number") for exam, site in table.items()}
        return torch.tensor([values[exam_number] for exam_number in numbers])
    site_names = sorted(set(table.values()))
    return torch.tensor([site_names.index(table[exam_number]) for exam_number in numbers])
