"""The overlay of one query: for every label, support slices with their mask beside query slices with what was found."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sslmed_dist.report import outlines
from sslmed_dist.verbs.segment.files import colour

NOTE = "Research use only, not a medical device. Left half: the patient's right."


@dataclass(frozen=True)
class MaskedSlice:
    """A standardised slice (H, W), the mask bool (H, W) whose outline is drawn on it, and the line above it."""

    image: Tensor
    mask: Tensor
    title: str


@dataclass(frozen=True)
class Row:
    """One label: pairs of a support slice and a query slice that was segmented by it."""

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
    panels = []
    for label_index, row in enumerate(rows):
        shade = tuple(channel / 255 for channel in colour(label_index))
        tiles = [tile for pair in row.pairs for tile in pair]
        panels.append([outlines.Panel(tile.image, {shade: tile.mask}, tile.title) for tile in tiles])
    return outlines.sheet(panels, f"{name}: support and query in turn. {NOTE}")
