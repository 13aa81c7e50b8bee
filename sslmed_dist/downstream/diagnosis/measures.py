"""Measures of a diagnosis label by label, over the examinations whose label is known.

Scores are probabilities (N, L), NaN where an examination could not be diagnosed; labels (N, L) are 1, 0, or -1 where
missing. Both are left out of a measure. A *statistic* is what ``downstream.metrics`` calls so.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sslmed_dist import randomness
from sslmed_dist.downstream import metrics
from sslmed_dist.downstream.metrics import Interval, Statistic
from sslmed_dist.downstream.predictions import Measure, Predictions

THRESHOLD = 0.5
BINS = 10  # of the reliability curve
RESAMPLES, RESAMPLE_SIZE = 100, 1000  # of the published intervals


def accuracy(scores: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
    """Share of right answers at the threshold 0.5; scores (N,), labels (N,) of 0 and 1 -> (R,)."""
    return metrics.weighted_mean(((scores > THRESHOLD) == (labels > 0.5)).double(), weights)


def sensitivity(scores: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
    """Share of the positives that are found at the threshold 0.5 -> (R,), NaN without positives."""
    return metrics.weighted_mean((scores > THRESHOLD).double(), weights * (labels > 0.5).double())


def specificity(scores: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
    """Share of the negatives that are left alone at the threshold 0.5 -> (R,), NaN without negatives."""
    return metrics.weighted_mean((scores <= THRESHOLD).double(), weights * (labels < 0.5).double())


def area(scores: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
    """``metrics.auc`` of one label."""
    return metrics.auc(scores, labels > 0.5, weights=weights)


def brier(scores: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
    """Brier score: the mean squared difference of probability and truth, 0 is best -> (R,)."""
    return metrics.weighted_mean((scores - labels.double()).square(), weights)


def calibration_error(scores: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
    """Expected calibration error (Guo et al. 2017, ECE): over ten bins of equal width, the weighted mean of |mean
    probability - share of positives| -> (R,). A bin with few examinations makes it larger than it is."""
    one_hot = torch.nn.functional.one_hot(bin_of(scores), BINS).double()  # (N, bins)
    gaps = (weights * (scores - labels.double())) @ one_hot  # (R, bins): sums of probability less truth
    return gaps.abs().sum(dim=1) / weights.sum(dim=1)


def bin_of(scores: Tensor) -> Tensor:
    """The bin of each probability, int64: [0, 0.1), ..., [0.9, 1]."""
    return (scores * BINS).floor().clamp(0, BINS - 1).to(torch.int64)


STATISTICS: dict[str, Statistic] = {
    "auc": area,
    "accuracy": accuracy,
    "sensitivity": sensitivity,
    "specificity": specificity,
    "brier": brier,
    "calibration_error": calibration_error,
}
AVERAGED = ("auc", "accuracy", "brier")  # also as the mean over labels
NO_INTERVAL = {"calibration_error": "no interval: re-sampling adds to a calibration error"}


def of_label(statistic: Statistic, column: int) -> Statistic:
    """The statistic of one label, over the examinations that have it and were diagnosed; scores, labels (N, L)."""

    def value(scores: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
        known = (labels[:, column] >= 0) & ~scores[:, column].isnan()
        if not known.any():
            return torch.full((len(weights),), torch.nan, dtype=torch.float64)
        return statistic(scores[known, column], labels[known, column], weights=weights[:, known])

    return value


def over_labels(statistic: Statistic, columns: Sequence[int]) -> Statistic:
    """The mean of a statistic over the labels ``columns``; NaN where one of them has no value."""

    def value(scores: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
        return torch.stack([of_label(statistic, k)(scores, labels, weights=weights) for k in columns]).mean(dim=0)

    return value


def measures(predictions: Predictions) -> Iterator[Measure]:
    """All measures: the means over the labels that have both values, then those of each label (``auc/LABEL``)."""
    labels, scores = predictions.labels, predictions.scores
    both = [k for k in range(labels.shape[1]) if len(known_values(scores[:, k], labels[:, k])) == 2]
    absent = [name for k, name in enumerate(predictions.classes) if k not in both]
    note = f"mean over labels without {', '.join(absent)}, which lacks a value here" if absent else ""
    for name in AVERAGED:
        columns = both if name == "auc" else range(labels.shape[1])
        statistic = over_labels(STATISTICS[name], list(columns)) if columns else of_label(area, 0)
        undefined = "undefined: no label has both values"
        yield Measure(name, statistic, labels, undefined, note=note if name == "auc" and both else "")
    for k, label in enumerate(predictions.classes):
        values = known_values(scores[:, k], labels[:, k])
        counted = ", ".join(f"{int(values[v])} with {label} = {v}" for v in values) or f"none with {label} known"
        for name, statistic in STATISTICS.items():
            undefined = f"undefined: {counted}"
            no_interval = NO_INTERVAL.get(name, "")
            yield Measure(f"{name}/{label}", of_label(statistic, k), labels, undefined, no_interval, note=counted)


def known_values(scores: Tensor, labels: Tensor) -> dict[int, int]:
    """How many diagnosed examinations have each value of a label that occurs."""
    known = labels[(labels >= 0) & ~scores.isnan()]
    return {value: count for value in (1, 0) if (count := int((known == value).sum()))}


def as_predictions(
    probabilities: Tensor, labels: Tensor, groups: Tensor, index: Tensor, classes: tuple[str, ...], note: str = ""
) -> Predictions:
    """The probabilities (N, L) as ``Predictions`` that are measured as a diagnosis. ``labels`` (N, L) are 1, 0 and NaN
    where missing, as a set of examinations has them."""
    return Predictions(
        scores=probabilities.double().cpu(),
        labels=labels.float().nan_to_num(nan=-1.0),
        groups=groups,
        index=index,
        task="multi",
        classes=classes,
        note=note,
        measures=measures,
        by_sample=True,
    )


@dataclass(frozen=True)
class Published:
    """A value with its interval as the thesis's code makes them."""

    value: float
    interval: Interval


