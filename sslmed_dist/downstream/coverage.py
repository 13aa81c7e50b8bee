"""Classes that a figure cannot do justice to: those that lack samples on one side of the split."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sslmed_dist.printable import plural, printable

# How every remark begins, by the task.
BEGINNINGS = {"single": "classes ", "multi": "labels "}
SHOWN = 5  # names that are written out


def coverage(
    task: str, classes: Sequence[str], train: Tensor, test: Tensor, val: Tensor | None = None
) -> tuple[str, ...]:
    """Remarks that belong beside every score of these labels, each in a few words; none where every class has samples.

    ``train`` and ``test`` are int64 (N,), for the task ``multi`` float (N, L), and so is ``val`` where a
    hyper-parameter is chosen on it. A class that is only in test is always scored as wrong; one that is only in train
    is not scored; one without any sample is an output that means nothing; a single sample decides all alone. Labels of
    ``multi`` are looked at in train, since an AUC says by itself that test has only one of the two values.
    """
    beginning, in_train = BEGINNINGS[task], counts(train, len(classes))
    if task == "multi":
        groups = {
            "never positive in train, so that their AUC says nothing": in_train == 0,
            "always positive in train, so that their AUC says nothing": ((train == 0).sum(0).cpu() == 0)
            & (in_train > 1),
            "with one positive training sample": in_train == 1,
        }
        return tuple(f"{beginning}{what}: {listed(classes, which)}" for what, which in groups.items() if which.any())
    in_test = counts(test, len(classes))
    only_in_test = (in_train == 0) & (in_test > 0)
    groups = {
        "only in test, always scored as wrong": only_in_test,
        "only in train, not scored": (in_test == 0) & (in_train > 0),
        "without samples in train and in test": (in_test == 0) & (in_train == 0),
        "with one training sample": in_train == 1,
        "with one test sample": in_test == 1,
    }
    if val is not None:
        missing = (counts(val, len(classes)) == 0) & (in_train > 0) & (in_test > 0)
        groups["missing in val, on which the choice is made"] = missing
    remarks = {what: listed(classes, which) for what, which in groups.items() if which.any()}
    if only_in_test.any():
        share = f" ({int(in_test[only_in_test].sum())} of {plural(len(test), 'test sample')})"
        remarks["only in test, always scored as wrong"] += share
    return tuple(f"{beginning}{what}: {names}" for what, names in remarks.items())


def counts(labels: Tensor, classes: int) -> Tensor:
    """Samples of each class, or positive ones of each label: int64 (C,) on the CPU."""
    if labels.ndim == 2:
        return (labels > 0).sum(dim=0).cpu()
    return torch.bincount(labels.cpu(), minlength=classes)


def listed(classes: Sequence[str], which: Tensor) -> str:
    """The names of the classes that ``which``, bool (C,), picks. Of many the first, and how many there are. No
    semicolons: they part one note from the next."""
    names = [printable(name).replace(";", ",") for name, picked in zip(classes, which.tolist(), strict=True) if picked]
    if len(names) <= SHOWN + 1:
        return ", ".join(names)
    return f"{', '.join(names[:SHOWN])} and {len(names) - SHOWN} more"


def remarks_in(note: str) -> list[str]:
    """The remarks of ``coverage`` in a row's note, which is a list of notes joined by semicolons."""
    return [part for part in note.split("; ") if part.startswith(tuple(BEGINNINGS.values())) or AT_SITES in part]


# Between "at 2 of 3 sites" and the remark, where predictions of several sites are pooled.
AT_SITES = " sites: "


def pooled_coverage(parts: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The remarks of several sites; one that does not hold at all sites says at how many."""
    distinct = dict.fromkeys(remark for part in parts for remark in part)
    times = {remark: sum(remark in part for part in parts) for remark in distinct}
    return tuple(
        remark if count == len(parts) else f"at {count} of {len(parts)}{AT_SITES}{remark}"
        for remark, count in times.items()
    )
