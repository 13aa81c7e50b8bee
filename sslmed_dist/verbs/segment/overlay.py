"""The overlay of one query: for every label, support slices with their mask beside query slices with what was found."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sslmed_dist.report import outlines
from sslmed_dist.verbs.segment.files import colour

NOTE = "Research use only, not a medical device. Left half: the patient's right."


@dataclass(frozen=True)
class MaskedSlice:
    """A slice (H, W), standardised, the outline drawn on it (H, W) bool, and the line above it."""

    image: Tensor
    mask: Tensor
    title: str


@dataclass(frozen=True)
class Row:
    """One label: pairs of a support tile and the query tile it served."""

    label: int
    pairs: tuple[tuple[MaskedSlice, MaskedSlice], ...]


def require_matplotlib() -> None:
    """``ValueError`` where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError("the overlay needs matplotlib: pip install 'sslmed-dist[report]'") from None


def montage(rows: Sequence[Row], name: str) -> bytes:
    """PNG: a row per label, pairs of support and query from inferior to superior, outlines in the label's colour."""
    made = []
    for place, row in enumerate(rows):
        shade = tuple(part / 255 for part in colour(place))
        tiles = [tile for pair in row.pairs for tile in pair]
        made.append([outlines.Panel(tile.image, {shade: tile.mask}, tile.title) for tile in tiles])
    return outlines.sheet(made, f"{name}: support and query in turn. {NOTE}")
