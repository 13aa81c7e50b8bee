"""The loss around a point and along lines: the Polyak-Lojasiewicz ratio, and cuts through parameter space."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sslmed_dist.losses.contrastive import DCL, Contr, NTXent
from sslmed_dist.losses.mio import Binary, Combo, MIOv1, MIOv2, MIOv3
from sslmed_dist.losses.temperature import Constant
from sslmed_dist.losses.weighted import WeightedSum

# Under one temperature convex in the cosines, falling in those of positives and rising in those of negatives.
CONVEX = (NTXent, Contr, DCL, MIOv1, MIOv2, MIOv3, Binary, Combo)


def polyak_lojasiewicz(squared_gradient: float, excess: float) -> float | None:
    """1/2 |gradient|^2 / (L - L*), the largest mu for which thesis Eq. 5.54 holds at this point.

    ``excess`` is L - L*; None where it is not positive, for then the ratio says nothing. Source: Karimi et al. 2016;
    thesis appendix A.
    """
    return 0.5 * squared_gradient / excess if excess > 0 else None


def lowest_value(loss: nn.Module, samples: int) -> float | None:
    """A value that ``loss`` cannot fall below for ``samples`` samples, None where none is known.

    It is the loss of the regular simplex: both views of a sample at one vertex, all cosines of negatives
    -1 / (samples - 1). Cosines of unit vectors cannot be lower on average, and the losses of ``CONVEX`` are convex in
    them. It is reached only where the embeddings have at least ``samples`` - 1 dimensions.
    """
    terms = list(loss.losses) if isinstance(loss, WeightedSum) else [loss]
    if not all(isinstance(term, CONVEX) and isinstance(term.temperature, Constant) for term in terms):
        return None
    if isinstance(loss, WeightedSum) and min(loss.weights) < 0:
        return None
    corners = torch.eye(samples, dtype=torch.float64) - 1.0 / samples
    with torch.no_grad():
        return float(loss(corners, corners))


@contextmanager
def moved(parameters: Sequence[Tensor]) -> Iterator[Callable[[Tensor], None]]:
    """A function that sets all parameters from one vector (P,); afterwards they are as they were."""
    before = torch.cat([it.detach().reshape(-1) for it in parameters])

    @torch.no_grad()
    def place(vector: Tensor) -> None:
        start = 0
        for it in parameters:
            it.copy_(vector[start : start + it.numel()].view_as(it))
            start += it.numel()

    try:
        yield place
    finally:
        place(before)


def along(
    loss: Callable[[], Tensor], parameters: Sequence[Tensor], origin: Tensor, way: Tensor, at: Sequence[float]
) -> list[float]:
    """The loss at ``origin`` + a ``way`` for every a of ``at``; ``origin`` and ``way`` are (P,). The parameters are put
    back."""
    values = []
    with moved(parameters) as place, torch.no_grad():
        for a in at:
            place(origin + a * way)
            values.append(float(loss()))
    return values
