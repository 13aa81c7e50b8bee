"""Mutual information optimisation: contrastive losses that are plain sums over pairs, without a softmax.

With c the cosine of two of the 2 N rows, t the temperature, mean_pos the mean over the 2 N ordered positive pairs and
mean_neg the mean over the 4 N^2 - 4 N ordered pairs of different samples, s the logistic function:

    v1 = -mean_pos ln s(c/t) - mean_neg ln(1 - s(c/t))        thesis Eq. 5.13
    v2 = -mean_pos c/t + mean_neg ln(1 + e^(c/t))             thesis Eq. 5.15
    v3 = -mean_pos c/t + mean_neg e^(c/t)                     thesis Eq. 5.21

hence v1 = v2 + mean_pos ln(1 + e^(c/t)) and v3 >= v2. What holds for all three: ``z0``, ``z1`` are un-normalised
embeddings (N, D) of this rank's two views; the result is a scalar, float32 (float64 for float64 input). The unit
embeddings of all ranks are gathered as columns; each rank returns the mean over its own rows, so the mean over ranks
of the value and of the gradient is that of one process with the whole batch. ``ValueError`` for a temperature that is
not above 0, embeddings that are not two equal floating-point (N, D), or a batch of 1 over all ranks.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from sslmed_dist.losses import pairs


def softplus(x: Tensor) -> Tensor:
    """ln(1 + e^x) to the last bit of float64: torch's own cut at x = 20 leaves an error of 2e-9."""
    return F.softplus(x, threshold=40.0)


def pairwise(
    z0: Tensor,
    z1: Tensor,
    temperature: float,
    attract: Callable[[Tensor], Tensor],
    repel: Callable[[Tensor], Tensor],
) -> Tensor:
    """mean_pos attract(c/t) + mean_neg repel(c/t), elementwise functions; ``repel`` must be 0 at -inf and may work in
    place."""
    pairs.check_temperature(temperature)
    with pairs.full_precision(z0):
        both = pairs.gather_pairs(z0, z1)
        repelled = repel(pairs.logits(both, temperature, partner=False)).sum()
        attracted = attract(pairs.positive_logits(both, temperature)).mean()
        return attracted + repelled / (both.rows.shape[0] * both.negatives)


def mio_v1(z0: Tensor, z1: Tensor, temperature: float = 0.2) -> Tensor:
    """MIOv1, thesis Eq. 5.13: binary cross-entropy of "same sample", positives and negatives averaged apart."""
    return pairwise(z0, z1, temperature, lambda x: softplus(-x), softplus)


def mio_v2(z0: Tensor, z1: Tensor, temperature: float = 0.2) -> Tensor:
    """MIOv2, thesis Eq. 5.15: MIOv1 without the term that pushes positives apart."""
    return pairwise(z0, z1, temperature, lambda x: -x, softplus)


def mio_v3(z0: Tensor, z1: Tensor, temperature: float = 0.2) -> Tensor:
    """MIOv3, thesis Eq. 5.21: MIOv2 with ln(1 + e^x) replaced by its upper bound e^x.

    In float32 e^(1/t) overflows below t = 0.0113 and the loss is then inf.
    """
    return pairwise(z0, z1, temperature, lambda x: -x, lambda x: x.exp_())


class MIOv1(nn.Module):
    """``mio_v1`` with its temperature (> 0): (z0, z1) -> scalar."""

    def __init__(self, temperature: float = 0.2) -> None:
        super().__init__()
        self.temperature = pairs.check_temperature(temperature)

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        return mio_v1(z0, z1, self.temperature)


class MIOv2(nn.Module):
    """``mio_v2`` with its temperature (> 0): (z0, z1) -> scalar."""

    def __init__(self, temperature: float = 0.2) -> None:
        super().__init__()
        self.temperature = pairs.check_temperature(temperature)

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        return mio_v2(z0, z1, self.temperature)


class MIOv3(nn.Module):
    """``mio_v3`` with its temperature (> 0): (z0, z1) -> scalar."""

    def __init__(self, temperature: float = 0.2) -> None:
        super().__init__()
        self.temperature = pairs.check_temperature(temperature)

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        return mio_v3(z0, z1, self.temperature)
