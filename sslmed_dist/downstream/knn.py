"""Nearest-neighbour classification on frozen features."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from sslmed_dist.downstream.coverage import coverage
from sslmed_dist.downstream.features import RAW_PIXELS, Features, SplitFeatures
from sslmed_dist.downstream.metrics import Score
from sslmed_dist.downstream.predictions import Predictions, measure

Metric = Literal["cosine", "l2"]
Weights = Literal["similarity", "uniform", "distance"]

# The most similarities that are in memory at once: 32 M float32 are 128 MB.
CHUNK = 32_000_000


class KNN:
    """k nearest training samples vote on each test sample; the validation split is not used.

    ``metric`` ``cosine``: features are L2-normalised. ``l2``: Euclidean distance, of L2-normalised features where
    ``normalise`` says so.
    ``weights`` of a neighbour's vote: ``similarity``, exp(cosine / ``temperature``), the default of ``cosine`` (Wu et
    al. 2018, section 3.4; k = 200 and T = 0.1 are the usual values on CIFAR). ``uniform``: one vote each, the default
    of ``l2``. ``distance``: 1 / distance, of ``l2``; where neighbours lie at distance 0 they alone vote, one vote each.
    The long-tail protocol of the thesis is k = 1 and 10 by ``l2``: the text weighs by distance, the author's published
    code gives one vote each on normalised features.
    Scores are the fractions of the votes, for the task ``multi`` the weighted mean of the neighbours' labels. Of
    classes with equal votes the one of the lowest number wins.
    """

    floor = RAW_PIXELS

    def __init__(
        self,
        k: int = 200,
        temperature: float = 0.1,
        metric: Metric = "cosine",
        weights: Weights | None = None,
        normalise: bool = False,
    ) -> None:
        """``ValueError`` for a value that is not allowed, or weights that the metric does not have."""
        if k < 1:
            raise ValueError(f"knn.k: expected an integer >= 1, got {k}")
        if temperature <= 0:
            raise ValueError(f"knn.temperature: expected a number > 0, got {temperature}")
        if metric not in ("cosine", "l2"):
            raise ValueError(f"knn.metric: expected one of 'cosine', 'l2', got {metric!r}")
        allowed: tuple[Weights, ...] = ("similarity", "uniform") if metric == "cosine" else ("uniform", "distance")
        if weights is not None and weights not in allowed:
            raise ValueError(f"knn.weights: expected one of {', '.join(allowed)} for metric {metric}, got {weights!r}")
        self.k, self.temperature, self.metric, self.normalise = k, temperature, metric, normalise
        self.weights: Weights = allowed[0] if weights is None else weights

    def predict(self, splits: SplitFeatures, *, seed: int = 0) -> Predictions:
        """Votes for every test sample. ``ValueError`` if there are fewer than k training samples. No randomness."""
        train, test = splits.train, splits.test
        self.require(len(train), len(splits.val))
        votes = self.votes(train, test, len(splits.classes))
        return Predictions(
            votes, test.labels.cpu(), test.groups.cpu(), test.index.cpu(), splits.task, splits.classes,
            coverage=coverage(splits.task, splits.classes, train.labels, test.labels),
        )  # fmt: skip

    def require(self, train: int, val: int) -> None:
        """``ValueError`` for fewer than k training samples."""
        if self.k > train:
            raise ValueError(f"knn.k: {self.k} neighbours asked of n = {train} training samples; allowed: 1 to {train}")

    def __call__(self, splits: SplitFeatures, *, seed: int = 0) -> list[Score]:
        """``measure(predict(splits))`` under the name ``knn``."""
        return measure(self.predict(splits, seed=seed), "knn", seed=seed)

    def votes(self, train: Features, test: Features, classes: int) -> Tensor:
        """Fractions of the votes, float64 (N, C) on the CPU; queries go in chunks, so the memory is bounded."""
        x, queries = train.x, test.x
        if self.normalise:
            x, queries = functional.normalize(x, dim=1), functional.normalize(queries, dim=1)
        similarity, neighbours = neighbours_of(x, queries, self.k, self.metric)  # both (N, k)
        weights = self.weigh(similarity.double())
        weights = weights / weights.sum(dim=1, keepdim=True)
        labels = train.labels[neighbours]  # (N, k), for the task multi (N, k, L)
        if labels.ndim == 3:
            return torch.einsum("nk,nkl->nl", weights, labels.double()).cpu()
        # each neighbour's weight is added to the column of its class
        return weights.new_zeros((len(test), classes)).scatter_add_(1, labels, weights).cpu()

    def weigh(self, similarity: Tensor) -> Tensor:
        """The weight of each neighbour's vote (N, k), from its similarity, nearest first."""
        if self.weights == "uniform":
            return torch.ones_like(similarity)
        if self.weights == "similarity":
            # Relative to the nearest: the fractions are the same and exp cannot overflow at any temperature.
            return torch.exp((similarity - similarity[:, :1]) / self.temperature)
        distances = similarity.neg().clamp_min(0.0).sqrt()
        identical = distances == 0
        return torch.where(identical.any(dim=1, keepdim=True), identical.double(), 1.0 / distances.clamp_min(1e-300))


def neighbours_of(train: Tensor, test: Tensor, k: int, metric: Metric = "cosine") -> tuple[Tensor, Tensor]:
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
