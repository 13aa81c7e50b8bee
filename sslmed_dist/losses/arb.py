"""ARB: each view's features align with the nearest orthonormal base of the other view's."""

import torch
from torch import Tensor, nn

from sslmed_dist.arguments import require_positive
from sslmed_dist.losses import batch_statistics, pairs, whitening


def nearest_base(x: Tensor, groups: int, eps: float) -> Tensor:
    """The base b = x (x^T x / M + eps I)^(-1/2) nearest to ``x`` (M, D), (M, D); of each of ``groups`` equal parts of
    the features by itself."""
    parts = x.chunk(groups, dim=1)
    return torch.cat([whitening.whiten(part, 0.0, eps, stop_gradient=False) for part in parts], dim=1)


def arb(z0: Tensor, z1: Tensor, groups: int = 1, eps: float = 1e-5, stop_gradient: bool = True) -> Tensor:
    """sum_i (1 - <x0_i, b1_i> / M)^2 + sum_i (1 - <x1_i, b0_i> / M)^2 over the D features i.

    Source: Zhang et al. 2022, "Align representations with base: a new approach to self-supervised learning" (CVPR),
    as in the authors' ImageNet code: x_i are the M batch values of feature i, standardised (variance 1/M, ``eps`` in
    the root); b, with <b_i, b_j> = M delta_ij, is the base nearest to x, b = x (x^T x / M + eps I)^(-1/2). The base is
    a constant in the backward pass; ``stop_gradient=False`` differentiates through it. ``groups`` divides the features
    into equal parts with a base each; the code's shuffling of features before that (``--swap``) is left out. With
    D >= M (per group) the features cannot be orthonormal over the batch and b is the nearest matrix of full rank.
    ``z0``, ``z1``: un-normalised embeddings (N, D) of this rank; returns a scalar, float32 (float64 for float64
    input), computed in float64. Embeddings of all ranks are gathered and every rank returns the loss of the whole
    batch. Constant embeddings give 2 D and a finite gradient. ``ValueError`` for ``groups`` that do not divide D,
    ``eps`` <= 0, embeddings that are not two equal finite floating-point (N, D), or a batch of 1 over all ranks.
    """
    check_groups(groups)
    require_positive("eps", eps)
    with pairs.full_precision(z0):
        views = batch_statistics.gather_views(z0, z1)
        width = views[0].shape[1]
        if width % groups:
            raise ValueError(f"groups: expected a divisor of the {width} embedding dimensions, got {groups}")
        x0, x1 = (batch_statistics.standard_scores(x.double(), eps, dim=0) for x in views)
        b0, b1 = (nearest_base(x.detach() if stop_gradient else x, groups, eps) for x in (x0, x1))
        # The mean over the batch of x_i b_i is 1 where feature i lies along its base vector.
        forth = (1.0 - (x0 * b1).mean(dim=0)).square().sum()
        back = (1.0 - (x1 * b0).mean(dim=0)).square().sum()
        return (forth + back).to(views[0].dtype)


def check_groups(groups: int) -> int:
    """The number itself. ``ValueError`` unless it is at least 1."""
    if groups < 1:
        raise ValueError(f"groups: expected an integer >= 1, got {groups}")
    return groups


class ARB(nn.Module):
    """ARB (Zhang et al. 2022): each view's features align with the nearest orthonormal base of the other view's.

    (z0, z1) -> scalar, as ``arb``. ``groups`` >= 1 of features with bases of their own, ``eps`` > 0.
    ``stop_gradient``: the whitening matrix is a constant.
    """

    def __init__(self, groups: int = 1, eps: float = 1e-5, stop_gradient: bool = True) -> None:
        super().__init__()
        self.groups = check_groups(groups)
        self.eps = require_positive("eps", eps)
        self.stop_gradient = stop_gradient

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        return arb(z0, z1, self.groups, self.eps, self.stop_gradient)
