"""Barlow Twins: the cross-correlation of two views should be the identity."""

from torch import Tensor, nn

from sslmed_dist import distributed
from sslmed_dist.arguments import require_not_negative, require_positive
from sslmed_dist.losses import batch_statistics, pairs


def barlow_twins(z0: Tensor, z1: Tensor, redundancy: float = 5e-3, eps: float = 1e-5) -> Tensor:
    """sum_i (1 - C_ii)^2 + redundancy * sum_{i != j} C_ij^2, C the (D, D) cross-correlation over the batch.

    Source: Zbontar et al. 2021, "Barlow Twins: self-supervised learning via redundancy reduction", Eq. 1 and 2; both
    views are standardised over the batch, each by its own statistics, and C = x0^T x1 / M. ``redundancy`` is the
    paper's lambda. ``eps`` is added to the variances (Eq. 2 has none; the authors' code takes that of batch norm),
    so that a constant feature gives correlation 0 and a finite gradient.
    ``z0``, ``z1``: un-normalised embeddings (N, D) of this rank; returns a scalar, float32 (float64 for float64
    input). Embeddings of all ranks are gathered; a rank computes a share of C's columns, so that the mean over ranks
    is the loss of the whole batch. ``ValueError`` for ``redundancy`` < 0, ``eps`` <= 0, embeddings that are not two
    equal finite floating-point (N, D), or a batch of 1 over all ranks.
    """
    require_not_negative("redundancy", redundancy)
    require_positive("eps", eps)
    with pairs.full_precision(z0):
        x0, x1 = (batch_statistics.standard_scores(x, eps, dim=0) for x in batch_statistics.gather_views(z0, z1))
        columns = batch_statistics.own_columns(x0.shape[1])
        # This rank's columns (D, n) of the cross-correlation.
        diagonal, off = batch_statistics.shares(x0.T @ x1[:, columns] / x0.shape[0], columns)
        return distributed.world_size() * ((1.0 - diagonal).square().sum() + redundancy * off)


class BarlowTwins(nn.Module):
    """Barlow Twins (Zbontar et al. 2021): the cross-correlation of two views should be the identity.

    (z0, z1) -> scalar, as ``barlow_twins``. ``redundancy``: weight (>= 0) of what is off the diagonal; ``eps`` > 0.
    """

    def __init__(self, redundancy: float = 5e-3, eps: float = 1e-5) -> None:
        super().__init__()
        self.redundancy = require_not_negative("redundancy", redundancy)
        self.eps = require_positive("eps", eps)

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        return barlow_twins(z0, z1, self.redundancy, self.eps)
