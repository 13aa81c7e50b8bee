"""Measures of predictions and their bootstrap intervals.

A *statistic* is called ``statistic(*arrays, weights=weights)``. Every array has one row per sample. ``weights`` is
float64 (R, N): how often each of the N samples counts in each of R re-samplings. The result is float64 (R,), NaN where
the measure is undefined. The plain value is the one with all weights 1. ``point`` turns NaN into None, so that an
undefined measure is reported as such and never averaged by accident.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sslmed_dist import randomness

Statistic = Callable[..., Tensor]

# The most weights that are in memory at once: 4 M float64 are 32 MB.
CHUNK = 4_000_000


@dataclass(frozen=True)
class Score:
    """One measured number: ``value`` on ``n`` samples of ``groups`` patients with its interval [``low``, ``high``].

    ``value`` is None where the measure is undefined, ``low`` and ``high`` are None where there is no interval; ``note``
    says why. Accuracies and areas under a curve are fractions in [0, 1]. The measures of ``representation`` have their
    own ranges: uniformities [-8, 0], tolerance [-1, 1].
    """

    evaluator: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    groups: int = 0
    note: str = ""


@dataclass(frozen=True)
class Interval:
    """A percentile interval. Both ends are None when there is none. ``note`` says why, or from how many draws it is."""

    low: float | None
    high: float | None
    note: str = ""


def accuracy(scores: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
    """Fraction of samples whose highest score is the label's; scores (N, C), labels int64 (N,) -> (R,). Ties go to
    the class of the lowest number."""
    return weighted_mean((scores.argmax(dim=1) == labels).double(), weights)


def top(k: int) -> Statistic:
    """The statistic "the label is among the ``k`` highest scores"; scores (N, C), labels int64 (N,) -> (R,).

    Of classes with equal scores the one of the lower number ranks higher, as in ``accuracy``.
    """

    def among(scores: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
        label_score = scores.gather(1, labels[:, None])  # (N, 1)
        has_lower_number = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
        # (N,) how many classes rank above the label's
        ahead = ((scores > label_score) | ((scores == label_score) & has_lower_number)).sum(dim=1)
        return weighted_mean((ahead < k).double(), weights)

    return among


def balanced_accuracy(scores: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
    """Mean recall: the fraction of each class's samples that is recognised, averaged over the classes that occur;
    scores (N, C), labels int64 (N,) -> (R,)."""
    one_hot = torch.nn.functional.one_hot(labels, scores.shape[1]).double()  # (N, C)
    correct = (scores.argmax(dim=1) == labels).double()
    sizes = weights @ one_hot  # (R, C) weight of each class in each re-sampling
    recalls = (weights @ (one_hot * correct[:, None])) / sizes.clamp_min(1e-300)
    # a class that a re-sampling left out has recall 0 / 1e-300 and takes no part in the mean
    present = (sizes > 0).double()
    return (recalls * present).sum(dim=1) / present.sum(dim=1)


def auc(scores: Tensor, positive: Tensor, *, weights: Tensor) -> Tensor:
    """Area under the ROC curve; scores (N,), ``positive`` bool or {0, 1} (N,) -> (R,). NaN without both classes.

    The Mann-Whitney form: the weighted fraction of (positive, negative) pairs that the scores put in the right order;
    a tie counts one half.
    """
    scores, by_score = torch.sort(scores)
    weights = weights[:, by_score]  # (R, N)
    positives = weights * positive[by_score].double()
    negatives = weights - positives
    # negatives_below[:, i] is the weight of the negatives among the i lowest scores
    negatives_below = torch.nn.functional.pad(torch.cumsum(negatives, dim=1), (1, 0))
    # samples tie_start ... tie_end - 1 have the same score as this one. Half the sum of the negatives below the tie's
    # start and those below its end counts lower negatives once and tied ones one half
    tie_start = torch.searchsorted(scores, scores, right=False)
    tie_end = torch.searchsorted(scores, scores, right=True)
    wins = (positives * (negatives_below[:, tie_start] + negatives_below[:, tie_end])).sum(dim=1) / 2
    return wins / (positives.sum(dim=1) * negatives.sum(dim=1))


def label_auc(scores: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
    """``auc`` over the samples whose label is known; scores (N,), labels 1, 0, or NaN where missing, (N,) -> (R,)."""
    known = labels == labels
    return auc(scores[known], labels[known], weights=weights[:, known])


def binary_auc(scores: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
    """AUC of class 1 of two, ranked by the difference of the two scores; scores (N, 2), labels int64 (N,) -> (R,)."""
    return auc(scores[:, 1] - scores[:, 0], labels == 1, weights=weights)


def mean_auc(scores: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
    """Mean AUC over labels; scores (N, L), labels {0, 1}, or NaN where missing, (N, L) -> (R,).

    A label that lacks positives or negatives in the sample as it is has no AUC and is left out of every re-sampling.
    A re-sampling in which one of the other labels lacks them is NaN, since a mean over fewer labels would be another
    measure.
    """
    both = (labels == 1).any(0) & (labels == 0).any(0)
    defined = torch.nonzero(both).flatten().tolist()
    if not defined:
        return torch.full((weights.shape[0],), torch.nan, dtype=torch.float64, device=weights.device)
    areas = [label_auc(scores[:, column], labels[:, column], weights=weights) for column in defined]
    return torch.stack(areas).mean(dim=0)


def macro_auc(scores: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
    """Mean over classes of the AUC of one class against the rest; scores (N, C), labels int64 (N,) -> (R,)."""
    return mean_auc(scores, torch.nn.functional.one_hot(labels, scores.shape[1]), weights=weights)


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Mean of ``values`` (N,) under each row of ``weights`` (R, N) -> (R,)."""
    return (weights @ values) / weights.sum(dim=1)


