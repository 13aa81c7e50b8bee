"""Boxes against torchvision's distribution, resampling against slow references."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from sslmed_dist.views.draws import draw, word_keys
from sslmed_dist.views.geometry import Geometry
from tests.views.scenes import batch_of, constant, make, scene

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def keyed(geometry: Geometry, count: int) -> dict[str, Tensor]:
    index = torch.arange(count)
    keys = word_keys(geometry.words)
    return dict(draw(geometry.words, keys, seed=1, epoch=0, index=index, draw=0 * index, view=0))


def distance(a: Tensor, b: Tensor) -> float:
    """Kolmogorov and Smirnov's: the largest gap between two empirical distribution functions."""
    points = torch.cat([a, b]).sort().values
    share = [torch.searchsorted(x.sort().values, points, right=True) / len(x) for x in (a, b)]
    return float((share[0] - share[1]).abs().max())


@pytest.mark.parametrize("height, width, scale", [(32, 32, SCALE), (60, 25, (0.5, 1.0))])
def test_boxes_are_distributed_as_torchvisions(height: int, width: int, scale: tuple[float, float]) -> None:
    count = 4000
    geometry = Geometry(8, scale, RATIO)
    ours = geometry.boxes(keyed(geometry, count), height, width)
    torch.manual_seed(0)
    image = torch.empty(1, height, width)
    drawn = [RandomResizedCrop.get_params(image, list(scale), list(RATIO)) for _ in range(count)]
    theirs = torch.tensor(drawn, dtype=torch.float64)[:, [1, 0, 3, 2]]
    bound = 1.63 * math.sqrt(2 / count)  # 1 % level
    for feature in (lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 2] / b[:, 3], lambda b: b[:, 0], lambda b: b[:, 1]):
        assert distance(feature(ours), feature(theirs)) < bound
    assert (ours[:, :2] >= 0).all() and (ours[:, 0] + ours[:, 2] <= width).all()
    assert (ours[:, 1] + ours[:, 3] <= height).all() and torch.equal(ours, ours.round())


@pytest.mark.parametrize("height, width", [(10, 40), (40, 10), (20, 20)])
def test_fallback_is_torchvisions(height: int, width: int) -> None:
    """No box of the whole area and this ratio fits an oblong image: the largest centred one is taken."""
    geometry = Geometry(8, (1.0, 1.0), (0.9, 1.1))
    box = geometry.boxes(constant(geometry.words, 0.999), height, width)[0].int().tolist()
    top, left, down, across = RandomResizedCrop.get_params(torch.empty(1, height, width), [1.0, 1.0], [0.9, 1.1])
    assert box == [left, top, across, down]


def test_flip_rates() -> None:
    geometry = Geometry(8, flip=0.3, vertical_flip=0.8)
    affine = geometry.draw(keyed(geometry, 4000), 32, 32)
    assert abs(float((affine[:, 0, 0] < 0).float().mean()) - 0.3) < 0.03
    assert abs(float((affine[:, 1, 1] < 0).float().mean()) - 0.8) < 0.03


def test_crop_is_the_resized_slice() -> None:
    """Away from the border of the box, where ours sees the true neighbours, it is torchvision's resized crop."""
    images = scene(30, 3, 40, 33, torch.float32)
    geometry = Geometry(64, (0.1, 0.9), RATIO, flip=0.5, vertical_flip=0.5)
    draws = keyed(geometry, 30)
    views = geometry(images, geometry.draw(draws, 40, 33))
    for row, (left, top, across, down) in enumerate(geometry.boxes(draws, 40, 33).int().tolist()):
        piece = images[row : row + 1, :, top : top + down, left : left + across]
        expected = F.interpolate(piece, size=(64, 64), mode="bilinear", align_corners=False)
        axes = [axis for axis, word in ((3, "flip"), (2, "vertical_flip")) if draws[word][row] < 0.5]
        edge = 1 + math.ceil(32 / min(across, down))
        inner = slice(edge, 64 - edge)
        torch.testing.assert_close(
            views[row, :, inner, inner], expected.flip(axes)[0, :, inner, inner], atol=1e-5, rtol=0
        )


