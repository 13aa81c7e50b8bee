"""Labels of which the training exams do not show both values: whatever is answered about them was not learnt."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sslmed_dist.printable import as_html, plural
from sslmed_dist.verbs.diagnose.parts import Part, first_of_each
from sslmed_dist.verbs.diagnose.scoring import labels_of


def unlearnt(parts: Sequence[Part]) -> dict[str, str]:
    """Why each such label is one, in the order of the data. ``ValueError`` where no label of any training exam is
    known."""
    classes = tuple(dict.fromkeys(name for part in parts for name in part.train.classes))
    if not classes:
        raise ValueError(f"{parts[0].train.name}: these exams have no labels; a diagnosis is learnt from labels")
    labels = training_labels(parts, classes)
    known = [column[~column.isnan()] for column in labels.unbind(1)]
    if not any(len(values) for values in known):
        many = f"none of {plural(len(labels), 'training exam')} has a value of {', '.join(classes)}"
        raise ValueError(f"{parts[0].train.name}: {many}; a diagnosis is learnt from labels")
    found = {}
    for name, values in zip(classes, known, strict=True):
        if not len(values):
            found[name] = f"no training exam has a value of {name}"
        elif bool((values == values[0]).all()):
            found[name] = f"{name} is {int(values[0])} in all {len(values)} training exams that have a value of it"
    return found


def training_labels(parts: Sequence[Part], classes: tuple[str, ...]) -> Tensor:
    """Labels (M, L) of the exams that any part is trained on, NaN where no part knows them."""
    ids = first_of_each(torch.cat([part.train.ids[part.rest] for part in parts]))[0]
    table = torch.full((len(ids), len(classes)), torch.nan)
    for part in parts:
        rows = torch.searchsorted(ids, part.train.ids[part.rest])
        columns = torch.tensor([classes.index(name) for name in part.train.classes], dtype=torch.int64)
        if len(columns):
            table[rows[:, None], columns] = labels_of(part.train, part.rest, part.train.classes)
    return table


def lines_of(reasons: Mapping[str, str]) -> list[str]:
    """A line for each label, as it is said on the terminal and on pages."""
    return [f"{name}: not learnt ({reason}): its probabilities mean nothing" for name, reason in reasons.items()]


def banners(reasons: Mapping[str, str]) -> str:
    """The lines on a page."""
    return "".join(f"<p class='banner caution'>{as_html(line)}</p>" for line in lines_of(reasons))
