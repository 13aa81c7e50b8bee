"""Clipping and noise on the change of a model, on a grid, so that nothing of its low-order digits is left.

An update w - g of all learned tensors (running statistics are none: ``is_statistic``) becomes whole numbers k, steps of
the grid, in two moves:

    shortened   k = (w - g) min(1, C / |w - g|) / step, each rounded towards zero
    noised      k + X, X discrete Gaussian with standard deviation z C / step = 2^24 (``discrete_gaussian``)

Rounding towards zero makes no vector longer, and the norm of k is compared with C / step in whole numbers, so the
bound that epsilon rests on holds exactly, not up to a rounding. The sum of two whole numbers is exact, too. What is
released is g + step (k + X), computed from the sum and from g alone, which its receiver has: whatever that rounds, it
rounds without the data. So the guarantee of the integers is that of the answer.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslmed_dist.federation import accountant, discrete_gaussian
from sslmed_dist.federation.discrete_gaussian import Numbers
from sslmed_dist.federation.shared import Arrays, is_statistic

POWER = discrete_gaussian.MOST_POWER
TAKEN_BACK = 1e-9  # of a scale that makes a change too long
Floats = NDArray[np.float64]
Steps = dict[str, Numbers]  # a change in steps of the grid, by tensor


@dataclass(frozen=True)
class Mechanism:
    """Clipping to the norm ``clip`` (C) and noise of ``noise_multiplier`` (z) times it, both > 0. With z from 0.01 on
    (``federated_section.LEAST_NOISE``) all sums of squares fit into 63 bits."""

    clip: float
    noise_multiplier: float

    @property
    def step(self) -> float:
        """The distance of two neighbours of the grid."""
        return self.noise_multiplier * self.clip / (1 << POWER)

    @property
    def most(self) -> int:
        """The largest sum of squares of a shortened change, in steps of the grid: floor((C / step)^2)."""
        return math.floor((Fraction(1 << POWER) / Fraction(self.noise_multiplier)) ** 2)

    def shortened(self, after: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> Steps:
        """The change of all learned tensors from ``before`` to ``after``, finite ones, at most ``clip`` long."""
        changes = {key: change(after[key], before[key]) for key in learned(before)}
        scale = factor(changes, self.clip) / self.step
        while True:
            steps = {key: np.trunc(value * scale).astype(np.int64) for key, value in changes.items()}
            if sum(int(np.square(k).sum()) for k in steps.values()) <= self.most:
                return steps
            scale *= 1.0 - TAKEN_BACK  # the scale was rounded up

    def noised(self, steps: Steps) -> Steps:
        """``steps`` with noise."""
        return {key: value + discrete_gaussian.gaussian(value.size, POWER) for key, value in steps.items()}

    def released(self, steps: Steps, before: Mapping[str, Tensor], count: int = 1) -> Arrays:
        """``before`` changed by one ``count``-th of ``steps``, in the types of ``before``; statistics as they were."""
        found = dict(before)
        for key, value in steps.items():
            moved = torch.from_numpy(value * (self.step / count)).reshape(before[key].shape)
            found[key] = (before[key].double() + moved).to(before[key].dtype)
        return found

    def private(self, after: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> Arrays:
        """``after`` as it may leave, shortened and noised; statistics as in ``before``."""
        return self.released(self.noised(self.shortened(after, before)), before)

    def noise_norm(self, tensors: Mapping[str, Tensor], count: int = 1) -> float:
        """The L2 norm that the noise on one ``count``-th of a change of all learned ``tensors`` has, to a percent."""
        numbers = sum(tensors[key].numel() for key in learned(tensors))
        return self.noise_multiplier * self.clip * math.sqrt(numbers) / count


def learned(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors that a change is made of."""
    return [key for key, tensor in tensors.items() if tensor.is_floating_point() and not is_statistic(key)]


def statistics(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the others: noise would make variances negative, so they are withheld."""
    return [key for key in tensors if key not in set(learned(tensors))]


def require_learned(sent: Mapping[str, Tensor]) -> None:
    """``ValueError`` where running statistics of norms would be averaged under ``federated.privacy``. They are
    withheld, so they would stay what they were before the first round."""
    withheld = statistics(sent)
    if withheld:
        raise ValueError(
            f"federated.privacy: {withheld[0]} ({len(withheld)} such) would stay as before the first round, because "
            "running statistics are not noised; allowed: federated.strategy fedbn, or a method without batch norm"
        )


def words(spent: float, delta: float) -> str:
    """The epsilon of what was spent, with all that makes it a statement."""
    return f"epsilon {accountant.epsilon(spent, delta):.3g} at delta {delta:g}, for {accountant.UNIT}"


def change(after: Tensor, before: Tensor) -> Floats:
    """after - before in float64, flat. A copy, so nothing of either tensor is written to."""
    flat: Floats = (after.double() - before.double()).reshape(-1).numpy()
    return flat


def factor(changes: Mapping[str, Floats], clip: float) -> float:
    """min(1, C / norm) over all changes together."""
    norm = math.sqrt(math.fsum(float(np.square(value).sum()) for value in changes.values()))
    return min(1.0, clip / norm) if norm > 0.0 else 1.0


def clipped(after: Mapping[str, Tensor], before: Mapping[str, Tensor], clip: float) -> Arrays:
    """``after`` with the change of all learned tensors shortened to the norm ``clip``, without noise. A change that is
    short enough keeps its bits."""
    changes = {key: change(after[key], before[key]) for key in learned(before)}
    scale = factor(changes, clip)
    if scale == 1.0:
        return dict(after)
    found = dict(after)
    for key, value in changes.items():
        moved = torch.from_numpy(value * scale).reshape(before[key].shape)
        found[key] = (before[key].double() + moved).to(before[key].dtype)
    return found
