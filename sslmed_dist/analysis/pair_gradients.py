"""How hard a loss pulls or pushes each pair: its derivative by every cosine of a batch."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from sslmed_dist.losses.contrastive import DCL, NTXent
from sslmed_dist.losses.mio import MIOv1, MIOv2, MIOv3
from sslmed_dist.losses.pairs import PairLoss, unit_pairs
from sslmed_dist.losses.similarity import Similarity
from sslmed_dist.losses.tiles import softplus
from sslmed_dist.losses.weighted import WeightedSum

# A loss of the logits (2 N, 2 N), and which pairs are positive and negative, both bool of that shape; a scalar.
Dense = Callable[[Tensor, Tensor, Tensor], Tensor]


def nt_xent(logits: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Mean over rows of ln sum e^s over the positive and the negatives, minus the positive's s."""
    return logits.masked_fill(~(positive | negative), -torch.inf).logsumexp(1).mean() - logits[positive].mean()


def dcl(logits: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """``nt_xent`` without the positive in the sum."""
    return logits.masked_fill(~negative, -torch.inf).logsumexp(1).mean() - logits[positive].mean()


def mio_v1(logits: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Binary cross-entropy, positives and negatives averaged apart."""
    return softplus(-logits[positive]).mean() + softplus(logits[negative]).mean()


def mio_v2(logits: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Mean ln(1 + e^s) of the negatives minus the mean s of the positives."""
    return softplus(logits[negative]).mean() - logits[positive].mean()


def mio_v3(logits: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Mean e^s of the negatives minus the mean s of the positives."""
    return logits[negative].exp().mean() - logits[positive].mean()


# Each is the equation of its class in ``losses``, over a matrix that fits into memory; the tests compare the two.
DENSE: Mapping[type[PairLoss], Dense] = {NTXent: nt_xent, DCL: dcl, MIOv1: mio_v1, MIOv2: mio_v2, MIOv3: mio_v3}


def kinds(rows: int) -> tuple[Tensor, Tensor]:
    """Which ordered pairs of ``rows`` rows are positive, and which negative: bool (rows, rows). The two views of a
    sample lie beside each other."""
    row = torch.arange(rows)
    positive = torch.zeros(rows, rows, dtype=torch.bool)
    positive[row, row ^ 1] = True
    return positive, ~(positive | torch.eye(rows, dtype=torch.bool))


def pair_gradients(loss: nn.Module, z0: Tensor, z1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(cosines, derivatives, value) of a batch of embeddings z0, z1 (N, D).

    Both matrices are (2 N, 2 N), the two views of a sample beside each other. Entry [n, m] of the derivatives is
    dL / dc_nm of the ordered pair, row n being the anchor: thesis Eq. 6.2 and 6.3 for NT-Xent, and Eq. 6.6 and 6.7
    under a temperature that depends on the cosine. ``value`` is the loss. ``ValueError`` for a loss without a dense
    equation in ``DENSE``, of a weighted sum for any of its terms.
    """
    rows = unit_pairs(z0, z1).rows.detach()
    cosines = (rows @ rows.T).requires_grad_()
    value = dense_value(loss, cosines, *kinds(len(rows)))
    return cosines.detach(), torch.autograd.grad(value, cosines)[0], value.detach()


def dense_value(loss: nn.Module, cosines: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """The loss of a matrix of cosines (2 N, 2 N), a scalar. ``ValueError`` as ``pair_gradients``."""
    if isinstance(loss, WeightedSum):
        terms = [
            weight * dense_value(term, cosines, positive, negative)
            for weight, term in zip(loss.weights, loss.losses, strict=True)
        ]
        return torch.stack(terms).sum()
    if not isinstance(loss, PairLoss) or type(loss) not in DENSE:
        allowed = ", ".join(sorted(kind.__name__ for kind in DENSE))
        raise ValueError(f"loss: gradients by pair are known of {allowed} and sums of these, got {type(loss).__name__}")
    itself = torch.eye(len(cosines), dtype=torch.bool)
    logits = Similarity(loss.temperature, loss.squared_distance).logits(cosines.masked_fill(itself, 0.0))
    return DENSE[type(loss)](logits, positive, negative)
