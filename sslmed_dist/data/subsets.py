"""Index subsets: long tail, label fraction, cross-validation fold, chosen classes, a published list of files.

Every function is pure: (labels, groups, ids, *, seed, ...) -> sorted int64 positions (n,), with labels (N,) or (N, L),
groups and ids int64 (N,). Samples are taken in an order that is fixed by their ids (or their groups' numbers) and the
seed, so a smaller subset is part of a larger one. ``listed`` reads a file and also takes the samples' file names.

Shapes below: N samples, L label columns, G groups.
"""

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

import torch
from torch import Tensor

from sslmed_dist import randomness
from sslmed_dist.data.listed_paths import composed, plain_path
from sslmed_dist.data.partition import group_table, strata, stratified_order
from sslmed_dist.data.text_files import read_lines


def long_tail(
    labels: Tensor,
    groups: Tensor,
    ids: Tensor,
    *,
    seed: int,
    imbalance: float = 100.0,
    profile: Literal["exponential"] = "exponential",
) -> Tensor:
    """Long tail (Cui et al. 2019): class c of C keeps floor(n imbalance^(-c / (C - 1))) samples, at least one.

    n is the size of the smallest class in the data, so class 0 can keep n. Class 0 has ``imbalance`` times the samples
    of the last class.

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
    head_size = int(counts.min())
    chosen = []
    # the first ``size`` samples of each class in the keyed order
    for class_index, value in enumerate(values):
        # the small term keeps 50 at 50 where the power comes out as 49.999...
        size = max(1, int(head_size * imbalance ** (-class_index / (len(values) - 1)) + 1e-9))
        chosen.append(order[labels[order] == value][:size])
    return torch.sort(torch.cat(chosen)).values


def label_fraction(
    labels: Tensor, groups: Tensor, ids: Tensor, *, seed: int, fraction: float, stratified: bool = True
) -> Tensor:
    """A share of the labelled data. Groups (exams, patients) are taken as a whole, never in part.

    ``stratified`` takes the share of each label's groups, at least one of each; otherwise the share of all groups. A
    smaller fraction under the same seed is part of a larger one.

    ``ValueError`` unless 0 < fraction <= 1.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"subset label_fraction: fraction must be above 0 and at most 1, got {fraction}")
    group_numbers, group_row, group_labels = group_table(labels, groups)
    # one stratum per label, or a single one for all
    codes = strata(group_labels) if stratified else torch.zeros_like(group_numbers)
    order = randomness.order(group_numbers, seed, "label_fraction")
    is_chosen = torch.zeros(len(group_numbers), dtype=torch.bool)  # (G,)
    for code in torch.unique(codes):
        members = order[codes[order] == code]
        is_chosen[members[: max(1, round(fraction * len(members)))]] = True
    return torch.nonzero(is_chosen[group_row])[:, 0]


def fold(
    labels: Tensor,
    groups: Tensor,
    ids: Tensor,
    *,
    seed: int,
    folds: int,
    index: int,
    part: Literal["train", "val"] = "train",
    by: Literal["patient", "scanner"] = "patient",
    scanners: Tensor | None = None,
) -> Tensor:
    """Cross-validation: the samples of fold ``index`` (``part`` "val") or all others ("train").

    by "patient": groups are dealt in turn within each label and never split. Folds therefore have equal numbers of
    groups, and of each label's groups, to within one. by "scanner": all samples of one of the ``scanners`` (int64 (N,))
    are in one fold, so that every fold is of scanners that the others do not have. A patient is never split either:
    scanners that share one stay together. The largest are dealt first, each to the smallest fold so far.

    ``ValueError`` unless 2 <= folds <= number of groups (of scanners) and 0 <= index < folds, and for data that does
    not say its scanners.
    """
    if by == "scanner":
        if scanners is None:
            raise ValueError("subset fold: this data does not say which scanner a sample is from")
        groups = together(scanners, groups)
    group_numbers, group_row, group_labels = group_table(labels, groups)
    if not 2 <= folds <= len(group_numbers):
        raise ValueError(f"subset fold: folds is {folds}; allowed: 2 to {len(group_numbers)} (the number of groups)")
    if not 0 <= index < folds:
        raise ValueError(f"subset fold: index is {index}; allowed: 0 to {folds - 1}")
    fold_of_group = torch.empty_like(group_numbers)  # (G,)
    if by == "scanner":
        fold_of_group = largest_first(torch.bincount(group_row), group_numbers, folds, seed)
    else:
        # deal the groups, sorted by label, to folds 0, 1, ..., 0, 1, ... and hand the fold on to their samples
        order = stratified_order(group_labels, group_numbers, seed, "fold")
        fold_of_group[order] = torch.arange(len(group_numbers)) % folds
    in_fold = fold_of_group[group_row] == index  # (N,) boolean
    return torch.nonzero(in_fold if part == "val" else ~in_fold)[:, 0]


