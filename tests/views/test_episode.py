"""Episode views: purity, what moves together, the field against slow references, and refusals."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sslmed_dist import registry
from sslmed_dist.views import VIEWS
from sslmed_dist.views.displacement import Displacement, noise
from sslmed_dist.views.episode import gamma_curve
from tests import device_cases
from tests.differences import require_within
from tests.views.scenes import constant, scene
from tests.views.scenes import episode_batch as batch_of
from tests.views.scenes import make_episodes as make

STILL: dict[str, Any] = {"rotation": 0, "shift": 0, "shear": 0, "scale": (1.0, 1.0), "elastic": 0, "gamma": (1.0, 1.0)}
MADE = ("support", "support_mask", "query", "query_mask")


def select(batch: dict[str, Tensor], chosen: Tensor) -> dict[str, Tensor]:
    return {name: value[chosen] for name, value in batch.items()}


def disc(size: int, row: float, column: float, radius: float) -> Tensor:
    places = torch.arange(size) + 0.5
    return (torch.hypot(places[:, None] - row, places[None] - column) < radius).to(torch.uint8)


def centre(mask: Tensor) -> tuple[float, float]:
    rows, columns = torch.nonzero(mask, as_tuple=True)
    return float(rows.float().mean()) + 0.5, float(columns.float().mean()) + 0.5


@pytest.mark.parametrize("shots, channels, size", [(1, 1, 33), (3, 1, 32), (2, 3, 24)])
def test_bits_do_not_depend_on_the_batch(shots: int, channels: int, size: int) -> None:
    count = 40
    views = make(size, channels, shots=shots, transform_support=True, mean=(0.1,) * channels, std=(1.3,) * channels)
    batch = batch_of(count, size, channels)
    torch.set_num_threads(1)
    expected = views(batch, seed=5, epoch=2)
    try:
        for number, parts in itertools.product((1, 2), (1, 3, 7, 32)):
            torch.set_num_threads(number)
            for chosen in torch.randperm(count, generator=torch.Generator().manual_seed(parts)).split(parts)[:3]:
                made = views(select(batch, chosen), seed=5, epoch=2)
                assert all(torch.equal(made[name], expected[name][chosen]) for name in MADE)
    finally:
        torch.set_num_threads(1)


def test_bits_of_large_slices_and_size_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    views, batch = make(256), batch_of(3, 256)
    expected = views(batch, seed=1, epoch=0)
    for row, pixels in enumerate((1, 1 << 17, 1 << 30)):
        monkeypatch.setattr("sslmed_dist.views.episode.CACHE", pixels)
        whole, alone = views(batch, seed=1, epoch=0), views(select(batch, torch.tensor([row])), seed=1, epoch=0)
        assert all(torch.equal(whole[name], expected[name]) for name in MADE)
        assert all(torch.equal(alone[name][0], expected[name][row]) for name in MADE)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_episodes_to_rounding() -> None:
    require_within(device_cases.episodes("cpu"), device_cases.episodes("cuda"), device_cases.episodes_tolerance)


def test_episodes_are_keyed_by_everything() -> None:
    views, batch = make(16, transform_support=True), batch_of(1, 16)
    both = [views(batch, seed=1, epoch=0)[name] for name in ("query", "support")]
    for change in ({"draw": torch.tensor([1])}, {"index": torch.tensor([1])}):
        both.append(views({**batch, **change}, seed=1, epoch=0)["query"])
    both += [views(batch, seed=seed, epoch=epoch)["query"] for seed, epoch in ((2, 0), (1, 1))]
    for a, b in itertools.combinations(both, 2):
        assert not torch.equal(a, b)
    assert torch.equal(views(batch, seed=1, epoch=0)["query"], both[0])
    untouched = make(16)(batch, seed=1, epoch=0)
    assert torch.equal(untouched["query"], both[0]) and torch.equal(untouched["support"], batch["images"])


def test_nothing_on_is_an_exact_copy() -> None:
    batch = batch_of(5, 20)
    before = {name: value.clone() for name, value in batch.items()}
    for arguments in ({}, {"transform_support": True}):
        made = make(20, **STILL, **arguments)(batch, seed=0, epoch=0)
        for name in ("support", "query"):
            assert torch.equal(made[name], batch["images"])
            assert torch.equal(made[f"{name}_mask"], batch["mask"].float()) and made[f"{name}_mask"].is_contiguous()
    make(20, shots=2, transform_support=True)(batch, seed=0, epoch=0)
    assert all(torch.equal(batch[name], before[name]) for name in before)
    scaled = make(20, **STILL, mean=(0.5,), std=(2.0,))(batch, seed=0, epoch=0)
    torch.testing.assert_close(scaled["query"], (batch["images"] - 0.5) / 2)
    assert torch.equal(scaled["query"], scaled["support"])


def test_shapes_and_other_entries() -> None:
    batch = batch_of(4, 16)
    made = make(16, shots=3, transform_support=True)(batch, seed=0, epoch=0)
    assert set(made) == {"labels", "index", "draw", *MADE} and made["labels"] is batch["labels"]
    assert made["support"].shape == (4, 3, 1, 16, 16) and made["support_mask"].shape == (4, 3, 16, 16)
    assert made["query"].shape == (4, 1, 16, 16) and made["query_mask"].shape == (4, 16, 16)
    assert all(made[name].dtype is torch.float32 and made[name].is_contiguous() for name in MADE)
    for a, b in itertools.combinations(made["support"].unbind(1), 2):
        assert not torch.equal(a, b)
    empty = make(16)({name: value[:0] for name, value in batch.items()}, seed=0, epoch=0)
    assert empty["support"].shape == (0, 1, 16, 16) and empty["query_mask"].shape == (0, 16, 16)


def test_supports_that_the_batch_brings() -> None:
    """They are what supports are made of, by the support's own draw; the query is that of the batch without them."""
    batch, other = batch_of(4, 16), batch_of(9, 16)
    brought = {"support_images": other["images"][5:], "support_mask": other["mask"][5:]}
    for moves in (False, True):
        views = make(16, transform_support=moves)
        made = views({**batch, **brought}, seed=2, epoch=1)
        of_other = {**batch, "images": brought["support_images"], "mask": brought["support_mask"]}
        for name, source in (("query", batch), ("support", of_other)):
            expected = views(source, seed=2, epoch=1)
            assert torch.equal(made[name], expected[name]) and torch.equal(
                made[f"{name}_mask"], expected[f"{name}_mask"]
            )
        assert set(made) == {"labels", "index", "draw", *MADE}
    with pytest.raises(ValueError, match="^mask: expected "):
        views({**batch, **brought, "support_mask": other["mask"]}, seed=2, epoch=1)


