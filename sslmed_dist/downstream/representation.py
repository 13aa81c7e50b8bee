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

# The most similarities that are in memory at once: 4 M float64 are 32 MB.
CHUNK = 4_000_000
# A bootstrap of sums over pairs costs draws x N^2: up to this many samples it takes seconds on a CPU.
LIMIT = 4096


class Representation:
    """Measures of the test split's L2-normalised features x; train and val are not used.

    ``uniformity``: ln of the mean of e^(-2 |x_i - x_j|^2) over pairs i != j. It is at least -8, and 0 where all
    features are equal (Wang and Isola 2020, "Understanding contrastive representation learning through alignment and
    uniformity on the hypersphere", section 4.1.2, t = 2). ``inter_class_uniformity``: the same over the pairs of
    different classes only. ``tolerance``: the mean of x_i . x_j over pairs i != j of one class, in [-1, 1] (Wang and
    Liu 2021, "Understanding the behaviour of contrastive loss", section 4.3). Their formula counts a pair of two
    classes as 0; here only pairs of one class are averaged, so the number does not fall with the number of classes.
    The task ``multi`` has no classes, so only its uniformity is measured. The tolerance always has its bootstrap
    interval, the uniformities have one up to 4096 samples. A sample drawn twice makes no pair with itself.
    """

    floor = RAW_PIXELS

    def predict(self, splits: SplitFeatures, *, seed: int = 0) -> Predictions:
        """The unit features of the test split, float64 (N, D) on their device, to be measured. No randomness."""
        test = splits.test
        x = functional.normalize(test.x.double(), dim=1)
        sample_facts = (test.labels.cpu(), test.groups.cpu(), test.index.cpu(), splits.task, splits.classes)
        return Predictions(x, *sample_facts, measures=measures)

    def __call__(self, splits: SplitFeatures, *, seed: int = 0) -> list[Score]:
        """``measure(predict(splits))`` under the name ``representation``."""
        return measure(self.predict(splits, seed=seed), "representation", seed=seed)


def measures(of: Predictions) -> Iterator[Measure]:
    """What ``Representation`` measures; ``of.scores`` are unit rows (N, D)."""
    labels, count = of.labels.to(of.scores.device), len(of.labels)
    no_interval = "" if count <= LIMIT else f"no interval: {count} samples, a bootstrap of all pairs only up to {LIMIT}"
    yield Measure("uniformity", uniformity, labels, "undefined: fewer than two test samples", no_interval)
    if of.task == "single":
        one_class = "undefined: all test samples are of one class"
        yield Measure("inter_class_uniformity", inter_class_uniformity, labels, one_class, no_interval)
        yield Measure("tolerance", tolerance, labels, "undefined: no class has two test samples")


def uniformity(x: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
    """ln of the weighted mean of e^(-2 |x_i - x_j|^2) over i != j; unit rows x (N, D), weights (R, N) -> (R,)."""
    # the weight of the pairs i = j, which do not count
    self_pairs = weights.square().sum(dim=1)
    return torch.log(potential(x, None, weights) / (weights.sum(dim=1).square() - self_pairs))


def inter_class_uniformity(x: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
    """``uniformity`` over the pairs of different labels int64 (N,) -> (R,)."""
    sizes = weights @ membership(labels)  # (R, K) weight of each class
    # the weight of all pairs less that of the pairs within a class
    pairs = weights.sum(dim=1).square() - sizes.square().sum(dim=1)
    return torch.log(potential(x, labels, weights) / pairs)


def tolerance(x: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
    """Weighted mean of x_i . x_j over pairs i != j of the same label; unit rows x (N, D), labels int64 (N,), weights
    (R, N) -> (R,).

    The sum over the pairs of a class is |sum_i w_i x_i|^2 less its diagonal, so no N x N matrix is needed.
    """
    # sum and number of pairs, (R,); both start at minus the diagonal of all classes together
    squares = weights.square()
    total = -(squares @ x.square().sum(dim=1))
    pairs = -squares.sum(dim=1)
    for label in torch.unique(labels):
        in_class = labels == label
        class_weights = weights[:, in_class]
        total += (class_weights @ x[in_class]).square().sum(dim=1)
        pairs += class_weights.sum(dim=1).square()
    # Without a pair their number is exactly 0, but the sum may be only nearly 0, and 1e-17 / 0 is no NaN.
    return torch.where(pairs > 0, total / pairs, torch.nan)


def potential(x: Tensor, labels: Tensor | None, weights: Tensor) -> Tensor:
    """Sum over i != j of w_i w_j e^(-2 |x_i - x_j|^2); where ``labels`` are given, only over pairs of different labels.
    Unit rows x (N, D), labels int64 (N,), weights (R, N) -> (R,)."""
    total = weights.new_zeros(len(weights))
    for rows in torch.split(torch.arange(len(x), device=x.device), max(1, CHUNK // max(1, len(x)))):
        kernel = torch.exp(4.0 * (x[rows] @ x.T) - 4.0)  # (chunk, N), as |x_i - x_j|^2 = 2 - 2 x_i . x_j
        # pairs of a sample with itself do not count, nor, where asked for, those of one class
        kernel[torch.arange(len(rows), device=x.device), rows] = 0.0
        if labels is not None:
            kernel[labels[rows][:, None] == labels] = 0.0
        total += ((weights @ kernel.T) * weights[:, rows]).sum(dim=1)
    return total


def membership(labels: Tensor) -> Tensor:
    """float64 (N, K), one-hot: which of the K labels that occur each sample has; labels int64 (N,)."""
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
