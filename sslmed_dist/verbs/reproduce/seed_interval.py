"""The interval of a mean over seeds, by Student's t. No torch, no scipy: the core has neither where it reads tables."""

import math
import statistics
from collections.abc import Sequence
from functools import cache

LEVEL = 0.95


def interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float] | None:
    """The two-sided interval of the mean of ``values`` at ``level``, mean ± t sd / sqrt(n). None below two values."""
    if len(values) < 2:
        return None
    half = student(len(values) - 1, level) * statistics.stdev(values) / math.sqrt(len(values))
    middle = statistics.fmean(values)
    return middle - half, middle + half


@cache
def student(freedom: int, level: float = LEVEL) -> float:
    """The t >= 0 that a Student variable with ``freedom`` degrees of freedom exceeds in absolute value with probability
    1 - ``level``. Student's two-sided distribution is a finite sum for whole ``freedom`` (Abramowitz and Stegun 1964,
    26.7.3 and 26.7.4); its inverse is found by halving."""
    low, high = 0.0, 1.0
    while within(high, freedom) < level:
        high *= 2.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle, freedom) < level else (low, middle)
    return high


def within(t: float, freedom: int) -> float:
    """The probability that a Student variable lies in [-t, t]."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine, term, total = math.cos(angle), 1.0, 0.0
    odd = freedom % 2
    if odd:
        term = math.cos(angle)
    for k in range(odd, freedom - 1, 2):  # powers of the cosine: 0, 2, ... or 1, 3, ... up to freedom - 2
        total += term
        term *= cosine**2 * (k + 1) / (k + 2)
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total
