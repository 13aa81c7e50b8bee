"""Views of whole examinations: one transform for all slices, keyed, the same in any batch, at any size."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslmed_dist.views import VIEWS
from sslmed_dist.views.draws import draw
from sslmed_dist.views.volume import TURN
from tests.views.scenes import constant, scene, value_range

RANDOM = ("pretext", "published_code", "crop")


def make(size: int, transforms: str, dtype: torch.dtype = torch.uint8, **arguments: Any) -> Any:
    return VIEWS["volume"](size, transforms, channels=1, value_range=value_range(dtype), **arguments)


def exams(count: int, slices: int, side: int, dtype: torch.dtype = torch.uint8) -> dict[str, Tensor]:
    images = scene(count * slices, 1, side, side, dtype).view(count, slices, 1, side, side)
    length = 1 + torch.arange(count) % slices
    return {"images": images, "length": length, "index": torch.arange(count) + 7, "draw": torch.arange(count) % 2}


@pytest.mark.parametrize("transforms", RANDOM)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32])
def test_bits_do_not_depend_on_the_batch(transforms: str, dtype: torch.dtype) -> None:
    views, batch = make(32, transforms, dtype, mean=(0.3,), std=(0.2,)), exams(6, 3, 40, dtype)
    whole = views(batch, seed=3, epoch=1)["views_0"]
    assert whole.shape == (6, 3, 1, 32, 32) and whole.dtype is torch.float32
    for chosen in ([4], [5, 0], [1, 2, 3]):
        part = views({name: value[chosen] for name, value in batch.items()}, seed=3, epoch=1)["views_0"]
        assert torch.equal(part, whole[chosen])
    for changed in ({"seed": 4, "epoch": 1}, {"seed": 3, "epoch": 2}):
        assert not torch.equal(views(batch, **changed)["views_0"], whole)
    redrawn = views({**batch, "draw": batch["draw"] + 1}, seed=3, epoch=1)["views_0"]
    assert not torch.equal(redrawn, whole)


@pytest.mark.parametrize("transforms", RANDOM)
def test_one_transform_moves_all_slices_of_an_exam(transforms: str) -> None:
    batch = exams(4, 3, 32)
    batch["images"] = batch["images"][:, :1].expand(-1, 3, -1, -1, -1)
    batch["length"] = torch.full((4,), 3)
    view = make(32, transforms)(batch, seed=0, epoch=0)["views_0"]
    assert torch.equal(view[:, 0], view[:, 1]) and torch.equal(view[:, 0], view[:, 2])
    assert not torch.equal(view[0], view[1])


@pytest.mark.parametrize("side, size", [(32, 32), (48, 32), (20, 32)])
def test_without_transforms_it_is_the_standard_view_of_every_slice(side: int, size: int) -> None:
    """Nothing depends on seed and epoch, and slices past the end are 0; so it is in evaluation mode, too."""
    batch, given = exams(3, 3, side), {"mean": (0.4,), "std": (0.3,)}
    tried = make(size, "pretext", **given).eval()(batch, seed=1, epoch=1)["views_0"]
    view = make(size, "none", **given)(batch, seed=1, epoch=1)["views_0"]
    assert torch.equal(view, make(size, "none", **given)(batch, seed=2, epoch=5)["views_0"]) and torch.equal(
        view, tried
    )
    standard = VIEWS["standard"](size, channels=1, value_range=(0.0, 255.0), **given)
    for exam, length in enumerate(batch["length"].tolist()):
        alone = standard({"images": batch["images"][exam]}, seed=0, epoch=0)["views_0"]
        assert torch.equal(view[exam, :length], alone[:length])
        assert not view[exam, length:].any()


@pytest.mark.parametrize("size", [256, 64])
@pytest.mark.parametrize("share, pixels", [(0.0, -15.0), (0.5, 0.0), (0.99, 15.0)])
def test_shifts_are_shares_of_the_slice(size: int, share: float, pixels: float) -> None:
    """15 pixels of 256 to the right: what was at column c is now at c + 15 size / 256."""
    views = make(size, "published_code")
    draws = constant(TURN, 0.5, scale=0.0, shift_x=share)  # the middle of three is 0 degrees and no shift
    view = views.geometry(scene(1, 1, size, size, torch.float32), views.affine(draws))
    ramp = (torch.arange(size) + 0.5).expand(1, 1, size, size).contiguous()
    moved = views.geometry(ramp, views.affine(draws))
    middle = size // 2
    assert moved[0, 0, middle, middle].item() == pytest.approx(middle + 0.5 - pixels * size / 256, abs=1e-3)
    assert view.shape[-1] == size


@pytest.mark.parametrize(
    "transforms, share, degrees, zoom",
    [("published_code", 0.0, -20.0, 1.0), ("published_code", 0.99, 20.0, 1.15), ("pretext", 0.99999, 15.0, 1.2)],
)
def test_turn_and_zoom_against_a_slow_reference(transforms: str, share: float, degrees: float, zoom: float) -> None:
    """The point at an offset from the centre comes from the offset turned back and divided by the zoom."""
    size = 64
    views = make(size, transforms)
    draws = constant(TURN, 0.5, rotation=share, scale=0.0 if zoom == 1.0 else 0.99)
    places = (torch.arange(size, dtype=torch.float32) + 0.5 - size / 2).expand(size, size)
    planes = torch.stack([places, places.T])[None].contiguous()  # x and y of every pixel, from the centre
    moved = views.geometry(planes, views.affine(draws))[0, :, 20, 40]
    x, y = 40.5 - size / 2, 20.5 - size / 2
    angle = math.radians(degrees)
    expected = [
        (math.cos(angle) * x - math.sin(angle) * y) / zoom,
        (math.sin(angle) * x + math.cos(angle) * y) / zoom,
    ]
    assert moved.tolist() == pytest.approx(expected, abs=0.02)


def test_all_values_of_the_published_sets_are_drawn() -> None:
    views, index = make(8, "published_code"), torch.arange(60)
    table = draw(TURN, views.word_keys, seed=0, epoch=0, index=index, draw=0 * index, view=0)
    scales = views.affine(table)[:, :, :2].flatten(1).square().sum(1)  # 2 / zoom^2
    assert {round(float(value), 3) for value in (2 / scales).sqrt()} == {1.0, 1.15}
    angles = {round(math.degrees(math.atan2(row[3], row[0]))) for row in views.affine(table).flatten(1).tolist()}
    assert angles == {-20, 0, 20}


def test_past_the_edge_is_black_by_default() -> None:
    batch = exams(1, 1, 64)
    batch["images"].fill_(255)
    views = make(64, "published_code")
    white = torch.ones(1, 1, 64, 64)
    corner = views.geometry(white, views.affine(constant(TURN, 0.5, rotation=0.0, scale=0.0)))[0, 0, 0, 0]
    assert corner.item() == 0.0
    assert F.mse_loss(views.geometry(white, views.affine(constant(TURN, 0.5, scale=0.0))), white).item() < 1e-6


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"transforms": "flip"}, "views.transforms: expected one of pretext, published_code, crop, none, got 'flip'"),
        ({"crop_scale": (0.0, 1.0), "transforms": "crop"}, "views.crop_scale: expected two numbers"),
        ({"size": 0}, "views.size: expected a positive number of pixels, got 0"),
    ],
)
def test_a_bad_field_is_named(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        VIEWS["volume"](**{"size": 8, "channels": 1, "value_range": (0.0, 1.0), **arguments})
    assert str(caught.value).startswith(said)


def test_single_images_are_refused() -> None:
    batch = {"images": scene(2, 1, 8, 8), "index": torch.arange(2), "draw": torch.zeros(2, dtype=torch.int64)}
    with pytest.raises(ValueError, match=r"images: expected \(B, S, 1, H, W\), got \(2, 1, 8, 8\)"):
        make(8, "none")(batch, seed=0, epoch=0)
