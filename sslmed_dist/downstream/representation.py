"""How frozen features lie on the unit sphere, given labels: uniformity, tolerance, inter-class uniformity, alignment.

All are exact over every pair of test samples. Pairs go in chunks, so the memory grows with N and not with N squared.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from sslmed_dist.downstream.features import RAW_PIXELS, SplitFeatures
from sslmed_dist.downstream.metrics import Score
from sslmed_dist.downstream.predictions import Measure, Predictions, measure

# Similarities of one chunk of rows: 4 M float64 are 32 MB.
CHUNK = 4_000_000
# A bootstrap of sums over pairs costs draws x N^2: up to this many samples it takes seconds on a CPU.
LIMIT = 4096


class Representation:
    """Measures of the test split's L2-normalised features x; train and val have no part in them.

    ``uniformity``: ln of the mean of e^(-2 |x_i - x_j|^2) over pairs i != j, from -8 to 0 at collapse (Wang and Isola
    2020, "Understanding contrastive representation learning through alignment and uniformity on the hypersphere",
    section 4.1.2, t = 2). ``inter_class_uniformity``: the same mean over the pairs of different classes alone.
    ``tolerance``: the mean of x_i . x_j over pairs i != j of one class, in [-1, 1] (Wang and Liu 2021, "Understanding
    the behaviour of contrastive loss", section 4.3, whose formula counts a pair of two classes as 0; here only pairs
    of one class are averaged, so the number does not fall with the number of classes).
    Task ``multi`` has no classes: uniformity alone. The tolerance always has its bootstrap interval, the uniformities
    up to 4096 samples. A sample drawn twice makes no pair with itself.
    """

    floor = RAW_PIXELS

    def predict(self, splits: SplitFeatures, *, seed: int = 0) -> Predictions:
        """The unit features of the test split, float64 (N, D) on their device, to be measured. No randomness."""
        test = splits.test
        x = functional.normalize(test.x.double(), dim=1)
        facts = (test.labels.cpu(), test.groups.cpu(), test.index.cpu(), splits.task, splits.classes)
        return Predictions(x, *facts, measures=measures)

    def __call__(self, splits: SplitFeatures, *, seed: int = 0) -> list[Score]:
        """``measure(predict(splits))`` under the name ``representation``."""
        return measure(self.predict(splits, seed=seed), "representation", seed=seed)


def measures(of: Predictions) -> Iterator[Measure]:
    """What ``Representation`` measures; ``of.scores`` are unit rows (N, D)."""
    labels, count = of.labels.to(of.scores.device), len(of.labels)
    why = "" if count <= LIMIT else f"no interval: {count} samples, a bootstrap of all pairs only up to {LIMIT}"
    yield Measure("uniformity", uniformity, labels, "undefined: fewer than two test samples", why)
    if of.task == "single":
        one = "undefined: all test samples are of one class"
        yield Measure("inter_class_uniformity", inter_class_uniformity, labels, one, why)
        yield Measure("tolerance", tolerance, labels, "undefined: no class has two test samples")


def uniformity(x: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
    """ln of the weighted mean of e^(-2 |x_i - x_j|^2) over i != j; unit rows x (N, D), weights (R, N) -> (R,)."""
    own = weights.square().sum(dim=1)
    return torch.log(potential(x, None, weights) / (weights.sum(dim=1).square() - own))


def inter_class_uniformity(x: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
    """``uniformity`` over the pairs of different labels int64 (N,) -> (R,)."""
    sizes = weights @ membership(labels)
    pairs = weights.sum(dim=1).square() - sizes.square().sum(dim=1)
    return torch.log(potential(x, labels, weights) / pairs)


def tolerance(x: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
    """Weighted mean of x_i . x_j over i != j of the same label -> (R,).

    The sum over all pairs of a class is |sum_i w_i x_i|^2 less its diagonal: nothing of size N^2 is formed.
    """
    squares = weights.square()
    total = -(squares @ x.square().sum(dim=1))
    pairs = -squares.sum(dim=1)
    for label in torch.unique(labels):
        member = labels == label
        part = weights[:, member]
        total += (part @ x[member]).square().sum(dim=1)
        pairs += part.sum(dim=1).square()
    # Numbers of pairs are exact; the sum over none of them is only nearly 0, and would be divided by 0.
    return torch.where(pairs > 0, total / pairs, torch.nan)


def potential(x: Tensor, labels: Tensor | None, weights: Tensor) -> Tensor:
    """Sum over i != j of w_i w_j e^(-2 |x_i - x_j|^2), of pairs of different ``labels`` where given -> (R,)."""
    total = weights.new_zeros(len(weights))
    for part in torch.split(torch.arange(len(x), device=x.device), max(1, CHUNK // max(1, len(x)))):
        kernel = torch.exp(4.0 * (x[part] @ x.T) - 4.0)  # |x_i - x_j|^2 = 2 - 2 x_i . x_j
        kernel[torch.arange(len(part), device=x.device), part] = 0.0
        if labels is not None:
            kernel[labels[part][:, None] == labels] = 0.0
        total += ((weights @ kernel.T) * weights[:, part]).sum(dim=1)
    return total


def membership(labels: Tensor) -> Tensor:
    """float64 (N, K): which of the K labels that occur each sample has."""
    return functional.one_hot(torch.unique(labels, return_inverse=True)[1]).double()


def alignment(first: Tensor, second: Tensor) -> float:
    """Mean |x_i - y_i|^2 of the L2-normalised features of two views of each image, (N, D) both, in [0, 4] (Wang and
    Isola 2020, section 4.1.1, exponent 2). ``ValueError`` for different shapes or no rows."""
    if first.shape != second.shape or first.ndim != 2 or not len(first):
        raise ValueError(
            f"alignment: expected two equal matrices (N, D), got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    x, y = (functional.normalize(view.double(), dim=1) for view in (first, second))
    return float((x - y).square().sum(dim=1).mean())