def together(scanners: Tensor, groups: Tensor) -> Tensor:
    """Int64 (N,): the smallest scanner of those that are linked to a sample's, by patients who were on both."""
    linked = scanners.clone()
    while True:
        # every patient, then every scanner, takes the smallest number among its samples, until nothing changes
        before = linked
        for numbers in (groups, scanners):
            rows = torch.unique(numbers, return_inverse=True)[1]
            smallest = linked.new_full((int(rows.max()) + 1,), torch.iinfo(torch.int64).max)
            linked = smallest.scatter_reduce(0, rows, linked, "amin")[rows]
        if torch.equal(linked, before):
            return linked


def largest_first(sizes: Tensor, numbers: Tensor, folds: int, seed: int) -> Tensor:
    """The fold of each group (int64 (G,)) of ``sizes`` samples: the largest first, each to the smallest fold so far.
    Of groups of one size a keyed order decides."""
    shuffled = randomness.order(numbers, seed, "fold", "scanner")
    order = shuffled[torch.argsort(sizes[shuffled], descending=True, stable=True)]
    filled, fold_of_group = [0] * folds, torch.empty_like(numbers)
    for group in order.tolist():
        smallest = filled.index(min(filled))
        fold_of_group[group] = smallest
        filled[smallest] += int(sizes[group])
    return fold_of_group


def classes(labels: Tensor, groups: Tensor, ids: Tensor, *, seed: int, keep: tuple[int, ...]) -> Tensor:
    """The samples whose label is one of ``keep``; labels keep their numbers, and ``seed`` plays no part.

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
    """The samples that a text ``file`` lists; ``names`` are the samples' paths below the root.

    A line is the path of an image, then perhaps a class number, which is ignored: the data has its own labels.
    ImageNet-LT is published in this way (Liu et al. 2019, "Large-scale long-tailed recognition in an open world":
    115,846 images of 1000 classes, 1280 to 5 each). Its class sizes follow a Pareto distribution of power 6, but which
    images were drawn is known from the list alone.

    A listed path means the sample whose path equals it, else the one whose path is the same but for folders in front:
    ``train/n01440764/n01440764_190.JPEG`` finds ``n01440764/n01440764_190.JPEG``. ``seed`` plays no part.
    ``ValueError`` for data without file names, and for a line that means no sample, two, or the same one again, or that
    is no path below a folder (``plain_path``).
    """
    if len(names) != len(ids):
        raise ValueError("subset listed: this data has no file names; it needs images that lie in files of their own")
    try:
        lines = read_lines(Path(file).expanduser())
    except ValueError as error:
        raise ValueError(f"subset listed: {error}") from None
    listed_paths = [(number, path_of(line, f"subset listed: {file}:{number}")) for number, line in lines]
    # file name -> positions of those that are listed, so that a line is compared with few paths instead of all
    by_file_name: dict[str, list[int]] = {PurePosixPath(path).name: [] for _, path in listed_paths}
    for position, name in enumerate(names):
        file_name = composed(name.rpartition("/")[2])
        if file_name in by_file_name:
            by_file_name[file_name].append(position)
    chosen: dict[int, int] = {}  # position -> line that lists it
    for line_number, listed_path in listed_paths:
        matches = [
            i
            for i in by_file_name.get(PurePosixPath(listed_path).name, [])
            if same_file(composed(names[i]), listed_path)
        ]
        # the sample of exactly this path is meant, whatever else ends in it
        matches = [i for i in matches if composed(names[i]) == listed_path] or matches
        if len(matches) != 1:
            raise ValueError(
                f"subset listed: {file}:{line_number}: {listed_path!r} means {len(matches)} samples of the data, not 1"
            )
        if matches[0] in chosen:
            raise ValueError(
                f"subset listed: {file}:{line_number}: {listed_path!r} stood already in line {chosen[matches[0]]}"
            )
        chosen[matches[0]] = line_number
    if not chosen:
        raise ValueError(f"subset listed: {file}: lists no image")
    return torch.sort(torch.tensor(list(chosen))).values


def path_of(line: str, where: str) -> str:
    """The path in a line of a list, ``composed``, without the class number behind it. ``ValueError`` as
    ``plain_path``."""
    # a class number stands after the last space; a path may itself have spaces
    leading_words, _, last_word = line.strip().rpartition(" ")
    return composed(plain_path(leading_words.strip() if leading_words and last_word.isdigit() else line.strip(), where))


def same_file(name: str, listed_path: str) -> bool:
    """Whether two paths are equal, or the longer one ends in the shorter one at a folder's boundary."""
    return f"/{name}".endswith(f"/{listed_path}") or f"/{listed_path}".endswith(f"/{name}")


SUBSETS: dict[str, Callable[..., Tensor]] = {
    "long_tail": long_tail,
    "label_fraction": label_fraction,
    "fold": fold,
    "classes": classes,
    "listed": listed,
}
