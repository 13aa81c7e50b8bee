"""Contact sheets of images: views of samples, and nearest neighbours. They hold pixels, so they stay at the site that
made them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sslmed_dist.printable import printable
from sslmed_dist.report.plots import ARM_COLOURS, GREY, new_figure, png

TILE, GAP = 112, 10  # pixels
LETTERS = 13  # of a label above a tile, so that its similarity stands beside it
# Beside a neighbour of another label and of the same one, and the colours of their frames.
MARKS = ("×", "\N{CHECK MARK}")
FRAMES = dict(zip(MARKS, (ARM_COLOURS["local"], ARM_COLOURS["pooled"]), strict=True))


def views_picture(
    images: Tensor, views: Sequence[Tensor] | Mapping[str, Tensor], *, limit: int = 8, first: str = "stored"
) -> bytes:
    """PNG of a contact sheet: a row per sample, the image as stored (title ``first``) and then each of its views.

    ``images`` (B, C, H, W) of any type; each view float (B, C, h, w); C is 1 or 3. uint8 is shown as it is, everything
    else stretched tile by tile between its own extremes, since views are normalised. At most ``limit`` samples.
    """
    named = dict(views) if isinstance(views, Mapping) else {f"view {i}": view for i, view in enumerate(views)}
    columns = {first: images, **named}
    if len({len(column) for column in columns.values()}) != 1 or not len(images):
        raise ValueError(f"views picture: expected as many views as images, got {[len(c) for c in columns.values()]}")
    tiles = [tiled(column[:limit]) for column in columns.values()]
    sheet, axes = sheet_of(torch.stack(tiles, dim=1))
    for column_index, title in enumerate(columns):
        write(axes, title.replace("views_", "view "), 0, column_index)
    return png(sheet, 100)


def neighbours_picture(
    query: Tensor,
    neighbours: Tensor,
    *,
    query_labels: Sequence[str] | None = None,
    neighbour_labels: Sequence[Sequence[str]] | None = None,
    similarity: Tensor | None = None,
    framed: bool = True,
) -> bytes:
    """PNG of a contact sheet: a row per query, then its nearest neighbours, nearest first.

    ``query`` (Q, C, H, W), ``neighbours`` (Q, K, C, H, W), C is 1 or 3; labels as words; ``similarity`` (Q, K). Above
    each tile stand its label and similarity. Where labels are known and ``framed``, a neighbour of the query's label
    has a green frame and a tick, one of another an orange frame and a cross.
    """
    if neighbours.ndim != 5 or len(neighbours) != len(query) or not len(query):
        raise ValueError(f"neighbours picture: {len(query)} queries, but neighbours of shape {tuple(neighbours.shape)}")
    rows, count = neighbours.shape[:2]
    tiles = torch.stack([tiled(query), *(tiled(neighbours[:, rank]) for rank in range(count))], dim=1)
    sheet, axes = sheet_of(tiles)
    for row in range(rows):
        query_label = query_labels[row] if query_labels else None
        write(axes, shortened(query_label) if query_label else "query", row, 0)
        frame(axes, row, 0, GREY)
        for rank in range(count):
            label = neighbour_labels[row][rank] if neighbour_labels else ""
            near = "" if similarity is None else f"{float(similarity[row, rank]):.3f}"
            mark = "" if not framed or query_label is None or not label else MARKS[label == query_label]
            write(axes, " ".join(filter(None, (shortened(label), near, mark))), row, rank + 1)
            if mark:
                frame(axes, row, rank + 1, FRAMES[mark])
    return png(sheet, 100)


def shortened(label: str) -> str:
    """A label that fits above a tile, without control characters."""
    label = printable(label)
    return label if len(label) <= LETTERS else label[: LETTERS - 1] + "\N{HORIZONTAL ELLIPSIS}"


def tiled(images: Tensor) -> Tensor:
    """(B, C, H, W) -> float32 (B, TILE, TILE, 3) in [0, 1]. The aspect ratio stays; what is left of a tile is grey.
    ``ValueError`` unless C is 1 or 3."""
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"contact sheet: expected images (B, 1 or 3, H, W), got {tuple(images.shape)}")
    shown = images.detach().cpu()
    if shown.dtype == torch.uint8:
        shown = shown.float() / 255
    else:
        shown = shown.float()
        low, high = shown.amin(dim=(1, 2, 3), keepdim=True), shown.amax(dim=(1, 2, 3), keepdim=True)
        shown = (shown - low) / (high - low).clamp_min(1e-12)
    height, width = shown.shape[2:]
    scale = TILE / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    # Small images enlarge in squares: blur would hide what the encoder really sees.
    shown = functional.interpolate(shown, size, mode="nearest-exact") if scale > 1 else functional.interpolate(
        shown, size, mode="bilinear", antialias=True, align_corners=False
    )  # fmt: skip
    top, left = (TILE - size[0]) // 2, (TILE - size[1]) // 2
    shown = functional.pad(shown, (left, TILE - size[1] - left, top, TILE - size[0] - top), value=0.5)
    return shown.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).clamp(0, 1)


def overlaid(images: Tensor, heat: Tensor) -> Tensor:
    """Images (B, C, H, W), C = 1 or 3, uint8, under Grad-CAM (B, H, W) in [0, 1]: uint8 (B, 3, H, W). What is bright
    speaks for the score; where the heat is 0 the image is as it was."""
    from matplotlib import colormaps

    below = images.float().expand(-1, 3, -1, -1) / 255
    colours = torch.from_numpy(colormaps["inferno"](heat.numpy())[..., :3]).float().permute(0, 3, 1, 2)
    share = 0.6 * heat[:, None]
    return ((below * (1 - share) + colours * share) * 255).round().clamp(0, 255).to(torch.uint8)


def sheet_of(tiles: Tensor) -> tuple[Any, Any]:
    """(figure, axes) showing tiles (R, K, TILE, TILE, 3) with room above each row for a line of text."""
    rows, columns = tiles.shape[:2]
    across, down = columns * (TILE + GAP), rows * (TILE + 2 * GAP) + GAP
    # RGBA pixels: transparent where no tile lies
    sheet = torch.zeros(down, across, 4)
    for row in range(rows):
        for column in range(columns):
            y, x = corner(row, column)
            sheet[y : y + TILE, x : x + TILE] = functional.pad(tiles[row, column], (0, 1), value=1.0)
    figure = new_figure((across / 100, down / 100))
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(sheet.numpy(), interpolation="nearest", extent=(0, across, down, 0), aspect="auto")
    axes.axis("off")
    return figure, axes


def corner(row: int, column: int) -> tuple[int, int]:
    """Upper left pixel (y, x) of a tile."""
    return row * (TILE + 2 * GAP) + 2 * GAP, column * (TILE + GAP) + GAP // 2


def write(axes: Any, text: str, row: int, column: int) -> None:
    """A line of text above a tile."""
    y, x = corner(row, column)
    axes.text(x + TILE / 2, y - 3, text, ha="center", va="bottom", fontsize=8, color=GREY, parse_math=False)


def frame(axes: Any, row: int, column: int, colour: str) -> None:
    """A frame around a tile."""
    from matplotlib.patches import Rectangle

    y, x = corner(row, column)
    axes.add_patch(Rectangle((x, y), TILE, TILE, fill=False, edgecolor=colour, linewidth=2))
