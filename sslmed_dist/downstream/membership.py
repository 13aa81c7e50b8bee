"""Whether an encoder betrays which images it was trained on.

The attack needs the encoder alone: an image that was trained on has views that the encoder maps closer to each other
than those of an image that it never saw (Liu et al. 2021, "EncoderMI: membership inference against pre-trained encoders
in contrastive learning", the attack by a threshold). The area under the curve of that similarity is 0.5 where nothing
can be told.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from sslmed_dist import randomness
from sslmed_dist.data.dataset import Dataset
from sslmed_dist.downstream import metrics
from sslmed_dist.downstream.features import extract
from sslmed_dist.downstream.predictions import Measure, Predictions
from sslmed_dist.views.one_view import OneView

TITLE = "membership"
FEWEST_VIEWS = 2


def similarity(
    encoder: nn.Module,
    dataset: Dataset,
    positions: Tensor,
    *,
    views: nn.Module,
    device: torch.device | str,
    seed: int,
    count: int,
) -> Tensor:
    """The mean cosine over all pairs of ``count`` random training views of each sample at ``positions``, float64 (N,).

    The views are drawn by a key of the attack's own, so they are none of those that training saw. With unit features
    z_1 ... z_V the mean over pairs is (|sum z|^2 - V) / (V (V - 1)): no pair is written out. ``ValueError`` for fewer
    than two views."""
    if count < FEWEST_VIEWS:
        raise ValueError(f"membership: expected at least {FEWEST_VIEWS} views, got {count}")
    total: Tensor | None = None
    for number in range(count):
        own = randomness.key(seed, "membership", number)
        x = extract(encoder, dataset, positions, views=OneView(views, 0), device=device, seed=own).x
        unit = functional.normalize(x.double(), dim=1)
        total = unit if total is None else total + unit
    assert total is not None
    return (total.square().sum(dim=1) - count) / (count * (count - 1))


def membership(members: tuple[Tensor, Tensor, Tensor], others: tuple[Tensor, Tensor, Tensor]) -> Predictions:
    """The attack's predictions. ``members`` and ``others`` are (similarity (N,), patients int64 (N,), ids int64 (N,))
    of samples that were trained on, and that were not."""
    scores, groups, index = (torch.cat([a, b]) for a, b in zip(members, others, strict=True))
    labels = torch.cat([torch.ones(len(members[0])), torch.zeros(len(others[0]))]).long()
    classes = ("held out", "member")
    return Predictions(scores[:, None], labels, groups, index, "single", classes, measures=measures, by_sample=True)


def measures(of: Predictions) -> Iterator[Measure]:
    """The area under the curve of the similarity, members against the others."""
    members = int(of.labels.sum())
    note = f"{members} of these were trained on, {len(of.labels) - members} were not"
    yield Measure("auc", area, of.labels, "undefined: no members, or nothing but members", note=note)


def area(scores: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
    """Scores (N, 1), labels int64 (N,), 1 for a member -> (R,)."""
    return metrics.auc(scores[:, 0], labels == 1, weights=weights)
