"""Collapse measures: cheap numbers that tell during training whether embeddings still say something."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sslmed_dist.losses import pairs

ROWS = 2048  # at most so many rows are measured: the uniformity's matrix of pairs (float64) is then 32 MiB


def embedding_std(x: Tensor) -> Tensor:
    """Standard deviation of unit rows x (N, D) over the batch, mean over dimensions, times sqrt(D).

    0 for a constant embedding, 1 for an isotropic one, never above 1. Source: Chen and He 2021, "Exploring simple
    Siamese representation learning", Sec. 4.1.
    """
    return x.std(dim=0, correction=0).mean() * math.sqrt(x.shape[1])


def effective_rank(x: Tensor) -> Tensor:
    """e^H, H the entropy of the singular values of x (N, D) over their sum: from 1 (collapse) to min(N, D).

    Source: Garrido et al. 2023, "RankMe", Eq. 1. The singular values are the roots of the eigenvalues of the smaller
    Gram matrix. ``x`` should be float64: in float32 the roots of the rounding errors would count as directions.
    """
    # The smaller of the two Gram matrices: both have the same eigenvalues other than 0.
    gram = x.T @ x if x.shape[0] >= x.shape[1] else x @ x.T
    singular = torch.linalg.eigvalsh(gram).clamp_min(0.0).sqrt()
    shares = singular / singular.sum().clamp_min(torch.finfo(x.dtype).tiny)
    entropy: Tensor = torch.special.entr(shares).sum()
    return entropy.exp()


def uniformity(x: Tensor) -> Tensor:
    """ln mean e^(-2 |x_i - x_j|^2) over pairs of different rows of unit x (N, D): 0 at collapse, at best near -4.

    Source: Wang and Isola 2020, "Understanding contrastive representation learning through alignment and uniformity
    on the hypersphere", Eq. 2 with t = 2.
    """
    exponents = (4.0 * x) @ x.T - 4.0  # (N, N): -2 |x_i - x_j|^2, where |x_i - x_j|^2 = 2 - 2 x_i . x_j
    exponents.fill_diagonal_(-math.inf)  # no row is paired with itself
    return exponents.flatten().logsumexp(0) - math.log(x.shape[0] * (x.shape[0] - 1))


def alignment(x0: Tensor, x1: Tensor) -> Tensor:
    """Mean squared distance of the two views' unit rows (N, D), in [0, 4]. Source: Wang and Isola 2020, Eq. 1."""
    return (x0 - x1).square().sum(dim=1).mean()


@torch.no_grad()
def collapse_measures(z0: Tensor, z1: Tensor) -> dict[str, Tensor]:
    """``embedding_std``, ``effective_rank``, ``uniformity`` and ``alignment`` of un-normalised embeddings (N, D).

    Float64 scalars on the device of ``z0``, without gradient. Nothing is gathered: pass what is to be measured. Of
    more than 2048 rows only the first 2048 are used. All but the alignment are means of the two views' values. Raises
    ``ValueError`` for fewer than 2 rows or embeddings that are not two equal floating-point (N, D).
    """
    pairs.check_embeddings(z0, z1)
    if z0.shape[0] < 2:
        raise ValueError(f"z0: expected at least 2 rows, got {z0.shape[0]}")
    x0, x1 = (F.normalize(z[:ROWS].double(), dim=1) for z in (z0, z1))
    each_view = {"embedding_std": embedding_std, "effective_rank": effective_rank, "uniformity": uniformity}
    measures = {name: (measure(x0) + measure(x1)) / 2 for name, measure in each_view.items()}
    return measures | {"alignment": alignment(x0, x1)}
