"""What all losses on pairs of views share: checked input, unit rows in full precision, one matrix of scaled cosines.

The two views of a sample lie beside each other: sample i of rank r holds the rows 2 (r N + i) and 2 (r N + i) + 1 of
the gathered (2 W N, D) matrix. A rank's own rows are then one contiguous block, a row's partner is its index with the
last bit flipped, and one message gathers both views.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sslmed_dist import distributed


@dataclass(frozen=True)
class Pairs:
    """Unit embeddings: the own ``rows`` (2 N, D) and those of all ranks, ``columns`` (2 W N, D)."""

    rows: Tensor
    columns: Tensor

    @property
    def negatives(self) -> int:
        """How many negatives each row has: every row of every rank but itself and its partner."""
        return self.columns.shape[0] - 2


def check_temperature(temperature: float) -> float:
    """The temperature itself. ``ValueError`` unless it is a finite number above 0."""
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature: expected a finite number > 0, got {temperature}")
    return temperature


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
    """Rows divided by their L2 norm, in float32 (in float64 when ``z`` is float64)."""
    return F.normalize(z if z.dtype == torch.float64 else z.float(), dim=1)


def full_precision(z: Tensor) -> torch.autocast:
    """A region without autocast on the device of ``z``: half-precision cosines over a small temperature are noise."""
    return torch.autocast(device_type=z.device.type, enabled=False)


def gather_pairs(z0: Tensor, z1: Tensor) -> Pairs:
    """Normalise the local views z0, z1 (N, D) and gather both from all ranks in one message.

    Every rank must hold the same N. Raises ``ValueError`` for what ``check_embeddings`` refuses and for a batch of
    fewer than 2 samples over all ranks, which has no negatives.
    """
    check_embeddings(z0, z1)
    samples = z0.shape[0] * distributed.world_size()
    if samples < 2:
        raise ValueError(f"z0: expected at least 2 samples over all ranks (for negatives), got {samples}")
    views = torch.stack((unit_rows(z0), unit_rows(z1)), dim=1)
    return Pairs(views.flatten(0, 1), distributed.gather(views).flatten(0, 1))


def positive_logits(pairs: Pairs, temperature: float) -> Tensor:
    """Cosine of the two views over temperature, (N,): once per sample, as the two directions are equal."""
    return (pairs.rows[0::2] * pairs.rows[1::2]).sum(1) / temperature


def logits(pairs: Pairs, temperature: float, *, partner: bool) -> Tensor:
    """Cosines over temperature of own rows and all columns, (2 N, 2 W N), with -inf where a row meets itself.

    ``partner=False`` puts -inf at the row's other view as well. Excluded entries are overwritten by index: adding
    them and taking them off again would cancel e^(1/temperature) against the sum. exp and softplus of -inf, and
    their gradients, are exactly 0. The matrix is the caller's to overwrite.
    """
    matrix = (pairs.rows / temperature) @ pairs.columns.T
    row = torch.arange(pairs.rows.shape[0], device=matrix.device)
    own = row + distributed.rank() * pairs.rows.shape[0]
    matrix[row, own] = -math.inf
    if not partner:
        matrix[row, own ^ 1] = -math.inf
    return matrix
