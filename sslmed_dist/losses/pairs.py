"""What all losses on pairs of views share: checked input, and unit rows in full precision.

The two views of a sample lie beside each other: sample i of rank r holds the rows 2 (r N + i) and 2 (r N + i) + 1 of
the (2 W N, D) matrix that W ranks of N samples gather. So a rank's own rows are one contiguous block, the index of a
row's partner (its other view) is its own with the last bit flipped, and one message gathers both views.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslmed_dist import distributed
from sslmed_dist.losses import temperature as temperatures
from sslmed_dist.losses.similarity import Similarity


@dataclass(frozen=True)
class Pairs:
    """This rank's unit ``rows`` (2 N, D), the views of a sample beside each other, and how many ``samples`` all ranks
    have together."""

    rows: Tensor
    samples: int

    @property
    def cosines(self) -> Tensor:
        """Cosine of the two views of each of this rank's samples, (N,): the positive pairs."""
        return (self.rows[0::2] * self.rows[1::2]).sum(1)

    @property
    def negatives(self) -> int:
        """How many negatives each row has: all rows of all ranks but itself and its partner."""
        return 2 * self.samples - 2


def check_embeddings(z0: Tensor, z1: Tensor) -> None:
    """``ValueError`` unless z0 and z1 are floating-point (N, D) of one shape and dtype, with D > 0."""
    for name, z in (("z0", z0), ("z1", z1)):
        if z.ndim != 2 or z.shape[1] == 0:
            raise ValueError(f"{name}: expected a matrix (N, D) of N embeddings with D > 0, got {tuple(z.shape)}")
        if not z.is_floating_point():
            raise ValueError(f"{name}: expected a floating-point dtype (float64, float32 or half), got {z.dtype}")
    if z0.shape != z1.shape or z0.dtype != z1.dtype:
        raise ValueError(
            f"z1: expected the shape and dtype of z0, {tuple(z0.shape)} {z0.dtype}, got {tuple(z1.shape)} {z1.dtype}"
        )


def unit_rows(z: Tensor) -> Tensor:
    """The rows of ``z`` (N, D) divided by their L2 norm, (N, D) float32 (float64 when ``z`` is float64)."""
    return F.normalize(z if z.dtype == torch.float64 else z.float(), dim=1)


def full_precision(z: Tensor) -> torch.autocast:
    """A region without autocast on the device of ``z``: a half-precision cosine over a small temperature is noise."""
    return torch.autocast(device_type=z.device.type, enabled=False)


def unit_pairs(z0: Tensor, z1: Tensor) -> Pairs:
    """``Pairs`` of this rank's views z0, z1 (N, D). Every rank must hold the same N.

    Raises ``ValueError`` for what ``check_embeddings`` refuses and for a batch of fewer than 2 samples over all ranks,
    which has no negatives. In one process on a CPU also for values that are not finite. Elsewhere that check would cost
    a synchronisation per step or leave the other ranks waiting; there the loss is not finite and ``fit`` stops.
    """
    check_embeddings(z0, z1)
    samples = z0.shape[0] * distributed.world_size()
    if samples < 2:
        least = "expected at least 2 samples over all ranks"
        raise ValueError(f"z0: {least} (for negatives), got {samples}; plan.batch_size: 2 or more")
    # The first row that is not finite is named.
    if z0.device.type == "cpu" and not distributed.active():
        for name, z in (("z0", z0), ("z1", z1)):
            if not bool(z.isfinite().all()):
                row = int((~z.isfinite()).any(dim=1).nonzero()[0])
                raise ValueError(f"{name}: expected finite embeddings, row {row} of {len(z)} is not")
    return Pairs(torch.stack((unit_rows(z0), unit_rows(z1)), dim=1).flatten(0, 1), samples)  # rows (2 N, D)


class PairLoss(nn.Module, ABC):
    """A loss of the pairs of a batch under a temperature: (z0, z1) -> scalar, float32 (float64 for float64 input).

    ``z0``, ``z1``: un-normalised embeddings (N, D) of this rank's two views. Every rank returns the mean over its own
    rows against the rows of all ranks, so the mean over ranks of the value and of the gradient is that of one process
    with the whole batch. ``temperature`` is a number > 0, an entry of ``TEMPERATURES`` or a ``Temperature``.
    ``ValueError`` for a temperature out of range, embeddings that are not two equal finite floating-point (N, D), or a
    batch of 1 over all ranks. Memory is linear in the batch (see ``losses.tiles``).
    """

    squared_distance = False

    def __init__(self, temperature: temperatures.Leaf) -> None:
        super().__init__()
        self.temperature = temperatures.build(temperature)

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        with full_precision(z0):
            return self.value(unit_pairs(z0, z1), Similarity(self.temperature, self.squared_distance))

    @abstractmethod
    def value(self, pairs: Pairs, similarity: Similarity) -> Tensor:
        """This rank's value of the loss."""


def advance(loss: nn.Module, epoch: float) -> None:
    """Tell the temperatures in ``loss`` (or in its terms) how many epochs are done."""
    for module in loss.modules():
        if isinstance(module, PairLoss):
            module.temperature.advance(epoch)
