"""Whether probabilities mean what they say: curves, and one temperature a label, learnt on validation examinations."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sslmed_dist.downstream.diagnosis.measures import BINS, bin_of

LEAST, MOST, STEPS = -3.0, 3.0, 80  # ends of ln(temperature), and halvings of that range
NEAREST = 1e-12  # how close to 0 or 1 a probability may come


@dataclass(frozen=True)
class Bin:
    """Examinations whose probability lies in one tenth: their mean probability, the share of positives, their
    number."""

    probability: float
    share: float
    count: int


def reliability(scores: Tensor, labels: Tensor) -> list[Bin]:
    """The reliability curve of known labels: a point for each tenth of [0, 1] with examinations in it."""
    numbers = bin_of(scores)
    bins = []
    for k in range(BINS):
        inside = numbers == k
        if inside.any():
            bins.append(Bin(float(scores[inside].mean()), float(labels[inside].double().mean()), int(inside.sum())))
    return bins


def roc(scores: Tensor, labels: Tensor) -> tuple[list[float], list[float]]:
    """(1 - specificity, sensitivity) at every threshold, from (0, 0) to (1, 1); examinations of one score come
    together. Empty without both values."""
    positive = labels > 0.5
    if len(torch.unique(positive)) < 2:
        return [], []
    thresholds = torch.unique(scores).flip(0)  # descending
    found = [(scores >= threshold) for threshold in thresholds]
    rates = [
        [0.0, *(float((hit & chosen).sum()) / int(chosen.sum()) for hit in found)] for chosen in (~positive, positive)
    ]
    return rates[0], rates[1]


def logit(probabilities: Tensor) -> Tensor:
    """ln(p / (1 - p)), float64, finite."""
    inside = probabilities.double().clamp(NEAREST, 1 - NEAREST)
    return inside.log() - torch.log1p(-inside)


def temperature(scores: Tensor, labels: Tensor) -> float:
    """The T that minimises the cross entropy of sigmoid(logit(p) / T) on known labels, within e^-3 ... e^3 (Guo et al.
    2017). 1 without both values: then there is nothing to learn it from.

    The cross entropy is convex in 1 / T, so its slope is halved down to."""
    if len(torch.unique(labels)) < 2:
        return 1.0
    logits, target = logit(scores), labels.double()
    low, high = LEAST, MOST

    def slope(log_temperature: float) -> float:
        """The derivative of the cross entropy by 1 / T: the mean of (probability - truth) x logit."""
        probability = torch.sigmoid(logits * torch.tensor(-log_temperature, dtype=torch.float64).exp())
        return float(((probability - target) * logits).mean())

    for _ in range(STEPS):
        middle = (low + high) / 2
        # A positive slope asks for a smaller 1 / T, so for a larger T.
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return float(torch.tensor((low + high) / 2, dtype=torch.float64).exp())


def scaled(scores: Tensor, temperatures: Tensor) -> Tensor:
    """sigmoid(logit(p) / T) of probabilities (N, L) and temperatures (L,). NaN stays NaN. Order, AUC and the side of
    0.5 stay as they are."""
    return torch.sigmoid(logit(scores) / temperatures)