def point(statistic: Statistic, arrays: Sequence[Tensor]) -> float | None:
    """The statistic on the samples as they are; None where it is undefined."""
    weights = torch.ones((1, len(arrays[0])), dtype=torch.float64, device=arrays[0].device)
    value = float(statistic(*arrays, weights=weights)[0])
    return None if value != value else value


def bootstrap(
    statistic: Statistic,
    arrays: Sequence[Tensor],
    groups: Tensor,
    *,
    draws: int = 1000,
    seed: int,
    low: float = 5,
    high: float = 95,
) -> Interval:
    """Percentile bootstrap (Efron and Tibshirani 1993, chapter 13) of ``statistic`` over groups (patients).

    ``groups`` int64 (N,) are drawn with replacement, each with all its samples, since samples of one patient are not
    independent. With one group per sample this is the plain bootstrap. The draws depend on ``seed`` and the number of
    groups alone, so two predictions of the same samples get the same re-samplings. Draws in which the statistic is
    undefined are left out and counted in the note. Where that leaves fewer than half of the draws, or there are fewer
    than two groups, there is no interval. ``low`` and ``high`` are the interval's percentiles.
    """
    _, group_index = torch.unique(groups, return_inverse=True)
    group_count = int(group_index.max()) + 1 if len(group_index) else 0
    if group_count < 2:
        return Interval(None, None, f"no interval: {group_count} group")
    chunks = []
    chunk_size = max(1, CHUNK // len(group_index))
    for start in range(0, draws, chunk_size):
        draw_numbers = torch.arange(start, min(start + chunk_size, draws))
        # a sample counts as often as its group was drawn: (r, groups) -> (r, N)
        weights = resample(draw_numbers, group_count, seed)[:, group_index.cpu()].to(arrays[0].device)
        chunks.append(statistic(*arrays, weights=weights).cpu())
    values = torch.cat(chunks)
    values = values[~values.isnan()]
    if 2 * len(values) < draws:
        return Interval(None, None, f"no interval: undefined in {draws - len(values)} of {draws} draws")
    note = "" if len(values) == draws else f"interval from {len(values)} of {draws} draws; undefined in the others"
    ends = torch.quantile(values, torch.tensor([low / 100, high / 100], dtype=torch.float64))
    return Interval(float(ends[0]), float(ends[1]), note)


def resample(draw: Tensor, count: int, seed: int) -> Tensor:
    """How often each of ``count`` groups comes up in each draw; ``draw`` int64 (R,) -> float64 (R, count)."""
    drawn_groups = randomness.integers(count, seed, "bootstrap", draw[:, None], torch.arange(count)[None, :])
    times = torch.zeros((len(draw), count), dtype=torch.float64)
    return times.scatter_add_(1, drawn_groups, torch.ones_like(drawn_groups, dtype=torch.float64))


def difference(
    statistic: Statistic,
    first: Tensor,
    second: Tensor,
    labels: Tensor,
    groups: Tensor,
    *,
    draws: int = 1000,
    seed: int,
    low: float = 5,
    high: float = 95,
) -> tuple[float | None, Interval]:
    """``statistic(first) - statistic(second)`` for two predictions of the same samples, with its paired interval.

    Both predictions are measured on each re-sampling, so what makes a sample easy or hard for both cancels out. Other
    arguments as for ``bootstrap``.
    """

    arrays = (first, second, labels)
    value = point(gap(statistic), arrays)
    if value is None:
        return None, Interval(None, None, "undefined")
    return value, bootstrap(gap(statistic), arrays, groups, draws=draws, seed=seed, low=low, high=high)


def gap(statistic: Statistic) -> Statistic:
    """A statistic of (first scores, second scores, labels): ``statistic`` of the first less that of the second."""

    def less(first: Tensor, second: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
        return statistic(first, labels, weights=weights) - statistic(second, labels, weights=weights)

    return less
