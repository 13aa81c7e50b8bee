"""Jumbled patches and transformed slices, against slow versions that follow the text pixel by pixel."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sslmed_dist import randomness
from sslmed_dist.data.arrangements import arrangements
from sslmed_dist.views.geometric import GeometricViews
from sslmed_dist.views.jumbled import JumbledViews
from tests.views import scenes

TABLE = arrangements("uniform", classes=50)
GIVEN: dict[str, Any] = {"channels": 1, "value_range": (0.0, 255.0)}


def jumbled(size: int = 64, **arguments: Any) -> JumbledViews:
    return JumbledViews(size, **{"arrangements": TABLE, **GIVEN, **arguments})


def batch(count: int = 4, size: int = 64) -> dict[str, Tensor]:
    return scenes.batch_of(scenes.scene(count, 1, size, size), first=3)


def uniform(index: int, word: str, seed: int, epoch: int) -> float:
    """The number that a word has for a sample."""
    return float(randomness.uniform(seed, "views", epoch, index, 0, 0, word))


def bilinear(image: Tensor, y: float, x: float, black: bool) -> float:
    """The value between four pixels of ``image`` (H, W); past the edge the edge itself, or black."""
    side = image.shape[0]
    if not black:
        y, x = (min(max(value, 0.0), side - 1.0) for value in (y, x))
    top, left = math.floor(y), math.floor(x)
    value = 0.0
    for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        weight = (1 - abs(y - row)) * (1 - abs(x - column))
        if 0 <= row < side and 0 <= column < side:
            value += weight * float(image[row, column])
    return value


def transformed(
    image: Tensor, y: float, x: float, angle: float, shift: tuple[float, float], scale: float
) -> list[float]:
    """Where (y, x) of the image that is scaled, turned anti-clockwise by ``angle`` degrees about its centre and shifted
    by (right, down) was before: the three steps undone one after another."""
    centre = (image.shape[0] - 1) / 2
    right, up = x - centre - shift[0], -(y - centre - shift[1])
    turn = math.radians(angle)
    right, up = right * math.cos(turn) + up * math.sin(turn), -right * math.sin(turn) + up * math.cos(turn)
    return [centre - up / scale, centre + right / scale]


def chosen(values: list[float], u: float) -> float:
    return values[int(u * len(values))]


def parameters(word: str, place: str, index: int, kind: str, most: float, seed: int, epoch: int) -> float:
    u = uniform(index, f"{word}{place}", seed, epoch)
    return chosen([-most, 0.0, most], u) if kind == "grid54" else -most + 2 * most * u


def slow(images: Tensor, index: list[int], kind: str, seed: int, epoch: int) -> tuple[Tensor, list[int]]:
    """Alg. 3.2 for images of 64 pixels: cells of 21, patches of 16, shifts of [1.6] = 1 pixel. No noise."""
    out, labels = torch.zeros(len(images), 9, 16, 16), []
    for n, sample in enumerate(index):
        labels.append(int(uniform(sample, "arrangement", seed, epoch) * len(TABLE)))
        for place in range(9):
            cell = int(TABLE[labels[-1], place])
            top, left = 21 * (cell // 3), 21 * (cell % 3)
            # 64 = 3 x 21 + 1: the first pixel row and column are kept, the last left out
            pixels = images[n, 0, top : top + 21, left : left + 21].float() / 255
            angle, right, down = (
                parameters(word, f":{place}", sample, kind, most, seed, epoch)
                for word, most in (("rotation", 15.0), ("shift_x", 1.0), ("shift_y", 1.0))
            )
            scale = chosen([1.0, 1.2], uniform(sample, f"scale:{place}", seed, epoch))
            first = [int(uniform(sample, f"{word}:{place}", seed, epoch) * 6) for word in ("top", "left")]
            for i in range(16):
                for j in range(16):
                    y, x = transformed(pixels, first[0] + i, first[1] + j, angle, (right, down), scale)
                    out[n, place, i, j] = bilinear(pixels, y, x, black=False)
    return out, labels


@pytest.mark.parametrize(("kind", "tolerance"), [("grid54", 1e-5), ("range", 2e-3)])
def test_patches_are_those_of_the_text(kind: str, tolerance: float) -> None:
    """A range is drawn on a grid of 4,096 steps, so it agrees to the change over half a step."""
    given = batch(2)
    views = jumbled(transforms=kind, noise=0.0)(given, seed=5, epoch=2)
    expected, labels = slow(given["images"], given["index"].tolist(), kind, 5, 2)
    assert views["pretext_label"].tolist() == labels
    assert views["patches"].shape == (2, 9, 1, 16, 16)
    torch.testing.assert_close(views["patches"][:, :, 0], expected, rtol=0, atol=tolerance)


def test_the_published_sizes() -> None:
    views = jumbled(256)
    assert (views.cell, views.patch, views.pretext_classes) == (85, 64, 50)
    assert (
        int(views.transforms.shifts[-1]) == 5 and float(views.transforms.shifts[-1]) < 6.0
    )  # [0.1 x 64] = 6, ends open
    assert jumbled(256, transforms="grid54").transforms.shifts.tolist() == [-6.0, 0.0, 6.0]


def test_in_evaluation_mode_patches_are_the_centres_of_their_cells() -> None:
    given = batch()
    views = jumbled().eval()
    made = views(given, seed=1, epoch=0)
    for n, label in enumerate(made["pretext_label"].tolist()):
        for place, cell in enumerate(TABLE[label].tolist()):
            top, left = 21 * (cell // 3) + 2, 21 * (cell % 3) + 2
            expected = given["images"][n, :, top : top + 16, left : left + 16].float() / 255
            assert torch.equal(made["patches"][n, place], expected)
    assert "images" not in made and torch.equal(made["labels"], given["labels"])


def test_noise_is_white_on_the_scale_from_minus_1_to_1_and_clipped() -> None:
    given = batch(8)
    plain = jumbled(noise=0.0, mean=(0.5,), std=(0.5,))(given, seed=1, epoch=0)["patches"]
    noisy = jumbled(noise=0.1, mean=(0.5,), std=(0.5,))(given, seed=1, epoch=0)["patches"]
    inside = plain.abs() < 0.5  # five deviations from where it is clipped
    difference = (noisy - plain)[inside]
    assert float(difference.mean()) == pytest.approx(0.0, abs=3e-3)
    assert float(difference.std()) == pytest.approx(0.1, rel=0.03)
    assert float(noisy.abs().max()) <= 1.0


@pytest.mark.parametrize("make", [jumbled, lambda: GeometricViews(64, **GIVEN)], ids=["jumbled", "geometric"])
def test_a_samples_views_depend_on_its_key_alone(make: Any) -> None:
    given, views = batch(40), make()
    whole = views(given, seed=3, epoch=1)
    rows = torch.tensor([31, 2])
    part = views({name: value[rows] for name, value in given.items()}, seed=3, epoch=1)
    name = "patches" if "patches" in whole else "views_0"
    assert torch.equal(part[name], whole[name][rows])
    assert torch.equal(part["pretext_label"], whole["pretext_label"][rows])
    again = views({**given, "draw": given["draw"] + 1}, seed=3, epoch=1)
    assert not torch.equal(again["pretext_label"], whole["pretext_label"])  # another slice of the same exam


def test_images_of_another_size_are_resized_and_other_grids_cut() -> None:
    views = JumbledViews(60, arrangements=arrangements("uniform", grid=2, classes=24), **GIVEN)
    made = views(batch(3, size=80), seed=0, epoch=0)
    assert made["patches"].shape == (3, 4, 1, views.patch, views.patch) and views.cell == 30


def test_a_slice_under_one_of_54_transforms() -> None:
    """The label is the transform: each is drawn, and the slow version with its members gives the same pixels."""
    given = batch(3)
    made = GeometricViews(64, **GIVEN)(given, seed=7, epoch=1)
    for n, label in enumerate(made["pretext_label"].tolist()):
        turn, across, down, scale = label // 18, label // 6 % 3, label // 2 % 3, label % 2
        image = given["images"][n, 0].float() / 255
        for i, j in ((0, 0), (5, 40), (32, 31), (63, 20), (50, 63)):
            y, x = transformed(
                image, i, j, 15.0 * (turn - 1), (6.0 * (across - 1), 6.0 * (down - 1)), (1.0, 1.2)[scale]
            )
            assert float(made["views_0"][n, 0, i, j]) == pytest.approx(bilinear(image, y, x, black=True), abs=1e-4)
    many = scenes.batch_of(torch.zeros(2000, 1, 16, 16, dtype=torch.uint8))
    labels = GeometricViews(16, **GIVEN)(many, seed=0, epoch=0)["pretext_label"]
    assert labels.unique().tolist() == list(range(54))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patch": 22}, r"^views\.patch: expected 1 to 21 pixels \(the cell\), got 22"),
        ({"size": 9}, r"^views\.size: 9 pixels give 3 cells of 3 a side"),
        ({"noise": -1.0}, r"^views\.noise: "),
        ({"rotation": 200.0}, r"^views\.rotation: "),
        ({"scale": 0.5}, r"^views\.scale: "),
        ({"shift": 2.0}, r"^views\.shift: "),
        ({"mean": (0.5, 0.5)}, r"^views\.mean: "),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        jumbled(**arguments)


def test_fewer_than_54_transforms_are_refused() -> None:
    with pytest.raises(ValueError, match="fewer than 54"):
        GeometricViews(8, **GIVEN)
