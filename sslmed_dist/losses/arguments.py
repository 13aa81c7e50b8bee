"""Checks of hyper-parameters: one line that names what is wrong and what is allowed."""

import math


def check_weight(name: str, value: float) -> float:
    """The value itself. ``ValueError`` unless it is a finite number >= 0."""
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"{name}: expected a finite number >= 0, got {value}")
    return value


def check_positive(name: str, value: float) -> float:
    """The value itself. ``ValueError`` unless it is a finite number > 0."""
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name}: expected a finite number > 0, got {value}")
    return value


def check_share(name: str, value: float) -> float:
    """The value itself. ``ValueError`` unless it lies in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: expected a number in [0, 1], got {value}")
    return value
