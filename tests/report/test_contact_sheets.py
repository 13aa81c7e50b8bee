"""Contact sheets: right shapes in, PNG out, mistakes named."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from sslmed_dist.report.contact_sheets import TILE, corner, neighbours_picture, tiled, views_picture


def opened(data: bytes) -> Image.Image:
    assert data.startswith(b"\x89PNG")
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize("channels", [1, 3])
def test_views_sheet_shows_the_stored_pixels(channels: int) -> None:
    images = torch.randint(0, 255, (3, channels, 28, 28), dtype=torch.uint8)
    sheet = opened(views_picture(images, {"views_0": torch.randn(3, channels, 28, 28)}))
    pixels = torch.from_numpy(np.array(sheet.convert("RGBA"))).int()
    y, x = corner(1, 0)
    shown = pixels[y + 2 : y + TILE : 4, x + 2 : x + TILE : 4, :3]
    stored = images[1].expand(3, -1, -1).permute(1, 2, 0)
    assert (shown - stored).abs().max() <= 1
    assert pixels[:, -1, 3].max() == 0  # between the tiles the page shines through


def test_at_most_limit_samples_are_shown() -> None:
    images = torch.zeros(9, 1, 8, 8, dtype=torch.uint8)
    few, many = (opened(views_picture(images, [images.float()], limit=limit)) for limit in (2, 9))
    assert few.height < many.height and few.width == many.width


def test_tiles_are_stretched_and_keep_their_aspect() -> None:
    tiles = tiled(torch.linspace(-3, 5, 2 * 20 * 10).view(2, 1, 20, 10))
    assert tiles.shape == (2, TILE, TILE, 3)
    inner = tiles[:, :, TILE // 4 + 1 : -TILE // 4 - 1]
    assert inner.amin() == 0 and inner.amax() == 1 and (tiles[:, :, 0] == 0.5).all()
    assert tiled(torch.rand(1, 3, 300, 200)).shape == (1, TILE, TILE, 3)
    assert tiled(torch.zeros(1, 1, 8, 8)).isfinite().all()


def test_neighbours_sheet_repeats_and_marks_other_labels() -> None:
    query, near = torch.rand(2, 1, 16, 16), torch.rand(2, 3, 1, 16, 16)
    labels = [["liver", "none", "liver"], ["none", "none", "none"]]

    def drawn(names: list[str]) -> bytes:
        return neighbours_picture(
            query, near, query_labels=names, neighbour_labels=labels, similarity=torch.rand(2, 3).fill_(0.9)
        )

    assert drawn(["liver", "none"]) == drawn(["liver", "none"]) != drawn(["liver", "liver"])
    assert opened(drawn(["liver", "none"])).width == 4 * (TILE + 10)


def test_wrong_shapes_are_named() -> None:
    images = torch.zeros(2, 2, 8, 8)
    with pytest.raises(ValueError, match=r"expected images \(B, 1 or 3, H, W\), got \(2, 2, 8, 8\)"):
        views_picture(images, [images])
    with pytest.raises(ValueError, match="as many views as images"):
        views_picture(images[:, :1], [images[:1, :1]])
    with pytest.raises(ValueError, match="2 queries, but neighbours of shape"):
        neighbours_picture(images, images)
