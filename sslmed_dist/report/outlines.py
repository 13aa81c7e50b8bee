"""Sheets of slices with outlines drawn on them. They hold pixels, so they stay at the site that made them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from sslmed_dist.report.plots import new_figure, png

SIDE, DPI = 2.0, 110  # inches along a side of a panel, pixels per inch
TRUE, FOUND, GIVEN = "#3ddc84", "#ff5a5f", "#ffd166"


@dataclass(frozen=True)
class Panel:
    """A slice (H, W), the outlines drawn on it (colour -> (H, W) bool), and the line above it."""

    image: Tensor
    outlines: Mapping[Any, Tensor]
    title: str


def sheet(rows: Sequence[Sequence[Panel]], heading: str) -> bytes:
    """PNG: a row of slices for each of ``rows`` (they may differ in length), on black."""
    columns = max(len(row) for row in rows)
    figure = new_figure((columns * SIDE, len(rows) * (SIDE + 0.25) + 0.3))
    figure.set_facecolor("black")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for row, line in zip(rows, grid, strict=True):
        for column, axes in enumerate(line):
            axes.axis("off")
            if column < len(row):
                draw(axes, row[column])
    figure.suptitle(heading, color="white", fontsize=8)
    return png(figure, DPI, transparent=False)


def draw(axes: Any, panel: Panel) -> None:
    """One slice with its outlines; its 1st and its 99.5th percentile are black and white."""
    image = panel.image.numpy()
    low, high = np.percentile(image, (1.0, 99.5))
    axes.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), interpolation="nearest")
    for colour, outline in panel.outlines.items():
        mask = outline.numpy().astype(np.float32)
        if mask.any():
            # A frame of zeros closes the outline of a mask that touches the border.
            down, across = (np.arange(-1, side + 1) for side in mask.shape)
            axes.contour(across, down, np.pad(mask, 1), levels=[0.5], colors=[colour], linewidths=1.1)
    axes.set_xlim(-0.5, image.shape[1] - 0.5)
    axes.set_ylim(image.shape[0] - 0.5, -0.5)
    axes.set_title(panel.title, color="white", fontsize=7, pad=2)
