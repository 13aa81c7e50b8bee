"""Checks of arguments. Every message names the field, what was expected and what was given."""

import math
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

Leaf = Mapping[str, Any]  # a name and arguments, as a configuration has them


def require_positive(field: str, value: float) -> float:
    """The value itself. ``ValueError`` unless it is a finite number > 0."""
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{field}: expected a finite number > 0, got {value}")
    return value


def require_not_negative(field: str, value: float) -> float:
    """The value itself (a weight). ``ValueError`` unless it is a finite number >= 0."""
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"{field}: expected a finite number >= 0, got {value}")
    return value


def require_share(field: str, value: float) -> float:
    """The value itself (a probability, a momentum, a weight of two terms). ``ValueError`` unless 0 <= value <= 1."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{field}: expected a number from 0 to 1, got {value}")
    return value


def require_least(field: str, value: float, least: int) -> float:
    """The value itself. ``ValueError`` unless value >= least."""
    if not value >= least:
        raise ValueError(f"{field}: expected a number >= {least}, got {value}")
    return value


def require_between(field: str, value: float, low: float, high: float) -> float:
    """The value itself. ``ValueError`` unless low <= value <= high."""
    if not low <= value <= high:
        raise ValueError(f"{field}: expected a number from {low:g} to {high:g}, got {value}")
    return value


def require_range(field: str, pair: Sequence[float], low: float, high: float = math.inf) -> None:
    """``ValueError`` unless ``pair`` is two numbers with low < first <= second <= high."""
    if len(pair) != 2 or not low < pair[0] <= pair[1] <= high:
        raise ValueError(f"{field}: expected two numbers with {low:g} < first <= second <= {high:g}, got {list(pair)}")


def require_component(field: str, name: str) -> str:
    """The name itself, which becomes that of a folder. ``ValueError`` unless it is one plain part of a path: it leads
    nowhere else, is no option of a command, and every file system takes it."""
    fits = re.fullmatch(r"\w(?:[\w .+@=,()#-]*[\w+@=,()#-])?", name) and len(name) <= 100 and len(name.encode()) <= 255
    if not fits:
        raise ValueError(
            f"{field}: expected at most 100 letters, digits, spaces and . _ - + @ = , ( ) #, the first a letter, digit "
            f"or _, the last no space or full stop; got {name[:120]!r}"
        )
    return name


@contextmanager
def located(where: str) -> Iterator[None]:
    """Puts the path of the section before the field that a ``ValueError`` names."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from None


def require_fields_least(section: str, values: Any, least: int, *names: str) -> None:
    """``ValueError`` unless the fields ``names`` of the dataclass ``values`` are at least ``least``, or null."""
    kinds = {item.name: "a number" if item.type is float else "an integer" for item in fields(values)}
    for name in names:
        value = getattr(values, name)
        if value is not None and value < least:
            raise ValueError(f"{section}.{name}: expected {kinds[name]} >= {least}, got {value}")


def in_full(value: Any, hint: Any) -> Any:
    """A value of a configuration for a key of type ``hint``, in which each leaf that stands there in short, as its name
    alone, is a mapping: ``loss: mio_v3`` and ``track: [mlflow]``. A list of one may be its name alone: ``track:
    mlflow``."""
    if hint == Leaf and isinstance(value, str):
        return {"name": value}
    if isinstance(value, str) and tuple[Leaf, ...] in (hint, *typing.get_args(hint)):
        value = [value]
    if isinstance(value, list) and tuple[Leaf, ...] in (hint, *typing.get_args(hint)):
        return [{"name": item} if isinstance(item, str) else item for item in value]
    return value
