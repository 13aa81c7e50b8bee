"""Nearest-neighbour classification on frozen features."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from sslmed_dist.downstream.features import RAW_PIXELS, Features, SplitFeatures
from sslmed_dist.downstream.metrics import Score
from sslmed_dist.downstream.predictions import Predictions, measure

# The most similarities that are in memory at once: 32 M float32 are 128 MB.
CHUNK = 32_000_000


class KNN:
    """k nearest training samples vote on each test sample; the validation split is not used.

    ``cosine``: features are L2-normalised, and a neighbour's vote weighs exp(similarity / ``temperature``) (Wu et al.
    2018, section 3.4; k = 200 and T = 0.1 are the usual values on CIFAR). ``l2``: Euclidean distance, and each
    neighbour has one vote (the long-tail protocol of the thesis, k = 1 and 10); ``temperature`` is not used. Scores are
    the fractions of the votes, for the task ``multi`` the weighted mean of the neighbours' labels. Of classes with
    equal votes the one of the lowest number wins.
    """

    floor = RAW_PIXELS

    def __init__(self, k: int = 200, temperature: float = 0.1, metric: Literal["cosine", "l2"] = "cosine") -> None:
        if k < 1:
            raise ValueError(f"knn.k: expected an integer >= 1, got {k}")
        if temperature <= 0:
            raise ValueError(f"knn.temperature: expected a number > 0, got {temperature}")
        if metric not in ("cosine", "l2"):
            raise ValueError(f"knn.metric: expected one of 'cosine', 'l2', got {metric!r}")
        self.k, self.temperature, self.metric = k, temperature, metric

    def predict(self, splits: SplitFeatures, *, seed: int = 0) -> Predictions:
        """Votes for every test sample. ``ValueError`` if there are fewer than k training samples. No randomness."""
        train, test = splits.train, splits.test
        if self.k > len(train):
            raise ValueError(f"knn.k: {self.k} neighbours asked of n = {len(train)} training samples; choose k <= n")
        votes = self.votes(train, test, len(splits.classes))
        return Predictions(votes, test.labels.cpu(), test.groups.cpu(), test.index.cpu(), splits.task, splits.classes)

    def __call__(self, splits: SplitFeatures, *, seed: int = 0) -> list[Score]:
        """``measure(predict(splits))`` under the name ``knn``."""
        return measure(self.predict(splits, seed=seed), "knn", seed=seed)

    def votes(self, train: Features, test: Features, classes: int) -> Tensor:
        """Fractions of the votes, float64 (N, C) on the CPU; queries go in chunks, so the memory is bounded."""
        weights, neighbours = neighbours_of(train.x, test.x, self.k, self.metric)  # both (N, k)
        weights = weights.double()
        if self.metric == "cosine":
            # Relative to the nearest: the fractions are the same and exp cannot overflow at any temperature.
            weights = torch.exp((weights - weights[:, :1]) / self.temperature)
        else:
            weights = torch.ones_like(weights)
        weights = weights / weights.sum(dim=1, keepdim=True)
        labels = train.labels[neighbours]  # (N, k), for the task multi (N, k, L)
        if labels.ndim == 3:
            return torch.einsum("nk,nkl->nl", weights, labels.double()).cpu()
        # each neighbour's weight is added to the column of its class
        return weights.new_zeros((len(test), classes)).scatter_add_(1, labels, weights).cpu()


def neighbours_of(
    train: Tensor, test: Tensor, k: int, metric: Literal["cosine", "l2"] = "cosine"
) -> tuple[Tensor, Tensor]:
    """The k nearest rows of ``train`` (M, D) for each row of ``test`` (N, D), nearest first.

    Returns (similarity float32 (N, k), row of ``train`` int64 (N, k)). The similarity is the cosine, or minus the
    squared distance.
    """
    if metric == "cosine":
        train, test = functional.normalize(train, dim=1), functional.normalize(test, dim=1)
        offset = train.new_zeros(len(train))
    else:
        # About the mean of train: |a|^2 + |b|^2 - 2ab loses digits when the vectors are long and close to each other.
        centre = train.mean(dim=0)
        train, test = train - centre, test - centre
        offset = train.square().sum(dim=1)  # |b|^2, (M,)
    rows = max(1, CHUNK // len(train))
    nearest = []
    for queries in torch.split(test, rows):
        similarity = queries @ train.T  # (chunk, M)
        if metric == "l2":
            # -|a - b|^2 = 2ab - |b|^2 - |a|^2
            similarity = 2 * similarity - offset - queries.square().sum(dim=1, keepdim=True)
        nearest.append(torch.topk(similarity, k, dim=1))
    return torch.cat([values for values, _ in nearest]), torch.cat([neighbours for _, neighbours in nearest])
