"""How far one set of tensors is from another, and how far it may be."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]


def worst(expected: Tensor, actual: Tensor) -> float:
    """The largest absolute difference of two values."""
    return float((actual - expected).abs().max())


def mean(expected: Tensor, actual: Tensor) -> float:
    """The mean absolute difference."""
    return float((actual - expected).abs().mean())


def norm(expected: Tensor, actual: Tensor) -> float:
    """The norm of the difference over the norm of ``expected``; over 1 where that is 0."""
    return float((actual - expected).norm() / (expected.norm() or 1.0))


def share(expected: Tensor, actual: Tensor) -> float:
    """The share of values that are not equal. A NaN equals nothing."""
    return float((actual != expected).double().mean())


MEASURES: Mapping[str, Callable[[Tensor, Tensor], float]] = {"worst": worst, "mean": mean, "norm": norm, "share": share}


@dataclass(frozen=True)
class Tolerance:
    """At most ``most``, by one of ``MEASURES``."""

    measure: Literal["worst", "mean", "norm", "share"]
    most: float

    def difference(self, expected: Tensor, actual: Tensor) -> float:
        """By the measure, in float64 on the CPU. NaN where a value that is no share is not finite, which is within no
        tolerance. ``ValueError`` for another shape, or no values at all."""
        if expected.shape != actual.shape or not expected.numel():
            raise ValueError(f"expected the shape {tuple(expected.shape)}, not empty, got {tuple(actual.shape)}")
        return MEASURES[self.measure](expected.cpu().double(), actual.cpu().double())

    def broken(self, tensor: Tensor) -> Tensor:
        """``tensor``, changed by three times the tolerance in its own measure: a check that lets this pass is none."""
        changed = tensor.detach().cpu().double().clone()
        values = changed.view(-1)
        if self.measure == "share":
            count = max(1, min(len(values), round(3 * self.most * len(values))))
            values[:count] = torch.where(values[:count] == 0, 1.0, values[:count] * (1.0 + 2.0**-40))
        elif self.measure == "worst":
            values[0] += 3 * self.most
        elif self.measure == "mean":
            values += 3 * self.most
        else:
            values[0] += 3 * self.most * float(values.norm() or 1.0)
        return changed


def differences(expected: Tensors, actual: Tensors, tolerance_of: Callable[[str], Tolerance]) -> dict[str, float]:
    """By name. ``ValueError`` where the names are not the same, or a tensor has another shape."""
    if expected.keys() != actual.keys() or not expected:
        raise ValueError(f"expected tensors {', '.join(expected) or '(none)'}, got {', '.join(actual) or '(none)'}")
    found = {}
    for name, value in expected.items():
        try:
            found[name] = tolerance_of(name).difference(value, actual[name])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return found


def require_within(expected: Tensors, actual: Tensors, tolerance_of: Callable[[str], Tolerance]) -> None:
    """``AssertionError`` that names the first tensor beyond its tolerance."""
    for name, found in differences(expected, actual, tolerance_of).items():
        tolerance = tolerance_of(name)
        assert found <= tolerance.most, (
            f"{name}: {tolerance.measure} difference {found:.3g}, at most {tolerance.most:g}"
        )
