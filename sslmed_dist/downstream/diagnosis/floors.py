"""What a diagnosis has to beat: the majority answer, a random one, and what the metadata alone would say."""

import torch
from torch import Tensor

from sslmed_dist import randomness

PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)
FOLDS, STEPS = 5, 50


def majority(train_labels: Tensor, count: int) -> Tensor:
    """The share of positives among the known training labels (M, L), NaN where missing, for each of ``count``
    examinations: (count, L), float64. NaN for a label that no training examination has."""
    return train_labels.double().nanmean(dim=0).expand(count, -1)


def random(index: Tensor, labels: int, seed: int) -> Tensor:
    """A uniform number for each sample id (N,) and label: (N, ``labels``), float64, keyed."""
    return randomness.uniform(seed, "random answer", index[:, None], torch.arange(labels)[None])


class Metadata:
    """Logistic regression on what is known of an examination without its images (scanner, voxel size, number of
    slices, ...): standardised features (M, F) without gaps, and labels (M, L), NaN where missing.

    The ridge penalty of each label is the one of ``PENALTIES`` with the least cross entropy over five folds of
    patients. Without any feature (F = 0) the answer is the share of positives.
    """

    def __init__(self, features: Tensor, labels: Tensor, groups: Tensor, *, seed: int) -> None:
        """``ValueError`` for no examination, or a feature that is not finite."""
        if features.ndim != 2 or not len(features):
            raise ValueError(f"metadata: expected features (N, F) of at least one exam, got {tuple(features.shape)}")
        if not bool(features.isfinite().all()):
            raise ValueError("metadata: expected finite features")
        x, fold = features.double(), folds_of(groups, seed)
        self.weights = torch.full((x.shape[1] + 1, labels.shape[1]), torch.nan, dtype=torch.float64)
        self.penalties: list[float | None] = []
        for column in range(labels.shape[1]):
            known = ~labels[:, column].isnan()
            penalty = best_penalty(x[known], labels[known, column].double(), fold[known])
            self.penalties.append(penalty)
            if penalty is not None:
                self.weights[:, column] = logistic(x[known], labels[known, column].double(), penalty)

    def predict(self, features: Tensor) -> Tensor:
        """Probabilities (N, L) of features (N, F), float64; NaN for a label that lacked a value in training."""
        return torch.sigmoid(with_one(features.double()) @ self.weights)


def with_one(x: Tensor) -> Tensor:
    """x (N, F) with a column of ones in front."""
    return torch.cat([torch.ones(len(x), 1, dtype=x.dtype), x], 1)


def folds_of(groups: Tensor, seed: int) -> Tensor:
    """The fold, 0 to 4, of each sample; those of a group together, the groups dealt in a keyed order."""
    numbers, row = torch.unique(groups, return_inverse=True)
    fold = torch.empty_like(numbers)
    fold[randomness.order(numbers, seed, "metadata folds")] = torch.arange(len(numbers)) % FOLDS
    return fold[row]


def best_penalty(x: Tensor, target: Tensor, fold: Tensor) -> float | None:
    """The penalty with the least cross entropy over the folds; None where the target has one value only. Folds whose
    training part has one value are left out; without any other the strongest penalty is taken."""
    if len(torch.unique(target)) < 2:
        return None
    losses = []
    for penalty in PENALTIES:
        total, seen = 0.0, 0
        for k in range(FOLDS):
            rest, held = fold != k, fold == k
            if not held.any() or len(torch.unique(target[rest])) < 2:
                continue
            logits = with_one(x[held]) @ logistic(x[rest], target[rest], penalty)
            total += float(torch.nn.functional.binary_cross_entropy_with_logits(logits, target[held], reduction="sum"))
            seen += int(held.sum())
        losses.append(total / seen if seen else float("inf"))
    if min(losses) == float("inf"):
        return PENALTIES[-1]
    return PENALTIES[losses.index(min(losses))]


def logistic(x: Tensor, target: Tensor, penalty: float) -> Tensor:
    """The weights (1 + F,), offset first, that minimise the summed cross entropy plus penalty / 2 times the squared
    weights (not the offset), by Newton's method. Convex, so a step that does not lower the value is halved."""
    design = with_one(x)
    ridge = torch.full((design.shape[1],), penalty, dtype=torch.float64)
    ridge[0] = 1e-9  # keeps the offset finite
    weights = torch.zeros(design.shape[1], dtype=torch.float64)

    def value(at: Tensor) -> Tensor:
        logits = design @ at
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="sum")
        return loss + 0.5 * (ridge * at.square()).sum()

    for _ in range(STEPS):
        probability = torch.sigmoid(design @ weights)
        gradient = design.T @ (probability - target) + ridge * weights
        hessian = (design.T * (probability * (1 - probability))) @ design + torch.diag(ridge)
        step = torch.linalg.solve(hessian, gradient)
        size, before = 1.0, value(weights)
        while size > 1e-6 and value(weights - size * step) > before:
            size /= 2
        weights = weights - size * step
        if float(step.abs().max()) * size < 1e-10:
            break
    return weights
