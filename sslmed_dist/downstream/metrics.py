"""Measures of predictions and their bootstrap intervals.

A *statistic* is called ``statistic(*arrays, weights=weights)``: every array has one row per sample, ``weights`` is
float64 (R, N), how often each sample counts in each of R re-samplings, and the answer is float64 (R,), NaN where the
measure is undefined. The plain value is the one with all weights 1; ``point`` turns NaN into None, so that an undefined
measure is said and never averaged by accident.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sslmed_dist import randomness

Statistic = Callable[..., Tensor]

# Weights of one chunk of re-samplings: 4 M float64 are 32 MB.
CHUNK = 4_000_000


@dataclass(frozen=True)
class Score:
    """One measured number: ``value`` on ``n`` samples of ``groups`` patients with its interval [``low``, ``high``].

    ``value`` is None where the measure is undefined (``note`` says why); ``low`` and ``high`` are None where there is
    no interval (``note`` says why). Accuracies and areas under a curve are fractions in [0, 1]; the measures of
    ``representation`` have their own ranges: uniformities [-8, 0], tolerance [-1, 1].
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
    """A percentile interval; both ends None when there is none, and ``note`` says why or from how many draws."""

    low: float | None
    high: float | None
    note: str = ""


def accuracy(scores: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
    """Fraction of samples whose highest score is the label's; scores (N, C), labels int64 (N,) -> (R,). Ties go to
    the class of the lowest number."""
    return weighted_mean((scores.argmax(dim=1) == labels).double(), weights)


def top(k: int) -> Statistic:
    """The statistic "the label is among the ``k`` highest scores"; scores (N, C), labels int64 (N,) -> (R,).

    A class that ties with the label's score and has a lower number stands before it, as in ``accuracy``.
    """

    def among(scores: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
        own = scores.gather(1, labels[:, None])
        before = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
        ahead = ((scores > own) | ((scores == own) & before)).sum(dim=1)
        return weighted_mean((ahead < k).double(), weights)

    return among


def balanced_accuracy(scores: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
    """Mean over the classes that occur of the fraction of their samples that is recognised (mean recall) -> (R,)."""
    member = torch.nn.functional.one_hot(labels, scores.shape[1]).double()
    correct = (scores.argmax(dim=1) == labels).double()
    sizes = weights @ member
    recalls = (weights @ (member * correct[:, None])) / sizes.clamp_min(1e-300)
    present = (sizes > 0).double()
    return (recalls * present).sum(dim=1) / present.sum(dim=1)


def auc(scores: Tensor, positive: Tensor, *, weights: Tensor) -> Tensor:
    """Area under the ROC curve; scores (N,), ``positive`` bool or {0, 1} (N,) -> (R,). NaN without both classes.

    The Mann-Whitney form: the weighted fraction of (positive, negative) pairs that the scores put in the right order,
    ties counting one half.
    """
    scores, by_score = torch.sort(scores)
    weights = weights[:, by_score]
    positives = weights * positive[by_score].double()
    negatives = weights - positives
    below = torch.nn.functional.pad(torch.cumsum(negatives, dim=1), (1, 0))
    first = torch.searchsorted(scores, scores, right=False)
    last = torch.searchsorted(scores, scores, right=True)
    wins = (positives * (below[:, first] + below[:, last])).sum(dim=1) / 2
    return wins / (positives.sum(dim=1) * negatives.sum(dim=1))


def binary_auc(scores: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
    """AUC of class 1 of two; scores (N, 2), labels int64 (N,) -> (R,)."""
    return auc(scores[:, 1] - scores[:, 0], labels == 1, weights=weights)


def mean_auc(scores: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
    """Mean AUC over labels; scores (N, L), labels {0, 1} (N, L) -> (R,).

    Labels that lack positives or negatives in the whole sample are left out everywhere; a re-sampling in which one of
    the others lacks them is NaN, for a mean over fewer labels would be another measure.
    """
    defined = [column for column in range(labels.shape[1]) if len(torch.unique(labels[:, column])) == 2]
    if not defined:
        return torch.full((weights.shape[0],), torch.nan, dtype=torch.float64, device=weights.device)
    areas = [auc(scores[:, column], labels[:, column], weights=weights) for column in defined]
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

    ``groups`` int64 (N,): whole groups are drawn with replacement, since samples of one patient are not independent;
    with one group per sample this is the plain bootstrap. The draws depend on ``seed`` and the number of groups alone,
    so two predictions of the same samples meet the same re-samplings. Draws in which the statistic is undefined are
    left out and counted in the note; where that leaves fewer than half, or there is one group, there is no interval.
    """
    _, member = torch.unique(groups, return_inverse=True)
    count = int(member.max()) + 1 if len(member) else 0
    if count < 2:
        return Interval(None, None, f"no interval: {count} group")
    values = []
    rows = max(1, CHUNK // len(member))
    for start in range(0, draws, rows):
        draw = torch.arange(start, min(start + rows, draws))
        weights = resample(draw, count, seed)[:, member.cpu()].to(arrays[0].device)
        values.append(statistic(*arrays, weights=weights).cpu())
    drawn = torch.cat(values)
    drawn = drawn[~drawn.isnan()]
    if 2 * len(drawn) < draws:
        return Interval(None, None, f"no interval: undefined in {draws - len(drawn)} of {draws} draws")
    note = "" if len(drawn) == draws else f"interval from {len(drawn)} of {draws} draws; undefined in the others"
    ends = torch.quantile(drawn, torch.tensor([low / 100, high / 100], dtype=torch.float64))
    return Interval(float(ends[0]), float(ends[1]), note)


def resample(draw: Tensor, count: int, seed: int) -> Tensor:
    """How often each of ``count`` groups comes up in each draw; ``draw`` int64 (R,) -> float64 (R, count)."""
    chosen = randomness.integers(count, seed, "bootstrap", draw[:, None], torch.arange(count)[None, :])
    times = torch.zeros((len(draw), count), dtype=torch.float64)
    return times.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=torch.float64))


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
    """``statistic(first) - statistic(second)`` for two predictions of the same samples, with its paired interval:
    both predictions are judged on each re-sampling, so what makes a sample easy or hard for both cancels."""

    arrays = (first, second, labels)
    value = point(gap(statistic), arrays)
    if value is None:
        return None, Interval(None, None, "undefined")
    return value, bootstrap(gap(statistic), arrays, groups, draws=draws, seed=seed, low=low, high=high)


def gap(statistic: Statistic) -> Statistic:
    """The statistic of (first scores, second scores, labels): what ``statistic`` says of the first less the second."""

    def less(first: Tensor, second: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
        return statistic(first, labels, weights=weights) - statistic(second, labels, weights=weights)

    return less