def test_mask_and_image_move_together() -> None:
    """A disc rendered as both: where the image of the disc is above its half, there is the mask."""
    size, count = 64, 24
    masks = torch.stack([disc(size, 20 + row, 44 - row, 9) for row in range(count)])
    batch = batch_of(count, size) | {"images": masks[:, None].float() * 3 - 1, "mask": masks}
    made = make(size, gamma=(1.0, 1.0), transform_support=True, rotation=30, shift=20)(batch, seed=3, epoch=0)
    for name in ("support", "query"):
        shown = (made[name][:, 0] > 0.5).float()
        assert torch.equal(made[f"{name}_mask"].unique(), torch.tensor([0.0, 1.0]))
        assert float((shown != made[f"{name}_mask"]).float().mean()) < 1e-4  # a pixel at the threshold may round
        assert not torch.equal(shown, masks.float())
    assert bool((made["query_mask"].sum((1, 2)) > 0.5 * masks.sum((1, 2))).all())


@pytest.mark.parametrize(
    "arguments, chosen, expected",
    [
        ({"shift": 64}, {"shift_x": 0.75, "shift_y": 0.25}, (32 - 8, 44 + 8)),  # 64 of 256 pixels are 16 of 64
        ({"rotation": 90}, {"rotation": 1.0 - 1e-9}, (32 - 12, 32.0)),  # anti-clockwise: from the right to the top
        ({"scale": (1.0, 2.0)}, {"scale": 0.5}, (32, 32 + 12 * 1.5)),
    ],
)
def test_directions(arguments: dict[str, Any], chosen: dict[str, float], expected: tuple[float, float]) -> None:
    still = {name: value for name, value in STILL.items() if name != "gamma"}
    moves = Displacement(64, **{**still, **arguments})
    planes = disc(64, 32, 44, 6)[None, None].float()
    found = moves(planes, *moves.draw(constant(moves.words, **chosen)))[0, 0] > 0.5
    assert centre(found) == pytest.approx(expected, abs=0.3)


