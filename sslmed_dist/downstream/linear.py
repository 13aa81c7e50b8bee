"""Linear probe on frozen features: a linear classifier, trained with all learning rates at once."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from sslmed_dist import randomness
from sslmed_dist.downstream import metrics
from sslmed_dist.downstream.coverage import coverage
from sslmed_dist.downstream.features import RAW_PIXELS, Features, SplitFeatures
from sslmed_dist.downstream.metrics import Score
from sslmed_dist.downstream.predictions import Predictions, measure


class LinearProbe:
    """Multinomial (task ``single``) or per-label (``multi``) logistic regression by SGD with a cosine schedule.

    The R learning rates are R independent probes that see the same minibatches; one matrix product serves them all.
    The probe with the best validation accuracy (``multi``: mean AUC; ties: lower validation loss) is reported on test,
    and the note of every score says which it was. Weights start at zero. ``weight_decay`` does not apply to the bias.
    ``standardise`` subtracts the mean of the training features and divides by their standard deviation. The loss of a
    minibatch is the mean over its samples (and labels). Deterministic: the order of samples is keyed by (seed, epoch,
    sample id).
    """

    floor = RAW_PIXELS

    def __init__(
        self,
        learning_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0),
        epochs: int = 100,
        batch_size: int = 256,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        standardise: bool = True,
    ) -> None:
        if not learning_rates or min(learning_rates) <= 0:
            raise ValueError(f"linear.learning_rates: expected at least one number, all > 0, got {learning_rates}")
        if epochs < 1 or batch_size < 1:
            raise ValueError(f"linear: expected epochs >= 1 and batch_size >= 1, got {epochs} and {batch_size}")
        if not 0 <= momentum < 1 or weight_decay < 0:
            raise ValueError(
                f"linear: expected 0 <= momentum < 1 and weight_decay >= 0, got {momentum} and {weight_decay}"
            )
        self.learning_rates = tuple(float(rate) for rate in learning_rates)
        self.epochs, self.batch_size = epochs, batch_size
        self.momentum, self.weight_decay, self.standardise = momentum, weight_decay, standardise

    def predict(self, splits: SplitFeatures, *, seed: int) -> Predictions:
        """Probabilities of every test sample under the learning rate chosen on val. ``ValueError`` without val."""
        self.require(len(splits.train), len(splits.val))
        classes = len(splits.classes)
        shift, scale = self.scaling(splits.train.x)
        train, val, test = (
            Features((part.x - shift) / scale, part.labels, part.groups, part.index)
            for part in (splits.train, splits.val, splits.test)
        )
        weight, bias = self.fit(train, classes, seed)  # (R, D, C), (R, C)
        chosen = self.choose(logits_of(val.x, weight, bias), val.labels)
        scores = logits_of(test.x, weight[chosen : chosen + 1], bias[chosen : chosen + 1])[0].double()  # (N, C)
        scores = scores.sigmoid() if splits.task == "multi" else scores.softmax(dim=1)
        return Predictions(
            scores.cpu(), test.labels.cpu(), test.groups.cpu(), test.index.cpu(), splits.task, splits.classes,
            self.note(chosen), coverage=coverage(splits.task, splits.classes, train.labels, test.labels, val.labels),
        )  # fmt: skip

    def require(self, train: int, val: int) -> None:
        """``ValueError`` for no validation sample."""
        if not val:
            raise ValueError("linear: the split val is empty; the learning rate is chosen on it")

    def __call__(self, splits: SplitFeatures, *, seed: int) -> list[Score]:
        """``measure(predict(splits))`` under the name ``linear``."""
        return measure(self.predict(splits, seed=seed), "linear", seed=seed)

    def scaling(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (1, D) of the training features ``x`` (N, D). Those of constant features are 1 in
        place of 0. Without ``standardise`` 0 and 1."""
        if not self.standardise:
            return x.new_zeros((1, x.shape[1])), x.new_ones((1, x.shape[1]))
        mean, deviation = x.mean(dim=0, keepdim=True), x.std(dim=0, correction=0, keepdim=True)
        varies = deviation > 1e-6 * deviation.max()
        return mean, torch.where(varies, deviation, torch.ones_like(deviation))

    def fit(self, train: Features, classes: int, seed: int) -> tuple[Tensor, Tensor]:
        """Weights (R, D, C) and biases (R, C) of the R probes after all epochs.

        Gradients are written out, and inside the loop the weights are (D, R, C): flattened to (D, R * C) the R probes
        are one matrix product.
        """
        x, target = train.x, targets(train.labels, classes)
        multi = train.labels.ndim == 2
        known = ~target.isnan()  # (N, C); a missing label adds nothing to the loss
        rates = torch.tensor(self.learning_rates, dtype=x.dtype, device=x.device)
        weight = x.new_zeros((x.shape[1], len(rates), classes))  # (D, R, C)
        bias = x.new_zeros((len(rates), classes))
        weight_velocity, bias_velocity = torch.zeros_like(weight), torch.zeros_like(bias)
        total_steps, step = self.epochs * math.ceil(len(x) / self.batch_size), 0
        for epoch in range(self.epochs):
            # Keyed by sample id on the CPU: the same minibatches on every device.
            order = randomness.order(train.index.cpu(), seed, "linear", epoch).to(x.device)
            for part in torch.split(order, self.batch_size):
                # the cosine schedule: every rate falls from its start to 0
                rate = rates[:, None] * (0.5 * (1 + math.cos(math.pi * step / total_steps)))  # (R, 1)
                logits = (x[part] @ weight.flatten(1)).view(len(part), len(rates), classes) + bias  # (B, R, C)
                probability = logits.sigmoid() if multi else logits.softmax(dim=2)
                # the gradient of the cross-entropy with respect to the logits
                error = (probability - target[part][:, None]) / (known[part].sum() if multi else len(part))
                error = error.where(known[part][:, None], 0.0)
                weight_gradient = (x[part].T @ error.flatten(1)).view_as(weight)
                # SGD with momentum, as torch.optim.SGD
                weight_velocity.mul_(self.momentum).add_(weight_gradient.add_(weight, alpha=self.weight_decay))
                bias_velocity.mul_(self.momentum).add_(error.sum(dim=0))
                weight.sub_(rate * weight_velocity)
                bias.sub_(rate * bias_velocity)
                step += 1
        return weight.permute(1, 0, 2).contiguous(), bias

    def choose(self, logits: Tensor, labels: Tensor) -> int:
        """The index of the best learning rate on val; logits (R, N, C). ``ValueError`` if all of them diverged."""
        best, chosen = (-math.inf, -math.inf), -1
        for rate_index, probe_logits in enumerate(logits.double()):
            if probe_logits.isfinite().all():
                quality = validation(probe_logits, labels)
                if quality > best:
                    best, chosen = quality, rate_index
        if chosen < 0:
            raise ValueError(f"linear.learning_rates: all of {self.learning_rates} diverged; choose smaller ones")
        return chosen

    def note(self, chosen: int) -> str:
        """Which learning rate was chosen, and whether it is the lowest or highest of those tried, so that a better one
        may lie beyond."""
        rate, many = self.learning_rates[chosen], len(self.learning_rates) > 1
        edge = many and rate in (min(self.learning_rates), max(self.learning_rates))
        return f"learning rate {rate:g}" + (" chosen on val" if many else "") + (", at the edge" if edge else "")


def logits_of(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x (N, D), weight (R, D, C), bias (R, C) -> (R, N, C)."""
    return torch.matmul(x, weight) + bias[:, None]


def targets(labels: Tensor, classes: int) -> Tensor:
    """Float32 (N, C): one-hot for class numbers (N,), the labels themselves for (N, L), NaN where one is missing."""
    return labels.float() if labels.ndim == 2 else functional.one_hot(labels, classes).float()


def validation(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """(accuracy or mean AUC, minus the loss) on val; the AUC is 0 where no label has both values."""
    ones = torch.ones((1, len(labels)), dtype=torch.float64, device=logits.device)
    if labels.ndim == 2:
        known = ~labels.isnan()
        loss = functional.binary_cross_entropy_with_logits(logits[known], labels[known].double())
        auc = float(metrics.mean_auc(logits, labels, weights=ones)[0])
        return (0.0 if math.isnan(auc) else auc), -float(loss)
    return float(metrics.accuracy(logits, labels, weights=ones)[0]), -float(functional.cross_entropy(logits, labels))
