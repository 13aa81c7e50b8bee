"""Checks of the arguments of methods and of the batches they are given. Every message names what is wrong."""

from collections.abc import Mapping

from torch import Tensor

from sslmed_dist.losses.arguments import check_positive


def require_share(name: str, value: float) -> float:
    """The value itself. ``ValueError`` unless 0 <= value <= 1 (a momentum, a weight of two terms)."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"method.{name}: expected a number from 0 to 1, got {value}")
    return value


def require_temperature(name: str, value: float) -> float:
    """The value itself. ``ValueError`` unless it is a finite number above 0."""
    return check_positive(f"method.{name}", value)


def require_least(name: str, value: float, least: int) -> None:
    """``ValueError`` for a value below ``least``."""
    if not value >= least:
        raise ValueError(f"method.{name}: expected a number >= {least}, got {value}")


def require_width(name: str, width: int, wanted: int, of: str) -> None:
    """``ValueError`` unless a head's output has the ``wanted`` width, which is that of the head ``of``."""
    if width != wanted:
        raise ValueError(f"method.{name}.out: expected {wanted}, the output of method.{of}, got {width}")


def two_views(batch: Mapping[str, Tensor], method: str) -> tuple[Tensor, Tensor]:
    """``views_0`` and ``views_1`` (n, C, H, W). ``ValueError`` unless these are the batch's views, of one shape."""
    names = sorted(name for name in batch if name.startswith("views_"))
    if names != ["views_0", "views_1"]:
        raise ValueError(f"views: {method} needs two views (views_0, views_1), got {', '.join(names) or 'none'}")
    first, second = batch["views_0"], batch["views_1"]
    if first.shape != second.shape:
        raise ValueError(f"views_1: expected the shape of views_0, {tuple(first.shape)}, got {tuple(second.shape)}")
    return first, second
