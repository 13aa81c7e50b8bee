"""LogDet: soft decorrelation by the LogDet divergence of the covariance from the identity."""

import math

import torch
from torch import Tensor, nn

from sslmed_dist.arguments import require_not_negative, require_positive
from sslmed_dist.losses import batch_statistics, pairs


def logdet_divergence(x: Tensor, eps: float) -> Tensor:
    """[tr(S) - ln det(S) - D] / D for S = Cov(x) + eps I, x (M, D) float64; a scalar, 0 where S = I.

    Cov is unbiased (divides by M - 1). ln det comes from the smaller of the D x D covariance and the M x M Gram matrix:
    with more dimensions than samples, the other D - M eigenvalues of S are eps (Sylvester's determinant identity).
    """
    samples, width = x.shape
    centred = (x - x.mean(dim=0)) / math.sqrt(samples - 1)
    gram = centred.T @ centred if width <= samples else centred @ centred.T
    # With the Cholesky factor L of the smaller matrix, ln det = 2 sum ln L_ii; then the D - M eigenvalues eps.
    factor = torch.linalg.cholesky(gram + eps * torch.eye(len(gram), dtype=x.dtype, device=x.device))
    log_determinant = 2.0 * factor.diagonal().log().sum() + (width - len(gram)) * math.log(eps)
    divergence: Tensor = centred.square().sum() + width * eps - log_determinant - width
    return divergence / width


def logdet(z0: Tensor, z1: Tensor, invariance: float = 25.0, decorrelation: float = 1.0, eps: float = 1e-4) -> Tensor:
    """invariance * s(z0, z1) + decorrelation * [d(z0) + d(z1)], with s the mean over samples and dimensions of
    (z0 - z1)^2 and d = [tr(S) - ln det(S) - D] / D, S the covariance over the batch plus eps I.

    Source: the thesis's "LogDet" (Tables 5.5 and 6.10) is Zhang et al. 2024, "Geometric view of soft decorrelation in
    self-supervised learning" (KDD): of the Bregman matrix divergences between covariance and identity, soft
    decorrelation (|S - I|^2) does not prevent the collapse of dimensions, the LogDet divergence does. The divergence
    is the classical one (Kulis et al. 2009, "Low-rank kernel learning with Bregman matrix divergences"), divided by D.
    Only the paper's abstract was at hand, not its alignment term and weights: s and its weight 25 are those of VICReg,
    and ``decorrelation`` 1 is ours. ``eps`` keeps S positive definite: constant embeddings give a finite d, namely
    eps - ln eps - 1.
    ``z0``, ``z1``: un-normalised embeddings (N, D) of this rank; returns a scalar, float32 (float64 for float64
    input), computed in float64. Embeddings of all ranks are gathered and every rank returns the loss of the whole
    batch. ``ValueError`` for a weight < 0, ``eps`` <= 0, embeddings that are not two equal finite floating-point
    (N, D), or a batch of 1 over all ranks.
    """
    require_not_negative("invariance", invariance)
    require_not_negative("decorrelation", decorrelation)
    require_positive("eps", eps)
    with pairs.full_precision(z0):
        views = batch_statistics.gather_views(z0, z1)
        x0, x1 = (x.double() for x in views)
        loss = invariance * (x0 - x1).square().mean()
        loss = loss + decorrelation * (logdet_divergence(x0, eps) + logdet_divergence(x1, eps))
        return loss.to(views[0].dtype)


class LogDet(nn.Module):
    """LogDet: invariance, and soft decorrelation by the LogDet divergence of the covariance from the identity.

    (z0, z1) -> scalar, as ``logdet``. Weights >= 0, ``eps`` > 0.
    """

    def __init__(self, invariance: float = 25.0, decorrelation: float = 1.0, eps: float = 1e-4) -> None:
        super().__init__()
        self.invariance = require_not_negative("invariance", invariance)
        self.decorrelation = require_not_negative("decorrelation", decorrelation)
        self.eps = require_positive("eps", eps)

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        return logdet(z0, z1, self.invariance, self.decorrelation, self.eps)
