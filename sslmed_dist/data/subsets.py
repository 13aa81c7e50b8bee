"""Index subsets: long tail, label fraction, cross-validation fold, chosen classes, a published list of files.

Every function is pure: (labels, groups, ids, *, seed, ...) -> sorted int64 positions. The choice of a sample depends
on its id (or its group's number) and the seed, so subsets of different sizes are nested. ``listed`` reads its file and
also takes the samples' file names.
"""

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

import torch
from torch import Tensor

from sslmed_dist import randomness
from sslmed_dist.data.partition import group_table, strata, stratified_order


def long_tail(
    labels: Tensor,
    groups: Tensor,
    ids: Tensor,
    *,
    seed: int,
    imbalance: float = 100.0,
    profile: Literal["exponential"] = "exponential",
) -> Tensor:
    """Class c of C keeps floor(n imbalance^(-c / (C - 1))) samples, n being the size of the smallest class (Cui et al.
    2019): class 0 has ``imbalance`` times the samples of the last. At least one sample stays.

    ``ValueError`` for multi-labels, unlabelled samples, a single class or an imbalance below 1.
    """
    if imbalance < 1:
        raise ValueError(f"subset long_tail: imbalance must be at least 1, got {imbalance}")
    if labels.ndim != 1 or bool((labels < 0).any()):
        raise ValueError("subset long_tail: needs one label per sample")
    values, counts = torch.unique(labels, return_counts=True)
    if len(values) < 2:
        raise ValueError("subset long_tail: needs at least two classes")
    order = randomness.order(ids, seed, "long_tail")
    largest = int(counts.min())
    keep = []
    for rank, value in enumerate(values):
        # the small term keeps 50 at 50 where the power comes out as 49.999...
        size = max(1, int(largest * imbalance ** (-rank / (len(values) - 1)) + 1e-9))
        keep.append(order[labels[order] == value][:size])
    return torch.sort(torch.cat(keep)).values


def label_fraction(
    labels: Tensor, groups: Tensor, ids: Tensor, *, seed: int, fraction: float, stratified: bool = True
) -> Tensor:
    """A share of the labelled data, by whole groups (exams, patients): of each label's groups when ``stratified``
    (at least one each), else of all. A smaller fraction under the same seed is part of a larger one.

    ``ValueError`` unless 0 < fraction <= 1.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"subset label_fraction: fraction must be above 0 and at most 1, got {fraction}")
    names, row, table = group_table(labels, groups)
    codes = strata(table) if stratified else torch.zeros_like(names)
    order = randomness.order(names, seed, "label_fraction")
    mark = torch.zeros(len(names), dtype=torch.bool)
    for code in torch.unique(codes):
        members = order[codes[order] == code]
        mark[members[: max(1, round(fraction * len(members)))]] = True
    return torch.nonzero(mark[row])[:, 0]


def fold(
    labels: Tensor,
    groups: Tensor,
    ids: Tensor,
    *,
    seed: int,
    folds: int,
    index: int,
    part: Literal["train", "val"] = "train",
) -> Tensor:
    """Cross-validation: the samples of fold ``index`` ("val") or all others ("train"). Whole groups are dealt in turn
    within each label, so folds have equal numbers of groups, and of each label's groups, to within one.

    ``ValueError`` unless 2 <= folds <= number of groups and 0 <= index < folds.
    """
    names, row, table = group_table(labels, groups)
    if not 2 <= folds <= len(names):
        raise ValueError(f"subset fold: folds is {folds}; allowed: 2 to {len(names)} (the number of groups)")
    if not 0 <= index < folds:
        raise ValueError(f"subset fold: index is {index}; allowed: 0 to {folds - 1}")
    dealt = torch.empty_like(names)
    dealt[stratified_order(table, names, seed, "fold")] = torch.arange(len(names)) % folds
    inside = dealt[row] == index
    return torch.nonzero(inside if part == "val" else ~inside)[:, 0]


def classes(labels: Tensor, groups: Tensor, ids: Tensor, *, seed: int, keep: tuple[int, ...]) -> Tensor:
    """The samples whose label is one of ``keep``; labels keep their numbers (``seed`` plays no part).

    ``ValueError`` for multi-labels, or a class without samples.
    """
    if labels.ndim != 1:
        raise ValueError("subset classes: needs one label per sample")
    present = set(torch.unique(labels).tolist())
    absent = [value for value in keep if value not in present]
    if absent or not keep:
        raise ValueError(f"subset classes: keep {list(keep)} is empty or names a class without samples: {absent}")
    return torch.nonzero(torch.isin(labels, torch.tensor(keep)))[:, 0]


def listed(labels: Tensor, groups: Tensor, ids: Tensor, *, seed: int, names: Sequence[str], file: str) -> Tensor:
    """The samples that a text ``file`` lists: one image a line, its path, then perhaps a class number, which is left
    aside (labels are the data's own). This is how ImageNet-LT is published (Liu et al. 2019, "Large-scale long-tailed
    recognition in an open world": 115,846 images of 1000 classes, 1280 to 5 each; its profile is a Pareto
    distribution of power 6, but no formula gives back its draw). ``names`` are the samples' paths below the root.

    A listed path means the one sample whose path equals it, or where one of the two ends in "/" and the other:
    ``train/n01440764/n01440764_190.JPEG`` finds ``n01440764/n01440764_190.JPEG`` (``seed`` plays no part).
    ``ValueError`` for data without file names, and for a line that means no sample, two, or the same one again.
    """
    if len(names) != len(ids):
        raise ValueError("subset listed: this data has no file names; it needs images that lie in files of their own")
    path = Path(file).expanduser()
    if not path.is_file():
        raise ValueError(f"subset listed: {file}: no such file")
    by_last: dict[str, list[int]] = {}
    for position, name in enumerate(names):
        by_last.setdefault(PurePosixPath(name).name, []).append(position)
    chosen: dict[int, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        before, _, last = line.strip().rpartition(" ")
        wanted = before.strip() if before and last.isdigit() else line.strip()
        if not wanted:
            continue
        found = [i for i in by_last.get(PurePosixPath(wanted).name, []) if same_file(names[i], wanted)]
        if len(found) != 1:
            raise ValueError(
                f"subset listed: {file}:{number}: {wanted!r} means {len(found)} samples of the data, not 1"
            )
        if found[0] in chosen:
            raise ValueError(f"subset listed: {file}:{number}: {wanted!r} stood already in line {chosen[found[0]]}")
        chosen[found[0]] = number
    if not chosen:
        raise ValueError(f"subset listed: {file}: lists no image")
    return torch.sort(torch.tensor(list(chosen))).values


def same_file(name: str, wanted: str) -> bool:
    """Whether two paths are equal, or the longer one ends in the shorter one at a folder's boundary."""
    return f"/{name}".endswith(f"/{wanted}") or f"/{wanted}".endswith(f"/{name}")


SUBSETS: dict[str, Callable[..., Tensor]] = {
    "long_tail": long_tail,
    "label_fraction": label_fraction,
    "fold": fold,
    "classes": classes,
    "listed": listed,
}