def published_way(statistic: Statistic, scores: Tensor, labels: Tensor, *, seed: int) -> Published | None:
    """The mean and the 5 and 95 percentiles over 100 re-samplings of 1,000 examinations each, drawn with replacement
    from positives and negatives in their proportion; scores, labels (N,) of known labels. None without both values.

    It says how certain the mean would be had there been 1,000 examinations. From 120 of them it is 2.9 times too
    narrow.
    """
    positive = labels > 0.5
    if len(torch.unique(positive)) < 2:
        return None
    weights = torch.zeros(RESAMPLES, len(labels), dtype=torch.float64)
    share = round(RESAMPLE_SIZE * float(positive.double().mean()))
    for chosen, size in ((positive, share), (~positive, RESAMPLE_SIZE - share)):
        places = torch.nonzero(chosen)[:, 0]
        rows, columns = torch.arange(RESAMPLES)[:, None], torch.arange(size)[None]
        drawn = places[randomness.integers(len(places), seed, "published", rows, columns, int(chosen is positive))]
        weights.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    values = statistic(scores, labels, weights=weights)
    ends = torch.quantile(values, torch.tensor([0.05, 0.95], dtype=torch.float64))
    return Published(float(values.mean()), Interval(float(ends[0]), float(ends[1]), "published's way"))


def structural(scores: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """DeLong's components of an AUC: for each positive the share of negatives below it, for each negative the share of
    positives above it (ties count one half), float64 (P,) and (Q,)."""
    ups, downs = scores[positive], scores[~positive]
    wins = (ups[:, None] > downs).double() + 0.5 * (ups[:, None] == downs).double()  # (P, Q)
    return wins.mean(dim=1), wins.mean(dim=0)


def delong(first: Tensor, second: Tensor, positive: Tensor) -> tuple[float, float] | None:
    """AUC of ``first`` less that of ``second``, paired on the same examinations, and its standard error (DeLong et al.
    1988); scores (N,), ``positive`` bool (N,). None with fewer than two positives or negatives. Every examination
    counts as a patient of its own."""
    if min(int(positive.sum()), int((~positive).sum())) < 2:
        return None
    ups, downs = (a - b for a, b in zip(structural(first, positive), structural(second, positive), strict=True))
    return float(ups.mean()), float((ups.var() / len(ups) + downs.var() / len(downs)).sqrt())


def delong_interval(difference: float, error: float) -> Interval:
    """The 5 and 95 percentiles of a difference by ``delong``, normal."""
    reach = 1.6448536269514722 * error
    return Interval(difference - reach, difference + reach, "DeLong")


def known_rows(predictions: Predictions, column: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, labels and groups (n,) of the examinations with a known label that were diagnosed."""
    known = (predictions.labels[:, column] >= 0) & ~predictions.scores[:, column].isnan()
    return predictions.scores[known, column], predictions.labels[known, column], predictions.groups[known]
