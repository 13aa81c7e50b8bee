"""Checks of the arguments of views. Every message begins with the name of the field and says what is allowed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager


def require_probability(field: str, value: float) -> None:
    """``ValueError`` unless 0 <= value <= 1."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{field}: expected a probability from 0 to 1, got {value}")


def require_range(field: str, pair: Sequence[float], low: float, high: float = float("inf")) -> None:
    """``ValueError`` unless ``pair`` is two numbers with low < first <= second <= high."""
    if len(pair) != 2 or not low < pair[0] <= pair[1] <= high:
        raise ValueError(f"{field}: expected two numbers with {low:g} < first <= second <= {high:g}, got {list(pair)}")


def require_between(field: str, value: float, low: float, high: float) -> None:
    """``ValueError`` unless low <= value <= high."""
    if not low <= value <= high:
        raise ValueError(f"{field}: expected a number from {low:g} to {high:g}, got {value}")


@contextmanager
def located(where: str) -> Iterator[None]:
    """Puts the path of the section before the field that a ``ValueError`` names."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from None
