"""Index subsets: long tail, label fraction, cross-validation fold, chosen classes.

Every function is pure: (labels, groups, ids, *, seed, ...) -> sorted int64 positions. The choice of a sample depends
on its id (or its group's number) and the seed, so subsets of different sizes are nested.
"""

from collections.abc import Callable
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


SUBSETS: dict[str, Callable[..., Tensor]] = {
    "long_tail": long_tail,
    "label_fraction": label_fraction,
    "fold": fold,
    "classes": classes,
}
