"""Oversampling: how often a pass over the data visits each sample, so that classes come equally often.

Nothing is copied. A sample that is visited again in a pass has another draw number, so another slice and other views.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sslmed_dist import randomness
from sslmed_dist.data.dataset import unlabelled


def oversample(labels: Tensor, ids: Tensor, *, classes: Sequence[str], seed: int, label: str | None = None) -> Tensor:
    """Visits per pass, int64 (N,), at least 1 each: every class is visited as often as the largest one has samples.

    Of a class with m samples, where the largest has M, each is visited floor(M / m) times, and M mod m of them, drawn
    by the seed, once more. ``labels`` int64 (N,) have one class each; of float (N, L) the column ``label`` names counts
    alone, with the classes 0 and 1 ("minority oversampled to parity", thesis Table 3.11). ``ValueError``: labels that
    are missing, a column that is not named or not there, one class alone.
    """
    if labels.ndim == 2:
        if label is None or label not in classes:
            raise ValueError(f"data.oversample.label: expected one of {', '.join(classes)}, got {label!r}")
        values = labels[:, list(classes).index(label)]
    elif label is not None:
        raise ValueError("data.oversample.label: this data has one class per sample; leave it out")
    else:
        values = labels
    if bool(unlabelled(values).any()):
        raise ValueError("data.oversample: holds unlabelled samples; it needs the label of each")
    numbers, counts = torch.unique(values, return_counts=True)
    if len(numbers) < 2:
        raise ValueError("data.oversample: all samples are of one class; there is nothing to balance")
    visits = torch.ones(len(ids), dtype=torch.int64)
    order, most = randomness.order(ids, seed, "oversample"), int(counts.max())
    for number, count in zip(numbers, counts.tolist(), strict=True):
        members = order[values[order] == number]
        visits[members] = most // count
        visits[members[: most % count]] += 1
    return visits
