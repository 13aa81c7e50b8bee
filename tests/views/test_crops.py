"""Large and small crops, and the jumbled patches of an image."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sslmed_dist import registry
from sslmed_dist.views import VIEWS
from sslmed_dist.views.crops import cut

GIVEN: dict[str, Any] = {"channels": 1, "value_range": (0.0, 255.0)}
GREY = {"jitter": None, "grey": 0.0}
STILL = {**GREY, "crop_scale": [1.0, 1.0], "crop_ratio": [1.0, 1.0], "flip": 0.0}
MULTI = {"name": "multi_crop", "size": 12, "large": GREY, "small": {"size": 6, "views": 3}}
JIGSAW = {"name": "jigsaw", "size": 12, "image": GREY}


def build(leaf: dict[str, Any], **arguments: Any) -> Any:
    """Views of one channel."""
    return registry.build(VIEWS, {**leaf, **arguments}, "views", **GIVEN)


def batch(samples: int = 5) -> dict[str, Tensor]:
    """Random images of 12 pixels."""
    source = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (samples, 1, 12, 12), dtype=torch.uint8, generator=source)
    index = torch.arange(samples)
    return {"images": images, "index": index, "draw": torch.zeros_like(index), "labels": index}


def made(leaf: dict[str, Any], given: dict[str, Tensor], seed: int = 3, epoch: int = 2) -> dict[str, Tensor]:
    """The views of a batch."""
    views: dict[str, Tensor] = build(leaf)(given, seed=seed, epoch=epoch)
    return views


def test_large_and_small_crops() -> None:
    views = made(MULTI, batch())
    sizes = {name: tuple(value.shape[1:]) for name, value in views.items() if name.startswith("views_")}
    assert sizes == {f"views_{view}": (1, 12, 12) if view < 2 else (1, 6, 6) for view in range(5)}
    assert "images" not in views and torch.equal(views["labels"], torch.arange(5))
    assert list(made({**MULTI, "small": None}, batch())) == ["index", "draw", "labels", "views_0", "views_1"]


def test_small_crops_are_drawn_by_themselves() -> None:
    """The same crop at the same size as a large one would be the same picture if both had the same random numbers."""
    same = {**MULTI, "small": {"size": 12, "views": 2, "crop_scale": [0.4, 1.0]}}
    views = made(same, batch())
    for small in ("views_2", "views_3"):
        assert not torch.equal(views[small], views["views_0"]) and not torch.equal(views[small], views["views_1"])


@pytest.mark.parametrize("leaf", [MULTI, JIGSAW], ids=["multi_crop", "jigsaw"])
def test_a_samples_views_depend_on_its_key_alone(leaf: dict[str, Any]) -> None:
    whole = batch()
    views = made(leaf, whole)
    chosen = torch.tensor([4, 1])
    part = made(leaf, {name: value[chosen] for name, value in whole.items()})
    names = [name for name in views if name.startswith("views_") or name == "patches"]
    assert len(names) >= 3
    for name in names:
        assert torch.equal(part[name], views[name][chosen]), name
        for other in (made(leaf, whole, seed=4), made(leaf, whole, epoch=3)):
            assert not torch.equal(other[name], views[name]), name


def test_cutting_by_hand() -> None:
    """Two samples of two channels; cells of 3, patches of 2."""
    whole = torch.arange(2 * 2 * 81.0).view(2, 2, 9, 9)
    source = torch.Generator().manual_seed(0)
    top, left = (torch.randint(0, 2, (2, 9), generator=source) for _ in range(2))
    order = torch.stack([torch.randperm(9, generator=source) for _ in range(2)])
    patches = cut(whole, 3, 2, top, left, order)
    assert patches.shape == (2, 18, 2, 2)
    for sample in range(2):
        for place in range(9):
            cell = int(order[sample, place])
            row = 3 * (cell // 3) + int(top[sample, cell])
            column = 3 * (cell % 3) + int(left[sample, cell])
            expected = whole[sample, :, row : row + 2, column : column + 2]
            assert torch.equal(patches[sample, 2 * place : 2 * place + 2], expected)


def test_the_patches_are_those_of_the_picture_in_some_order() -> None:
    """A puzzle that is not cropped, of cells that are cut whole: every pixel is there once, each sample its order."""
    given = batch(40)
    patches = made({**JIGSAW, "image": STILL, "puzzle": STILL, "cell": 4, "patch": 4}, given)["patches"]
    assert patches.shape == (40, 9, 4, 4)
    cells = given["images"].view(40, 3, 4, 3, 4).transpose(2, 3).reshape(40, 9, 16).float() / 255
    orders = (patches.flatten(2)[:, :, None] - cells[:, None]).abs().sum(3).argmin(2)
    assert torch.equal(orders.sort(1).values, torch.arange(9).expand(40, 9))
    torch.testing.assert_close(patches.flatten(2), cells.gather(1, orders[:, :, None].expand(-1, -1, 16)))
    assert len({tuple(order) for order in orders.tolist()}) == 40
    counts = torch.stack([(orders == cell).float().mean(0) for cell in range(9)])
    assert float(counts.max()) < 0.35, "no place prefers a cell"


def test_default_sizes_of_cells_and_patches() -> None:
    views = build({**JIGSAW, "size": 255})
    assert (views.cell, views.patch, views.puzzle.size) == (85, 63, 255)
    assert made(JIGSAW, batch())["patches"].shape == (5, 9, 3, 3)


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        ({**MULTI, "small": {"views": 2}}, "views.small.size: missing; it is required by views.small"),
        ({**MULTI, "large": {**GREY, "name": "x"}}, "views.large.name: unknown key; allowed: second, crop_scale"),
        ({**MULTI, "large": {"size": 9}}, "views.large.size: unknown key; allowed: second, crop_scale"),
        ({**MULTI, "large": {**GREY, "flip": 2.0}}, "views.large.flip: expected a number from 0 to 1, got 2.0"),
        (
            {**MULTI, "small": {"size": 6, "crop_scale": [0.0, 0.3]}},
            "views.small.crop_scale: expected two numbers with",
        ),
        ({**JIGSAW, "patch": 5}, "views.patch: expected 1 to cell (4) pixels, got 5"),
        ({**JIGSAW, "size": 2}, "views.cell: expected an integer >= 1, got 0"),
        ({**JIGSAW, "puzzle": {"views": 3}}, "views.puzzle.views: unknown key; allowed: second, crop_scale"),
    ],
)
def test_a_bad_argument_is_named(leaf: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        build(leaf)
    assert str(caught.value).startswith(message)
