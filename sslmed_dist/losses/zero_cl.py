"""Zero-CL: two views agree after symmetric whitening, along the samples (ICL) or along the features (FCL).

Source of both: Zhang et al. 2022, "Zero-CL: instance and feature decorrelation for negative-free symmetric
contrastive learning" (ICLR), with the constants of the authors' code. The matrix x is standardised along its columns
(variance 1/n, eps in the root), h = x A^(-1/2) with A = (1 - shrinkage) x^T x / n + (shrinkage + eps) I, and the
loss is

    sum_i (1 - c_i)^2,    c_i = sum_k h0_ki h1_ki / n.

FCL takes the samples as rows of x and sums over the D features i. ICL takes the features as rows of x and sums over all
samples i of the batch, so it grows with the batch. In both, the authors' code takes A^(-1/2) for a constant in the
backward pass; ``stop_gradient=False`` differentiates through it. Their CIFAR code has shrinkage 0.1 and 1e-5 under the
root, which are the defaults (its covariance has n - 1 in place of n). The paper's Zero-CL is the sum of the two.

What holds for both: ``z0``, ``z1`` are un-normalised embeddings (N, D) of this rank; the result is a scalar, float32
(float64 for float64 input), computed in float64. Embeddings of all ranks are gathered and every rank returns the loss
of the whole batch. Embeddings without variance along the axis give c = 0 and a finite gradient. ``ValueError`` for
``shrinkage`` outside [0, 1], ``eps`` <= 0, embeddings that are not two equal finite floating-point (N, D), a batch of
1 over all ranks.
"""

from torch import Tensor, nn

from sslmed_dist.arguments import require_positive, require_share
from sslmed_dist.losses import batch_statistics, pairs, whitening


def agreement(x0: Tensor, x1: Tensor, shrinkage: float, eps: float, stop_gradient: bool) -> Tensor:
    """sum_i (1 - c_i)^2 over the d columns of two (n, d), each standardised and whitened; a scalar, float64."""
    scores = (batch_statistics.standard_scores(x.double(), eps, dim=0) for x in (x0, x1))
    h0, h1 = (whitening.whiten(x, shrinkage, eps, stop_gradient) for x in scores)
    return (1.0 - (h0 * h1).mean(dim=0)).square().sum()


def zero_fcl(z0: Tensor, z1: Tensor, shrinkage: float = 0.1, eps: float = 1e-5, stop_gradient: bool = True) -> Tensor:
    """Zero-CL along the features: the loss of this module with the samples as rows."""
    require_share("shrinkage", shrinkage)
    require_positive("eps", eps)
    with pairs.full_precision(z0):
        x0, x1 = batch_statistics.gather_views(z0, z1)
        return agreement(x0, x1, shrinkage, eps, stop_gradient).to(x0.dtype)


def zero_icl(z0: Tensor, z1: Tensor, shrinkage: float = 0.1, eps: float = 1e-5, stop_gradient: bool = True) -> Tensor:
    """Zero-CL along the samples: the loss of this module with the features as rows. ``ValueError`` also for D < 2."""
    require_share("shrinkage", shrinkage)
    require_positive("eps", eps)
    with pairs.full_precision(z0):
        x0, x1 = batch_statistics.gather_views(z0, z1)
        if x0.shape[1] < 2:
            raise ValueError(f"z0: expected at least 2 dimensions (standardised over them), got {x0.shape[1]}")
        return agreement(x0.T, x1.T, shrinkage, eps, stop_gradient).to(x0.dtype)


class ZeroFCL(nn.Module):
    """Zero-FCL of Zero-CL (Zhang et al. 2022): two views agree after whitening along the features.

    (z0, z1) -> scalar, as ``zero_fcl``. ``shrinkage`` in [0, 1], ``eps`` > 0;
    ``stop_gradient``: the matrix A^(-1/2) is a constant.
    """

    def __init__(self, shrinkage: float = 0.1, eps: float = 1e-5, stop_gradient: bool = True) -> None:
        super().__init__()
        self.shrinkage = require_share("shrinkage", shrinkage)
        self.eps = require_positive("eps", eps)
        self.stop_gradient = stop_gradient

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        return zero_fcl(z0, z1, self.shrinkage, self.eps, self.stop_gradient)


class ZeroICL(nn.Module):
    """Zero-ICL of Zero-CL (Zhang et al. 2022): two views agree after whitening along the samples.

    (z0, z1) -> scalar, as ``zero_icl``. ``shrinkage`` in [0, 1], ``eps`` > 0;
    ``stop_gradient``: the matrix A^(-1/2) is a constant.
    """

    def __init__(self, shrinkage: float = 0.1, eps: float = 1e-5, stop_gradient: bool = True) -> None:
        super().__init__()
        self.shrinkage = require_share("shrinkage", shrinkage)
        self.eps = require_positive("eps", eps)
        self.stop_gradient = stop_gradient

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        return zero_icl(z0, z1, self.shrinkage, self.eps, self.stop_gradient)
