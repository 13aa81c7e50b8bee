"""From cosines to logits under a temperature: a pair's logit, and a tile of them with their slopes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sslmed_dist.losses.products import by_onednn, onednn_product
from sslmed_dist.losses.temperature import Temperature

# e^logit and e^-lse stay in float32's range, with digits to spare, while no logit is larger than this.
LARGEST_LOGIT = 60.0


def cosines_of(rows: Tensor, columns: Tensor, out: Tensor) -> Tensor:
    """rows @ columns.T, (R, C), in ``out`` or in new memory."""
    return onednn_product(rows, columns.T) if by_onednn(rows, columns) else torch.mm(rows, columns.T, out=out)


@dataclass(frozen=True)
class Similarity:
    """A pair's logit as a function of its cosine: c / tau(c), or -|x - y|^2 / tau(c) = (2 c - 2) / tau(c) of unit rows.

    ``scale`` multiplies the temperature (MACL's adaptation to the batch): a number or a 0-d tensor.
    """

    temperature: Temperature
    squared_distance: bool = False
    scale: Tensor | float = 1.0

    def logits(self, c: Tensor) -> Tensor:
        """The logits of cosines ``c`` of any shape, in that shape, by operations that autograd can follow."""
        tau = self.temperature.tau(c if self.temperature.gradient else c.detach())
        numerator = 2.0 * c - 2.0 if self.squared_distance else c
        return numerator / (tau * self.scale)

    def tile(self, rows: Tensor, columns: Tensor, out: Tensor, unit: float = 1.0) -> tuple[Tensor, Tensor | None]:
        """``unit`` times the logits (R, C) of unit ``rows`` (R, D) with ``columns`` (C, D), and d logit / dc (R, C):
        None where it is ``uniform_slope`` for all pairs. ``out`` (R, C) may be overwritten, and hold the logits."""
        uniform = self.uniform_slope()
        if uniform is not None:
            logits = cosines_of(rows * (uniform * unit), columns, out)
            # The slope is (c - 1), or c.
            return (logits.sub_(uniform * unit) if self.squared_distance else logits), None
        # A logit is (factor c + offset) / (scale tau).
        factor, offset = (2.0, -2.0) if self.squared_distance else (1.0, 0.0)
        cosines = cosines_of(rows, columns, out)
        taus = self.temperature.tau(cosines)
        assert isinstance(taus, Tensor)
        taus.mul_(self.scale / unit)
        logits = (cosines * factor).add_(offset).div_(taus) if offset else cosines / taus
        if not self.temperature.gradient:
            return logits, taus.reciprocal_().mul_(factor / unit)
        # The quotient rule: d logit / dc = (factor - logit scale dtau/dc) / (scale tau). ``logits`` and the divisor
        # hold the unit, which is taken out of both terms of the numerator.
        tau_slope = self.temperature.slope(cosines)
        assert isinstance(tau_slope, Tensor)
        return logits, tau_slope.mul_(logits).mul_(-1.0 * self.scale / unit**2).add_(factor / unit).div_(taus)

    def uniform_slope(self) -> Tensor | float | None:
        """d logit / dc where the temperature is one number for all pairs, None where it depends on the pair."""
        tau = self.temperature.tau(torch.zeros(()))  # any cosine tells which of the two it is
        return None if isinstance(tau, Tensor) else (2.0 if self.squared_distance else 1.0) / (tau * self.scale)

    @property
    def small(self) -> bool:
        """Whether every |logit| stays below ``LARGEST_LOGIT``, so that its exponential needs no shift."""
        bound = (4.0 if self.squared_distance else 1.0) / self.temperature.smallest
        return isinstance(self.scale, float) and bound * max(1.0, 1.0 / self.scale) < LARGEST_LOGIT
