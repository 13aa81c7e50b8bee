"""W-MSE: the squared distance of two views whose batch was whitened."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslmed_dist import distributed
from sslmed_dist.arguments import require_share
from sslmed_dist.losses import batch_statistics, pairs


def cholesky_whiten(name: str, x: Tensor, shrinkage: float) -> Tensor:
    """L^-1 (x - mean) of ``x`` (n, D) float64, (n, D), with L L^T = (1 - shrinkage) Cov(x) + shrinkage I, Cov unbiased.

    ``ValueError`` that begins with ``name`` where that matrix is singular to the precision of float64.
    """
    mean = x.mean(dim=0)
    centred = x - mean
    covariance = centred.T @ centred / (x.shape[0] - 1)
    eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    shrunk = (1.0 - shrinkage) * covariance + shrinkage * eye
    factor, failed = torch.linalg.cholesky_ex(shrunk)
    # A squared pivot is a feature's variance that the features before it do not explain; rounding leaves about this.
    rounding = x.shape[1] * torch.finfo(x.dtype).eps * (shrunk.diagonal() + mean.square())
    if bool((failed != 0) | (factor.diagonal().square() <= rounding).any()):
        raise ValueError(
            f"{name}: expected embeddings of full rank, got a batch of {x.shape[0]} whose {x.shape[1]} dimensions are "
            "constant or linearly dependent; shrinkage > 0 allows them"
        )
    # Forward substitution in place of an inverse: L y = centred^T.
    whitened: Tensor = torch.linalg.solve_triangular(factor, centred.T, upper=False).T
    return whitened


def slices(samples: int, size: int, iterations: int, device: torch.device) -> list[Tensor | slice]:
    """The rows of each sub-batch: one slice of everything, or ``iterations`` random divisions into parts of ``size``.

    The parts are int64 (size,). They are drawn from torch's global generator (which ``fit`` reseeds per step); all
    ranks take rank 0's draw.
    """
    if size == samples:
        return [slice(None)]
    orders = torch.stack([torch.randperm(samples) for _ in range(iterations)]).to(device)  # (iterations, samples)
    orders = distributed.gather(orders[None])[0]  # of all ranks' draws, that of rank 0
    return list(orders.reshape(-1, size).unbind(0))


def wmse(z0: Tensor, z1: Tensor, size: int | None = None, iterations: int = 1, shrinkage: float = 0.0) -> Tensor:
    """Mean over samples of |u0 / |u0| - u1 / |u1||^2 = 2 - 2 cos(u0, u1), u the whitened embeddings of each view.

    Source: Ermolov et al. 2021, "Whitening for self-supervised representation learning", Sec. 3, normalised distance:
    u = L^-1 (z - mean), L the Cholesky factor of the view's covariance over a sub-batch. Batch slicing: the batch is
    divided at random into sub-batches of ``size`` rows, ``iterations`` times. ``size`` None is one sub-batch, the whole
    batch over all ranks; all iterations would be the same, and one is computed. The whitened axes depend on the order
    of the dimensions, as in the paper. ``shrinkage`` s takes (1 - s) Cov + s I in place of Cov.
    ``z0``, ``z1``: un-normalised embeddings (N, D) of this rank; returns a scalar in [0, 4], float32 (float64 for
    float64 input), computed in float64. Embeddings of all ranks are gathered and every rank returns the loss of the
    whole batch. ``ValueError`` for a sub-batch of fewer than 2 D rows (the paper's sub-batches have 2 D), a batch that
    is no multiple of ``size``, ``iterations`` < 1, ``shrinkage`` outside [0, 1], embeddings without full rank at
    ``shrinkage`` 0, or embeddings that are not two equal finite floating-point (N, D).
    """
    check_slicing(size, iterations)
    require_share("shrinkage", shrinkage)
    with pairs.full_precision(z0):
        views = batch_statistics.gather_views(z0, z1)
        samples, width = views[0].shape
        rows = samples if size is None else size
        if samples % rows:
            raise ValueError(f"size: expected a divisor of the batch of {samples} over all ranks, got {rows}")
        if rows < 2 * width:
            what = "size" if size is not None else "z0: batch over all ranks"
            raise ValueError(f"{what}: expected at least {2 * width} rows, twice the {width} dimensions, got {rows}")
        x0, x1 = (x.double() for x in views)
        # Each sub-batch is whitened by its own statistics, each view by itself.
        parts = slices(samples, rows, iterations, z0.device)
        cosines = [
            F.cosine_similarity(cholesky_whiten("z0", x0[part], shrinkage), cholesky_whiten("z1", x1[part], shrinkage))
            for part in parts
        ]
        return (2.0 - 2.0 * torch.cat(cosines).mean()).to(views[0].dtype)


def check_slicing(size: int | None, iterations: int) -> None:
    """``ValueError`` unless ``size`` is None or at least 2, and ``iterations`` at least 1."""
    if size is not None and size < 2:
        raise ValueError(f"size: expected an integer >= 2 or null, got {size}")
    if iterations < 1:
        raise ValueError(f"iterations: expected an integer >= 1, got {iterations}")


class WMSE(nn.Module):
    """W-MSE (Ermolov et al. 2021): the squared distance of two views whose batch was whitened.

    (z0, z1) -> scalar, as ``wmse``. ``size``: of a sub-batch that is whitened, null for the whole batch;
    ``iterations`` >= 1 of dividing it; ``shrinkage`` in [0, 1] towards the identity.
    """

    def __init__(self, size: int | None = None, iterations: int = 1, shrinkage: float = 0.0) -> None:
        super().__init__()
        check_slicing(size, iterations)
        self.size, self.iterations = size, iterations
        self.shrinkage = require_share("shrinkage", shrinkage)

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        return wmse(z0, z1, self.size, self.iterations, self.shrinkage)
