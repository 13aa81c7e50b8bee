"""What the losses on statistics of the whole batch share: the views of all ranks, standard scores.

Such a loss is no mean over samples, so a rank cannot compute its part from its own rows alone. Two ways are used. Both
gather the embeddings in one message, whose backward pass sums over the W ranks:

- Every rank computes the loss of the whole batch (for whitening, whose costly part cannot be divided). The values are
  equal. The gradient that reaches a rank's rows is W times that of one process, and the mean over ranks takes the W
  out again.
- A sum over the columns of a D x D matrix is divided: a rank computes ``own_columns`` of it and multiplies by W.

Either way the mean over ranks of value and gradient is that of one process with the whole batch.
"""

import torch
from torch import Tensor

from sslmed_dist import distributed
from sslmed_dist.losses import pairs


def gather_views(z0: Tensor, z1: Tensor) -> tuple[Tensor, Tensor]:
    """Both views (N, D) of all W ranks: two (M, D) with M = W N, in float32 (in float64 when z0 is float64).

    Every rank must hold the same N. Raises ``ValueError`` for what ``pairs.check_embeddings`` refuses and for fewer
    than 2 samples over all ranks. On a CPU also for values that are not finite: all ranks see the same rows and raise
    together. (On a GPU that check would cost a synchronisation per step; there the loss is not finite and ``fit``
    stops.)
    """
    pairs.check_embeddings(z0, z1)
    samples = z0.shape[0] * distributed.world_size()
    if samples < 2:
        least = "expected at least 2 samples over all ranks"
        raise ValueError(f"z0: {least} (for batch statistics), got {samples}; plan.batch_size: 2 or more")
    views = torch.stack((z0, z1), dim=1)  # (N, 2, D), so that one message carries both
    views = distributed.gather(views if views.dtype == torch.float64 else views.float())  # gradients add in float32
    x0, x1 = views[:, 0], views[:, 1]
    if views.device.type == "cpu":
        for name, x in (("z0", x0), ("z1", x1)):
            if not bool(x.isfinite().all()):
                row = int((~x.isfinite()).any(dim=1).nonzero()[0])
                raise ValueError(f"{name}: expected finite embeddings, row {row} of {samples} (all ranks) is not")
    return x0, x1


def standard_scores(x: Tensor, eps: float, dim: int) -> Tensor:
    """(x - mean) / sqrt(variance + eps) of a matrix along ``dim``, in the shape of ``x``. The variance divides by n, as
    in batch norm; constant values give 0."""
    centred = x - x.mean(dim=dim, keepdim=True)
    return centred * (centred.square().mean(dim=dim, keepdim=True) + eps).rsqrt()


def own_columns(width: int) -> slice:
    """This rank's share of ``width`` columns. The ranks' shares are consecutive and cover every column once; with more
    ranks than columns some are empty."""
    world, rank = distributed.world_size(), distributed.rank()
    return slice(width * rank // world, width * (rank + 1) // world)


def shares(matrix: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """What this rank's columns of a (D, D) matrix contain: diagonal entries (n,), and the sum of squares off it.

    ``matrix`` (D, n) holds the ``columns`` of the (D, D) one. The diagonal is set to 0 before squaring; subtracting its
    squares afterwards would lose digits.
    """
    diagonal = matrix[columns].diagonal()
    off = matrix.clone()
    off[columns].diagonal().zero_()
    return diagonal, off.square().sum()
