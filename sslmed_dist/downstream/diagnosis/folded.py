"""Measures of a cross-validation, whose models answer one fold of the examinations each."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sslmed_dist.downstream import metrics
from sslmed_dist.downstream.diagnosis.measures import known_values
from sslmed_dist.downstream.metrics import Statistic
from sslmed_dist.downstream.predictions import Measure, Predictions

NOTE = "pairs of exams of one fold alone are compared: each fold is another model's, on a scale of its own"


def within_folds(column: int) -> Statistic:
    """The AUC of one label over the pairs of a positive and a negative examination of the same fold -> (R,); NaN where
    there is no such pair. It is the mean of the folds' AUC, each weighed by its pairs.

    Over all pairs the fold itself would count: where a fold has more positives, the others that its model learns from
    have fewer, and so it says less. scores (N, 1 + L): the fold, then a probability for each label; labels (N, L)."""

    def value(scores: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
        known = (labels[:, column] >= 0) & ~scores[:, 1 + column].isnan()
        wins = torch.zeros(len(weights), dtype=torch.float64)
        pairs = torch.zeros_like(wins)
        for fold in torch.unique(scores[known, 0]):
            own = known & (scores[:, 0] == fold)
            positive, weight = labels[own, column] > 0.5, weights[:, own]
            count = weight[:, positive].sum(dim=1) * weight[:, ~positive].sum(dim=1)
            area = metrics.auc(scores[own, 1 + column], positive, weights=weight)
            wins, pairs = wins + area.nan_to_num() * count, pairs + count
        return wins / pairs

    return value


def mean_within_folds(columns: list[int]) -> Statistic:
    """The mean of ``within_folds`` over the labels ``columns``; NaN where one has no value."""

    def value(scores: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
        return torch.stack([within_folds(k)(scores, labels, weights=weights) for k in columns]).mean(dim=0)

    return value


def measures_of(labels: tuple[str, ...]) -> Callable[[Predictions], Iterator[Measure]]:
    """The measures of ``folded``: the mean AUC over the labels that have both values, then each label's."""

    def measures(predictions: Predictions) -> Iterator[Measure]:
        scores, truth = predictions.scores, predictions.labels
        both = [k for k in range(len(labels)) if len(known_values(scores[:, 1 + k], truth[:, k])) == 2]
        if both:
            absent = ", ".join(name for k, name in enumerate(labels) if k not in both)
            without = f"mean over labels without {absent}, which lacks a value here; " if absent else ""
            undefined = "undefined: a label has no fold with both values"
            yield Measure("auc", mean_within_folds(both), truth, undefined, note=f"{without}{NOTE}")
        for k, label in enumerate(labels):
            undefined = f"undefined: no fold has both values of {label}"
            yield Measure(f"auc/{label}", within_folds(k), truth, undefined, note=NOTE)

    return measures


def folded(
    probabilities: Tensor, fold: Tensor, labels: Tensor, groups: Tensor, index: Tensor, classes: tuple[str, ...]
) -> Predictions:
    """The probabilities (N, L) that the model of each examination's ``fold`` (int64 (N,)) gave, to be measured within
    folds. ``labels`` (N, L) are 1, 0 and NaN where missing."""
    return Predictions(
        scores=torch.cat([fold[:, None].double(), probabilities.double().cpu()], 1),
        labels=labels.float().nan_to_num(nan=-1.0),
        groups=groups,
        index=index,
        task="multi",
        classes=classes,
        measures=measures_of(classes),
        by_sample=True,
    )