def slow_view(image: Tensor, box: list[int], flip: bool, degrees: float, size: int) -> Tensor:
    """Pixel by pixel: turn and mirror the centre of the output pixel, find it in the box, blend four pixels."""
    out = torch.zeros(image.shape[0], size, size, dtype=torch.float64)
    left, top, across, down = box
    height, width = image.shape[1:]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    for i in range(size):
        for j in range(size):
            x, y = (j + 0.5) / size - 0.5, (i + 0.5) / size - 0.5
            x, y = cos * x - sin * y, sin * x + cos * y
            x = left + across * ((-x if flip else x) + 0.5) - 0.5
            y = top + down * (y + 0.5) - 0.5
            for row, column in [(math.floor(y) + a, math.floor(x) + b) for a in (0, 1) for b in (0, 1)]:
                weight = (1 - abs(y - row)) * (1 - abs(x - column))
                pixel = image[:, min(max(row, 0), height - 1), min(max(column, 0), width - 1)]
                out[:, i, j] += weight * pixel.double()
    return out


def test_rotation_against_a_slow_reference() -> None:
    images = scene(8, 2, 21, 17, torch.float32)
    geometry = Geometry(9, (0.3, 1.0), RATIO, flip=0.5, rotation=40.0, fill="border", antialias=False)
    draws = keyed(geometry, 8)
    views = geometry(images, geometry.draw(draws, 21, 17))
    for row, box in enumerate(geometry.boxes(draws, 21, 17).int().tolist()):
        degrees = -40 + 80 * (math.floor(float(draws["rotation"][row]) * 4096) + 0.5) / 4096
        expected = slow_view(images[row], box, bool(draws["flip"][row] < 0.5), degrees, 9)
        torch.testing.assert_close(views[row], expected.float(), atol=2e-5, rtol=0)


def test_quarter_turn_is_anticlockwise() -> None:
    geometry = Geometry(16, (1.0, 1.0), (1.0, 1.0), flip=0.0, rotation=90.0)
    geometry.turns.copy_(torch.tensor([0.0, 1.0]).expand_as(geometry.turns))  # all draws give 90 degrees
    images = scene(3, 3, 16, 16, torch.float32)
    views = geometry(images, geometry.draw(constant(geometry.words, count=3), 16, 16))
    torch.testing.assert_close(views, torch.rot90(images, 1, (2, 3)), atol=1e-5, rtol=0)


def test_fill_of_corners() -> None:
    ones = torch.ones(1, 1, 16, 16)
    for fill, low in (("zeros", 0.0), ("border", 1.0), ("reflection", 1.0)):
        geometry = Geometry(16, (1.0, 1.0), (1.0, 1.0), rotation=45.0, fill=fill)
        view = geometry(ones, geometry.draw(constant(geometry.words, rotation=0.999), 16, 16))
        assert float(view[0, 0, 0, 0]) == pytest.approx(low)
        assert float(view[0, 0, 8, 8]) == pytest.approx(1.0)
        upright = Geometry(32, (1.0, 1.0), (0.9, 1.1), fill=fill)
        assert float(upright(ones, upright.draw(constant(upright.words), 16, 16)).min()) == pytest.approx(1.0)


@pytest.mark.parametrize("side, samples", [(8, 1), (32, 1), (38, 1), (39, 2), (70, 2), (96, 3)])
def test_antialiasing_is_a_rule_of_the_size(side: int, samples: int) -> None:
    assert Geometry(32).samples(side, 5) == samples
    assert Geometry(32, antialias=False).samples(side, 5) == 1


def test_antialiasing_averages() -> None:
    """Stripes one pixel wide, shrunk four times: their mean, not whichever stripe the sample falls on."""
    stripes = torch.zeros(1, 1, 64, 64)
    stripes[..., ::2] = 1.0
    still = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "flip": 0.0}
    plain, smooth = (Geometry(16, **still, antialias=on) for on in (False, True))
    draws = constant(plain.words)
    smoothed = smooth(stripes, smooth.draw(draws, 64, 64))
    torch.testing.assert_close(smoothed, torch.full_like(smoothed, 0.5), atol=0.02, rtol=0)
    reference = F.interpolate(scene(2, 3, 64, 64, torch.float32), size=(16, 16), mode="area")
    shrunk = smooth(scene(2, 3, 64, 64, torch.float32), smooth.draw(constant(plain.words, count=2), 64, 64))
    torch.testing.assert_close(shrunk, reference, atol=0.01, rtol=0)


def test_exact_flips_without_crop() -> None:
    images = scene(40, 3, 16, 16)
    views = make(16, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.5, vertical_flip=0.5, jitter=None, grey=0.0)
    result = views(batch_of(images), seed=0, epoch=0)["views_0"]
    unit = images / 255
    seen = [
        [axes for axes in ((), (1,), (2,), (1, 2)) if torch.equal(view, whole.flip(axes))]
        for view, whole in zip(result, unit, strict=True)
    ]
    assert all(len(found) == 1 for found in seen) and len({found[0] for found in seen}) == 4
