"""Several models of one examination as one answer: a weight for each model and label (thesis, Eq. 3.1 and 3.2)."""

import torch
from torch import Tensor

CLIP = 1e-6


def weights(accuracies: Tensor) -> Tensor:
    """ln(a / (1 - a)) of the accuracies (P, L) of P models, clipped to [0.5 + 1e-6, 1 - 1e-6] so that no weight is
    negative, over their sum of each label: (P, L), float64 (thesis, Eq. 3.2 and 4.20). NaN (a model that does not
    answer a label, or was never measured on it) weighs 0.

    The accuracies come from examinations that are not scored afterwards. The thesis states that weights are not
    negative and sum to 1, and its formula alone gives neither. Models none of which beats chance weigh the same.
    """
    inside = accuracies.double().clamp(0.5 + CLIP, 1 - CLIP)
    raw = torch.where(inside.isnan(), 0.0, inside.log() - torch.log1p(-inside))
    total = raw.sum(dim=0)
    return torch.where(total > 0, raw / total.clamp_min(1e-300), torch.nan)


def combined(probabilities: Tensor, model_weights: Tensor) -> Tensor:
    """The weighted mean (N, L) of the probabilities (P, N, L) of P models under ``model_weights`` (P, L). It is what
    thesis Eq. 3.1 and 4.19 compare with 0.5 (Eq. 3.4). A model that has no answer for an examination (NaN) is left out
    and the others' weights are normalised anew. NaN where no model has one."""
    there = ~probabilities.isnan() & ~model_weights.isnan()[:, None]
    own = torch.where(there, model_weights.nan_to_num()[:, None], 0.0)  # (P, N, L)
    total = own.sum(dim=0)
    # Models that answer but weigh nothing here count the same.
    own = torch.where(total > 0, own, there.double())
    total = own.sum(dim=0)
    mean = (probabilities.nan_to_num() * own).sum(dim=0) / total.clamp_min(1e-300)
    return torch.where(total > 0, mean, torch.nan)


def plain_mean(probabilities: Tensor) -> Tensor:
    """The mean (N, L) over the models (P, N, L) that have an answer: what the weights have to beat."""
    return combined(probabilities, torch.ones_like(probabilities[:, 0, :]))