def test_shear_moves_rows_sideways() -> None:
    still = {name: value for name, value in STILL.items() if name != "gamma"}
    moves = Displacement(64, **{**still, "shear": 45})
    draws = moves.draw(constant(moves.words, shear=0.75))
    upper, lower = (moves(disc(64, row, 32, 5)[None, None].float(), *draws)[0, 0] > 0.5 for row in (20, 44))
    step = 12 * math.tan(math.radians(22.5))
    assert centre(upper) == pytest.approx((20, 32 + step), abs=0.3)
    assert centre(lower) == pytest.approx((44, 32 - step), abs=0.3)


def test_draws_fill_their_ranges() -> None:
    count = 3000
    moves = Displacement(256)
    draws = {word: torch.rand(count, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
             for n, word in enumerate(moves.words)}  # fmt: skip
    affine, keys = moves.draw(draws)
    inverse = torch.linalg.inv(affine[:, :, :2].double())  # from slice to view: zoom x shear x turn
    zoom = torch.linalg.det(inverse).sqrt()
    moved = -(inverse @ affine[:, :, 2:].double())[:, :, 0] * 128  # pixels of 256
    assert 0.9 <= zoom.min() < 0.901 and 1.199 < zoom.max() <= 1.2 and abs(zoom.mean() - 1.05) < 0.005
    assert -5.001 < moved.min() < -4.99 and 4.99 < moved.max() < 5.001 and moved.mean(0).abs().max() < 0.2
    turn = torch.rad2deg(torch.atan2(affine[:, 1, 0], affine[:, 0, 0]))
    assert -5 <= turn.min() < -4.99 and 4.99 < turn.max() <= 5 and abs(turn.mean()) < 0.2
    assert len(keys.unique()) == count


@pytest.mark.parametrize("size", [64, 256])
def test_elastic_field_is_blurred_noise(size: int) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    moves = Displacement(size, elastic=10, elastic_sigma=5)
    keys = torch.tensor([3, 2**50 + 7])
    field, raw = moves.field(keys), noise(keys, size).double()
    assert raw.min() >= -1 and raw.max() <= 1 and abs(raw.mean()) < 0.02 and abs(raw.std() - 3**-0.5) < 0.01
    part, sigma = size / 256, 5 * size / 256
    for planes, noises in zip(field, raw, strict=True):
        for plane, source in zip(planes, noises, strict=True):
            blurred = ndimage.gaussian_filter(source.numpy(), sigma, mode="mirror", radius=math.ceil(3 * sigma))
            expected = 10 * part**2 * blurred * 2 / size  # pixels, on [-1, 1]
            np.testing.assert_allclose(plane.numpy(), expected, atol=2e-6)
    # the same fraction of the slice at every size: alpha / (sigma sqrt(3) 2 sqrt(pi)) pixels of 256
    wanted = 10 / (5 * math.sqrt(3) * 2 * math.sqrt(math.pi)) / 128
    assert float(field.std()) == pytest.approx(wanted, rel=0.15)


def test_view_is_the_slice_at_the_displaced_points() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    size = 48
    moves = Displacement(size, rotation=20, shift=30, shear=10, elastic=60)
    draws = constant(moves.words, rotation=0.9, shift_x=0.8, shift_y=0.3, shear=0.2, scale=0.7, elastic=0.123)
    affine, keys = moves.draw(draws)
    image = scene(1, 1, size, size, torch.float32)
    field = moves.field(keys)[0].double().numpy() * size / 2
    rows, columns = np.mgrid[:size, :size] - (size - 1) / 2
    points = np.stack([columns + field[0], rows + field[1]])
    matrix = affine[0].double().numpy()
    x, y = np.tensordot(matrix[:, :2], points, 1) + matrix[:, 2, None, None] * size / 2
    expected = ndimage.map_coordinates(
        image[0, 0].numpy(), [y + (size - 1) / 2, x + (size - 1) / 2], order=1, mode="nearest"
    )
    np.testing.assert_allclose(moves(image, affine, keys)[0, 0].numpy(), expected, atol=2e-5)


def test_gamma_keeps_the_range_and_bends_between() -> None:
    images = scene(4, 1, 12, 12, torch.float32) * 7 - 3
    images[3] = 2.5
    gamma = torch.tensor([0.5, 1.5, 1.0, 0.7], dtype=torch.float64)
    made = gamma_curve(images, gamma)
    low, high = images.amin((1, 2, 3)), images.amax((1, 2, 3))
    assert torch.equal(made.amin((1, 2, 3)), low) and torch.equal(made.amax((1, 2, 3)), high)
    for row in range(2):
        unit = (images[row] - low[row]) / (high[row] - low[row])
        torch.testing.assert_close(made[row], unit ** float(gamma[row]) * (high[row] - low[row]) + low[row])
    torch.testing.assert_close(made[2], images[2])
    assert torch.equal(made[3], images[3])
    batch = batch_of(2000, 4)
    batch["images"][:, 0, 0, :3] = torch.tensor([-1.0, 3.0, 1.0])  # the middle of the range
    batch["images"].clamp_(-1.0, 3.0)
    query = make(4, **{**STILL, "gamma": (0.5, 1.5)})(batch, seed=0, epoch=0)["query"]
    drawn = torch.log2(((query[:, 0, 0, 2] + 1) / 4).double()).neg()
    assert 0.5 <= drawn.min() < 0.505 and 1.495 < drawn.max() <= 1.5001 and abs(drawn.mean() - 1.0) < 0.02


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"size": 0}, "views.size: expected a positive"),
        ({"shots": 0}, "views.shots: expected at least 1, got 0"),
        ({"shots": 2}, "views.shots: 2 supports would be equal; set transform_support"),
        ({"rotation": 181.0}, "views.rotation: expected a number from 0 to 180"),
        ({"shift": -1.0}, "views.shift: expected a number from 0 to 256"),
        ({"shear": 80.0}, "views.shear: expected a number from 0 to 60"),
        ({"scale": (0.0, 1.0)}, "views.scale: expected two numbers"),
        ({"scale": (1.2, 0.9)}, "views.scale: expected two numbers"),
        ({"elastic": -1.0}, "views.elastic: expected a number from 0"),
        ({"elastic_sigma": 0.0}, "views.elastic_sigma: expected a number above 0"),
        ({"gamma": (0.0, 1.0)}, "views.gamma: expected two numbers"),
        ({"fill": "mirror"}, "views.fill: expected one of reflection, border, zeros"),
        ({"mean": (0.0, 0.0)}, "views.mean: expected 1 numbers .one per channel., got 2"),
        ({"std": (0.0,)}, "views.std: expected positive"),
    ],
)
def test_refusals_name_the_field(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**{"size": 16, **arguments})


def test_other_images_and_masks_are_refused() -> None:
    views, batch = make(16), batch_of(2, 16)
    refused = [
        (
            {"images": batch["images"][..., :12]},
            r"images: expected float32 of the views' size 16 x 16, got \(2, 1, 16,",
        ),
        ({"images": batch["images"].to(torch.uint8)}, "got .* torch.uint8; set data.size"),
        ({"images": batch["images"][:, 0]}, r"images: expected \(B, 1, H, W\)"),
        ({"mask": batch["mask"][:1]}, r"mask: expected \(2, 16, 16\), got \(1, 16, 16\)"),
    ]
    for change, message in refused:
        with pytest.raises(ValueError, match=message):
            views({**batch, **change}, seed=0, epoch=0)
    leaf = {"name": "episode", "size": 16, "scale": [0.9, 1.1], "shots": 2, "transform_support": True}
    given = {"channels": 1, "value_range": (0.0, 1.0)}
    assert registry.build(VIEWS, leaf, "views", **given)(batch, seed=0, epoch=0)["support"].shape[1] == 2
    with pytest.raises(ValueError, match="views.fold: unknown key"):
        registry.check(VIEWS, {**leaf, "fold": 1}, "views", tuple(given))
