"""Strips of slices with outlines for a page of HTML: no script, no file beside it. They hold pixels, so they stay at
the site that made them."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.io import encode_png

from sslmed_dist.printable import as_html


@dataclass(frozen=True)
class Column:
    """A slice (H, W) of a strip, shown once for each of ``layers``. A layer has a name and outlines: of label number
    0, 1, ... the mask bool (H, W)."""

    title: str
    image: Tensor
    layers: Mapping[str, Mapping[int, Tensor]]


def grey_range(stack: Tensor) -> tuple[float, float]:
    """The values of black and white for slices of any shape: their 1st and their 99.5th percentile."""
    sample = stack.flatten()[:: max(1, stack.numel() // 1_000_000)].float()
    low, high = torch.quantile(sample, torch.tensor([0.01, 0.995])).tolist()
    return low, high


def strip(columns: Iterable[Column], key: str, grey: tuple[float, float]) -> str:
    """HTML of a row of slices that is scrolled sideways; layers stand below each other. ``key`` is a word that no other
    strip of the page has, ``grey`` the values of black and white."""
    low, high = grey
    return f"<div class='strip'>{''.join(html(c, f'{key}-{i}', low, high) for i, c in enumerate(columns))}</div>"


def html(column: Column, key: str, low: float, high: float) -> str:
    """One slice. Its pixels are in the page once; every layer refers to them."""
    height, width = column.image.shape
    grey = ((column.image.float() - low) / max(high - low, 1e-6)).clamp(0, 1).mul(255).round().to(torch.uint8)
    data = base64.b64encode(encode_png(grey[None].contiguous()).numpy().tobytes()).decode()
    figures = []
    for number, (name, outlines) in enumerate(column.layers.items()):
        picture = (
            f"<image id='{key}' width='{width}' height='{height}' href='data:image/png;base64,{data}'/>"
            if number == 0
            else f"<use href='#{key}'/>"
        )
        paths = "".join(
            f"<path class='organ organ-{label}' d='{outline(mask)}'/>" for label, mask in outlines.items() if mask.any()
        )
        title = as_html(f"{column.title}, {name}")
        box = f"<svg viewBox='0 0 {width} {height}' role='img' aria-label='{title}'>{picture}{paths}</svg>"
        figures.append(f"<figure>{box}<figcaption>{title}</figcaption></figure>")
    return f"<div class='slice'>{''.join(figures)}</div>"


def outline(mask: Tensor) -> str:
    """The path of an SVG that runs along the edges between the pixels in and beyond a mask (H, W)."""
    padded = torch.nn.functional.pad(mask.to(torch.int8), (1, 1, 1, 1))
    # An edge above pixel (r, c) where it and the one above differ; left of it likewise, as rows of the transpose.
    above = (padded[1:, 1:-1] != padded[:-1, 1:-1]).nonzero().tolist()  # sorted by row, then by column
    left = (padded[1:-1, 1:] != padded[1:-1, :-1]).T.nonzero().tolist()
    return "".join(
        [f"M{start} {line}h{length}" for line, start, length in runs(above)]
        + [f"M{line} {start}v{length}" for line, start, length in runs(left)]
    )


def runs(edges: Sequence[Sequence[int]]) -> list[tuple[int, int, int]]:
    """(line, first place, length) of neighbouring places on one line; ``edges`` are sorted (line, place)."""
    found: list[tuple[int, int, int]] = []
    for line, place in edges:
        if found and found[-1][0] == line and found[-1][1] + found[-1][2] == place:
            found[-1] = (line, found[-1][1], found[-1][2] + 1)
        else:
            found.append((line, place, 1))
    return found
