"""VICReg: invariance, variance and covariance terms, each with its weight."""

import torch.nn.functional as F
from torch import Tensor, nn

from sslmed_dist import distributed
from sslmed_dist.arguments import require_not_negative, require_positive
from sslmed_dist.losses import batch_statistics, pairs


def variance_and_covariance(x: Tensor, gamma: float, eps: float) -> tuple[Tensor, Tensor]:
    """This rank's shares of v and c (see ``vicreg``) of one view x (M, D): two scalars, both already divided by D."""
    columns = batch_statistics.own_columns(x.shape[1])
    centred = x - x.mean(dim=0)
    covariance = centred.T @ centred[:, columns] / (x.shape[0] - 1)  # (D, n): this rank's columns
    variances, off = batch_statistics.shares(covariance, columns)
    hinge = F.relu(gamma - (variances + eps).sqrt()).sum()
    return hinge / x.shape[1], off / x.shape[1]


def vicreg(
    z0: Tensor,
    z1: Tensor,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    gamma: float = 1.0,
    eps: float = 1e-4,
) -> Tensor:
    """invariance * s(z0, z1) + variance * [v(z0) + v(z1)] / 2 + covariance * [c(z0) + c(z1)], with

        s = mean over samples and dimensions of (z0 - z1)^2
        v = 1/D sum_j max(0, gamma - sqrt(Var_j + eps))
        c = 1/D sum_{i != j} Cov_ij^2

    and variances and covariances over the batch, unbiased (M - 1).
    Source: Bardes et al. 2022, "VICReg: variance-invariance-covariance regularization for self-supervised learning",
    Eq. 1-6. The paper contradicts its code in two factors, and the weights 25, 25, 1 and the published results belong
    to the code, which is followed here: Eq. 5 does not divide s by D, and Eq. 6 does not halve the two v.
    ``invariance=25 * D, variance=50`` is Eq. 6 as printed.
    ``z0``, ``z1``: un-normalised embeddings (N, D) of this rank; returns a scalar, float32 (float64 for float64
    input). Embeddings of all ranks are gathered; a rank computes s of its own rows and a share of the columns of v
    and c, so that the mean over ranks is the loss of the whole batch. ``ValueError`` for a weight or ``gamma`` < 0,
    ``eps`` <= 0, embeddings that are not two equal finite floating-point (N, D), or a batch of 1 over all ranks.
    """
    for name, weight in (("invariance", invariance), ("variance", variance), ("covariance", covariance)):
        require_not_negative(name, weight)
    require_not_negative("gamma", gamma)
    require_positive("eps", eps)
    with pairs.full_precision(z0):
        views = batch_statistics.gather_views(z0, z1)
        # Invariance is a mean over samples: a rank's own rows are enough.
        local0, local1 = (z.to(views[0].dtype) for z in (z0, z1))
        distance = (local0 - local1).square().mean()
        (spread0, off0), (spread1, off1) = (variance_and_covariance(x, gamma, eps) for x in views)
        shares = variance * (spread0 + spread1) / 2 + covariance * (off0 + off1)
        return invariance * distance + distributed.world_size() * shares


class VICReg(nn.Module):
    """VICReg (Bardes et al. 2022): invariance, variance and covariance terms, each with its weight.

    (z0, z1) -> scalar, as ``vicreg``. Weights and ``gamma``, the wanted standard deviation, are >= 0; ``eps`` > 0.
    """

    def __init__(
        self,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
        gamma: float = 1.0,
        eps: float = 1e-4,
    ) -> None:
        super().__init__()
        self.invariance = require_not_negative("invariance", invariance)
        self.variance = require_not_negative("variance", variance)
        self.covariance = require_not_negative("covariance", covariance)
        self.gamma = require_not_negative("gamma", gamma)
        self.eps = require_positive("eps", eps)

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        return vicreg(z0, z1, self.invariance, self.variance, self.covariance, self.gamma, self.eps)
