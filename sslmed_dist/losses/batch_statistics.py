"""What the losses on statistics of the whole batch share: the views of all ranks, standard scores.

Such a loss is no mean over samples, so a rank cannot compute its part from its own rows. Two ways are used, both with
one message, the gathered embeddings, whose backward sums over ranks:

- every rank computes the loss of the whole batch (whitening: what is costly cannot be divided). The values are equal,
  and the gradient that reaches a rank's rows is W times that of one process, which the mean over ranks divides by W;
- a sum over columns of a D x D matrix is divided: a rank computes ``own_columns`` of it and multiplies by W.

Either way the mean over ranks of value and gradient is that of one process with the whole batch.
"""

import torch
from torch import Tensor

from sslmed_dist import distributed
from sslmed_dist.losses import pairs


def gather_views(z0: Tensor, z1: Tensor) -> tuple[Tensor, Tensor]:
    """Both views of all ranks, two (M, D) with M = W N, in float32 (in float64 when z0 is float64).

    Every rank must hold the same N. Raises ``ValueError`` for what ``pairs.check_embeddings`` refuses and for fewer
    than 2 samples over all ranks; on a CPU also for values that are not finite (on a GPU that would cost a
    synchronisation per step; there the loss is not finite and ``fit`` stops). All ranks see the same rows and raise
    together.
    """
    pairs.check_embeddings(z0, z1)
    samples = z0.shape[0] * distributed.world_size()
    if samples < 2:
        raise ValueError(f"z0: expected at least 2 samples over all ranks (for batch statistics), got {samples}")
    views = torch.stack((z0, z1), dim=1)
    views = distributed.gather(views if views.dtype == torch.float64 else views.float())  # gradients add in float32
    x0, x1 = views[:, 0], views[:, 1]
    if views.device.type == "cpu":
        for name, x in (("z0", x0), ("z1", x1)):
            if not bool(x.isfinite().all()):
                row = int((~x.isfinite()).any(dim=1).nonzero()[0])
                raise ValueError(f"{name}: expected finite embeddings, row {row} of {samples} (all ranks) is not")
    return x0, x1


def standard_scores(x: Tensor, eps: float, dim: int) -> Tensor:
    """(x - mean) / sqrt(variance + eps) along ``dim``, variance with 1/n as in batch norm. Constant values give 0."""
    centred = x - x.mean(dim=dim, keepdim=True)
    return centred * (centred.square().mean(dim=dim, keepdim=True) + eps).rsqrt()


def own_columns(width: int) -> slice:
    """This rank's share of ``width`` columns: consecutive, over all ranks a partition, empty where W > width."""
    world, rank = distributed.world_size(), distributed.rank()
    return slice(width * rank // world, width * (rank + 1) // world)


def shares(matrix: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """The squares of a (D, D) matrix's own columns: the diagonal's (n,), and the sum of those off it.

    ``matrix`` (D, n) holds the ``columns`` of the whole one. The diagonal is left out before squaring, not
    subtracted afterwards, which would cancel.
    """
    diagonal = matrix[columns].diagonal()
    off = matrix.clone()
    off[columns].diagonal().zero_()
    return diagonal, off.square().sum()
