"""Temperatures of contrastive losses: a number, a schedule over epochs, or a function of the pair's cosine (DySTreSS).

In a configuration, ``temperature: {name: ..., ...}`` of a loss names an entry of ``TEMPERATURES``; a plain number is
``constant``. A program may pass the object itself: ``MIOv3(temperature=Dystress(0.07, 0.2))``. With c a pair's cosine
and tau(c) its temperature, the pair's logit is c / tau(c). The gradient flows through tau as well (thesis Eq. 6.6-6.7):
d(c/tau)/dc = (tau - c tau') / tau^2. With ``gradient: false`` tau is a constant in the backward pass, and
d(c/tau)/dc = 1/tau.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from sslmed_dist import registry
from sslmed_dist.arguments import require_positive


def check_range(low: float, high: float) -> tuple[float, float]:
    """``low`` and ``high`` as floats. ``ValueError`` unless 0 < low <= high."""
    low, high = require_positive("temperature.low", low), require_positive("temperature.high", high)
    if low > high:
        raise ValueError(f"temperature.low: expected a number <= high = {high}, got {low}")
    return float(low), float(high)


class Temperature(ABC):
    """A positive function tau(c) of the cosine c.

    ``smallest`` is a lower bound of tau. ``gradient`` says whether the loss differentiates through tau. A subclass may
    change no tensor that it is given, and returns new memory that its caller may overwrite.
    """

    smallest: float
    gradient: bool = True

    def advance(self, epoch: float) -> None:
        """Told before each step how many epochs are done. Nothing by default."""
        return None

    @abstractmethod
    def tau(self, c: Tensor) -> Tensor | float:
        """The temperatures of pairs of cosine ``c`` (any shape), in that shape; one number when all have the same."""

    @abstractmethod
    def slope(self, c: Tensor) -> Tensor | float:
        """d tau / dc at ``c`` (any shape), in that shape; one number when all have the same."""


# What a loss takes as its temperature: a number, an entry of a configuration, or in a program the object itself.
Leaf = float | Mapping[str, Any] | Temperature


class Constant(Temperature):
    """The same temperature for all pairs at all times."""

    def __init__(self, value: float) -> None:
        self.value = self.smallest = float(require_positive("temperature", value))

    def tau(self, c: Tensor) -> float:
        return self.value

    def slope(self, c: Tensor) -> float:
        return 0.0


class CosineSchedule(Temperature):
    """One temperature for all pairs, which goes from ``high`` to ``low`` and back every ``period`` epochs:

        tau = low + (high - low) (1 + cos(2 pi epoch / period)) / 2

    Source: Kukleva et al. 2023, "Temperature schedules for self-supervised contrastive methods on long-tail data",
    Eq. 3, with their defaults 0.1, 1.0 and 400 epochs. The epoch is the one that ``advance`` was last told.
    """

    def __init__(self, low: float = 0.1, high: float = 1.0, period: float = 400.0) -> None:
        self.low, self.high = check_range(low, high)
        self.smallest = self.low
        if not (period > 0 and math.isfinite(period)):
            raise ValueError(f"temperature.period: expected a number of epochs > 0, got {period}")
        self.period, self.epoch = float(period), 0.0

    def advance(self, epoch: float) -> None:
        self.epoch = epoch

    def tau(self, c: Tensor) -> float:
        # ``high`` at epoch 0, ``low`` after half a period.
        return self.low + 0.5 * (self.high - self.low) * (1.0 + math.cos(2.0 * math.pi * self.epoch / self.period))

    def slope(self, c: Tensor) -> float:
        return 0.0


class Dystress(Temperature):
    """DySTreSS, thesis Eq. 6.16: low + (high - low) (1 + cos(pi (1 + c))) / 2; ``low`` at c = 0, ``high`` at +-1."""

    def __init__(self, low: float = 0.07, high: float = 0.2, gradient: bool = True) -> None:
        self.low, self.high = check_range(low, high)
        self.smallest, self.gradient = self.low, gradient

    def tau(self, c: Tensor) -> Tensor:
        # cos(pi (1 + c)) = -cos(pi c), hence low - high. In place: a tile of cosines is large.
        return (c * math.pi).cos_().mul_(0.5 * (self.low - self.high)).add_(0.5 * (self.low + self.high))

    def slope(self, c: Tensor) -> Tensor:
        return (c * math.pi).sin_().mul_(0.5 * math.pi * (self.high - self.low))


class DystressLinear(Temperature):
    """low + (high - low) |c|. The thesis names the linear profile (Table 6.13) without a formula: this one is ours."""

    def __init__(self, low: float = 0.07, high: float = 0.2, gradient: bool = True) -> None:
        self.low, self.high = check_range(low, high)
        self.smallest, self.gradient = self.low, gradient

    def tau(self, c: Tensor) -> Tensor:
        return c.abs().mul_(self.high - self.low).add_(self.low)

    def slope(self, c: Tensor) -> Tensor:
        # The kink at c = 0 has the slope 0.
        return c.sign().mul_(self.high - self.low)


class DystressExponential(Temperature):
    """low + (high - low) (e^|c| - 1) / (e - 1): the thesis names it (Table 6.13) without a formula; this is ours."""

    def __init__(self, low: float = 0.07, high: float = 0.2, gradient: bool = True) -> None:
        self.low, self.high = check_range(low, high)
        self.smallest, self.gradient = self.low, gradient

    def tau(self, c: Tensor) -> Tensor:
        # Divided by e - 1, so that |c| = 1 has the temperature ``high``.
        return c.abs().expm1_().mul((self.high - self.low) / math.expm1(1.0)).add_(self.low)

    def slope(self, c: Tensor) -> Tensor:
        return c.abs().exp_().mul_(c.sign()).mul_((self.high - self.low) / math.expm1(1.0))


class DystressShifted(Temperature):
    """Thesis Alg. 6.1: a profile on a part of the cosines, whose minimum is moved by ``shift`` (delta c there).

    That active part is c <= -shift for shift <= 0, and c >= -shift for shift > 0. In it

        tau = low + (high - low) (1 + cos(pi (shift + c) / k)) / 2,    k = ``scale``,

    and outside of it tau = ``high``. The default scale (1 + |shift|) / 2 puts ``high`` at both ends of the active part.
    Minimum at c = -0.3 for shift -0.4, -0.4 for -0.2, 0.4 for 0.2 and -0.5 for 0 (only c <= 0 is active).
    """

    def __init__(
        self, low: float = 0.07, high: float = 0.2, shift: float = -0.4, scale: float | None = None,
        gradient: bool = True,
    ) -> None:  # fmt: skip
        self.low, self.high = check_range(low, high)
        self.smallest, self.gradient = self.low, gradient
        if not -1 < shift < 1:
            raise ValueError(f"temperature.shift: expected a number between -1 and 1, got {shift}")
        if scale is not None and not scale > 0:
            raise ValueError(f"temperature.scale: expected a number > 0, got {scale}")
        # The period of the cosine is 2 k: by default the length of the active part, 1 + |shift|.
        self.shift, self.scale = shift, 0.5 * (1.0 + abs(shift)) if scale is None else scale

    def active(self, c: Tensor) -> Tensor:
        """Where the cosine profile holds: bool in the shape of ``c``."""
        return c >= -self.shift if self.shift > 0 else c <= -self.shift

    def tau(self, c: Tensor) -> Tensor:
        # The profile is computed for all cosines, then overruled outside of the active part.
        wave = ((c + self.shift) * (math.pi / self.scale)).cos_()
        profile = wave.mul_(0.5 * (self.high - self.low)).add_(0.5 * (self.low + self.high))
        return torch.where(self.active(c), profile, self.high)

    def slope(self, c: Tensor) -> Tensor:
        wave = ((c + self.shift) * (math.pi / self.scale)).sin_()
        # Outside of the active part tau is constant: slope 0.
        return wave.mul_(-0.5 * math.pi / self.scale * (self.high - self.low)).mul_(self.active(c))


TEMPERATURES: Mapping[str, Callable[..., Temperature]] = {
    "constant": Constant,
    "cosine_schedule": CosineSchedule,
    "dystress": Dystress,
    "dystress_linear": DystressLinear,
    "dystress_exponential": DystressExponential,
    "dystress_shifted": DystressShifted,
}


def build(temperature: Leaf) -> Temperature:
    """The ``Temperature`` that a number or an entry of ``TEMPERATURES`` describes, or the object itself. ``ValueError``
    for a bad one."""
    if isinstance(temperature, Temperature):
        return temperature
    if isinstance(temperature, float | int | Real):  # numpy's numbers are Real
        if isinstance(temperature, bool):
            raise ValueError(f"temperature: expected a number > 0, a mapping or a Temperature, got {temperature}")
        return Constant(float(temperature))
    built: Temperature = registry.build(TEMPERATURES, temperature, "temperature")
    return built
