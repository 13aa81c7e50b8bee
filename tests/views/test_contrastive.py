"""Purity of views (the same bits in every batch), what they are keyed by, and refusals."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from sslmed_dist import registry
from sslmed_dist.views import VIEWS
from tests import device_cases
from tests.differences import require_within
from tests.views.scenes import ALL, OFF, batch_of, make, scene

CASES = [
    (1, torch.int16, (17, 23), 16),
    (3, torch.uint8, (17, 23), 16),
    (5, torch.float32, (17, 23), 16),
    (3, torch.float32, (32, 32), 32),
    (3, torch.uint8, (50, 44), 30),
]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def select(batch: dict[str, Tensor], chosen: Tensor) -> dict[str, Tensor]:
    return {name: value[chosen] for name, value in batch.items()}


def both(result: dict[str, Tensor]) -> Tensor:
    return torch.stack([result["views_0"], result["views_1"]], 1)


@pytest.mark.parametrize("channels, dtype, source, size", CASES)
def test_bits_do_not_depend_on_the_batch(
    threads: None, channels: int, dtype: torch.dtype, source: tuple[int, int], size: int
) -> None:
    count = 70
    views = make(size, channels, dtype, mean=(0.4,) * channels, std=(0.2,) * channels, **ALL)
    batch = batch_of(scene(count, channels, *source, dtype))
    torch.set_num_threads(1)
    expected = both(views(batch, seed=5, epoch=2))
    assert expected.isfinite().all()
    for number in (1, 2):
        torch.set_num_threads(number)
        for parts in (1, 3, 7, 64):
            for chosen in torch.randperm(count, generator=torch.Generator().manual_seed(parts)).split(parts)[:3]:
                assert torch.equal(both(views(select(batch, chosen), seed=5, epoch=2)), expected[chosen])
        last = {**batch, "images": batch["images"].to(memory_format=torch.channels_last)}
        assert torch.equal(both(views(last, seed=5, epoch=2)), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_bits_of_large_images_do_not_depend_on_the_batch(threads: None, channels: int) -> None:
    """Sums over more pixels than a thread takes are where a reduction would be split."""
    views = make(224, channels, **ALL)
    batch = batch_of(scene(3, channels, 256, 256))
    torch.set_num_threads(1)
    expected = both(views(batch, seed=1, epoch=0))
    torch.set_num_threads(2)
    for row in range(3):
        assert torch.equal(both(views(select(batch, torch.tensor([row])), seed=1, epoch=0)), expected[row : row + 1])
    assert torch.equal(both(views(batch, seed=1, epoch=0)), expected)


def test_size_of_chunks_changes_no_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    views = make(16, **ALL)
    batch = batch_of(scene(20, 3, 16, 16))
    expected = both(views(batch, seed=1, epoch=0))
    for floats in (1, 5000, 1 << 30):
        monkeypatch.setattr("sslmed_dist.views.contrastive.CACHE", floats)
        monkeypatch.setattr("sslmed_dist.views.filters.CACHE", floats)
        assert torch.equal(both(views(batch, seed=1, epoch=0)), expected)


@pytest.mark.parametrize("count", [0, 1, 7])
@pytest.mark.parametrize("arguments", [ALL, {**ALL, "views": 3, "second": {"blur": 1.0}}, {"views": 4}])
def test_views_that_go_through_a_chain_together_have_the_same_bits(
    arguments: dict[str, Any], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU; one after another is as on a CPU."""
    views = make(16, **arguments)
    batch = select(batch_of(scene(7, 3, 20, 24)), torch.arange(count))
    expected = views(batch, seed=1, epoch=2)
    calls: list[int] = []
    for chain in set(views.chains):
        chain.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    monkeypatch.setattr(type(views), "together", lambda *_: True)
    made = views(batch, seed=1, epoch=2)
    assert list(made) == list(expected) and all(torch.equal(made[name], expected[name]) for name in made)
    assert all(made[f"views_{view}"].is_contiguous() for view in range(len(views.chains)))
    if count:
        assert sorted(calls) == sorted(count * list(views.chains).count(chain) for chain in set(views.chains))


@pytest.mark.gpu
def test_a_gpu_gives_the_same_views_to_rounding() -> None:
    require_within(device_cases.views("cpu"), device_cases.views("cuda"), device_cases.views_tolerance)


def test_views_are_keyed_by_everything() -> None:
    views = make(16)
    batch = batch_of(scene(1, 3, 16, 16).repeat(4, 1, 1, 1))
    result = both(views(batch, seed=1, epoch=0))
    different = [result[0, 0], result[0, 1], result[1, 0], result[2, 0]]
    again = {**batch, "draw": batch["draw"] + 1}
    different += [both(views(again, seed=1, epoch=0))[0, 0]]
    different += [both(views(batch, seed=seed, epoch=epoch))[0, 0] for seed, epoch in ((2, 0), (1, 1))]
    for a, b in itertools.combinations(different, 2):
        assert not torch.equal(a, b)
    assert torch.equal(both(views(batch, seed=1, epoch=0)), result)


def test_nothing_on_is_an_exact_copy() -> None:
    for dtype in (torch.uint8, torch.float32):
        images = scene(5, 3, 16, 16, dtype)
        result = make(16, dtype=dtype, **OFF)(batch_of(images), seed=0, epoch=0)
        unit = images.float() / 255 if dtype is torch.uint8 else images
        assert torch.equal(result["views_0"], unit) and torch.equal(result["views_1"], unit)


def test_window_and_normalisation() -> None:
    images = scene(4, 2, 16, 16, torch.int16)
    before = images.clone()
    mean, std = (0.3, 0.6), (0.2, 0.4)
    views = make(16, 2, torch.int16, **{**OFF, "mean": mean, "std": std})
    result = views(batch_of(images), seed=0, epoch=0)["views_0"]
    unit = ((images.double() + 800) / 3300).clamp(0, 1)
    expected = (unit - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(result, expected.float(), atol=2e-6, rtol=0)
    assert torch.equal(images, before)


def test_float_input_is_not_written_to() -> None:
    images = scene(4, 3, 16, 16, torch.float32)
    before = images.clone()
    make(16, dtype=torch.float32, **{**OFF, "noise": 0.1, "cutout": (1, 1)})(batch_of(images), seed=0, epoch=0)
    assert torch.equal(images, before)


def test_other_entries_are_kept_and_images_left_out() -> None:
    batch = batch_of(scene(4, 3, 20, 20))
    result = make(8, views=3)(batch, seed=0, epoch=0)
    assert set(result) == {"labels", "index", "draw", "views_0", "views_1", "views_2"}
    assert result["labels"] is batch["labels"]
    assert all(result[f"views_{i}"].shape == (4, 3, 8, 8) and result[f"views_{i}"].is_contiguous() for i in range(3))
    empty = make(8, **ALL)({name: value[:0] for name, value in batch.items()}, seed=0, epoch=0)
    assert empty["views_1"].shape == (0, 3, 8, 8)


def test_second_view_takes_overrides() -> None:
    images = scene(6, 3, 16, 16)
    views = make(16, **OFF, second={"solarise": 1.0, "solarise_threshold": 0.0})
    result = views(batch_of(images), seed=0, epoch=0)
    assert torch.equal(result["views_0"], images / 255)
    torch.testing.assert_close(result["views_1"], 1 - images / 255)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"size": 0}, "views.size: expected a positive"),
        ({"views": 0}, "views.views: expected a number from 1 to 1000, got 0"),
        ({"views": 10**9}, "views.views: expected a number from 1 to 1000, got 1000000000"),
        ({"crop_scale": (0.9, 0.1)}, "views.crop_scale: expected two numbers"),
        ({"crop_scale": (0.1, 1.5)}, "views.crop_scale"),
        ({"crop_ratio": (0.0, 1.0)}, "views.crop_ratio"),
        ({"flip": 1.5}, "views.flip: expected a number from 0 to 1, got 1.5"),
        ({"vertical_flip": -0.1}, "views.vertical_flip"),
        ({"rotation": 181.0}, "views.rotation: expected a number from 0 to 180"),
        ({"fill": "mirror"}, "views.fill: expected one of reflection, border, zeros"),
        ({"jitter": (0.4, 0.4, 0.4)}, "views.jitter: expected four"),
        ({"jitter": (-0.4, 0.4, 0.4, 0.1)}, "views.jitter: expected four strengths of at least 0"),
        ({"jitter": (0.4, 0.4, 0.4, 0.6)}, "views.jitter .hue, the fourth.: expected a number from 0 to 0.5"),
        ({"jitter_probability": 2.0}, "views.jitter_probability"),
        ({"grey": -1.0}, "views.grey"),
        ({"blur": 1.1}, "views.blur: expected a number from 0 to 1"),
        ({"blur_sigma": (2.0, 0.1)}, "views.blur_sigma"),
        ({"blur_sigma": (0.0, 0.1)}, "views.blur_sigma"),
        ({"solarise": 3.0}, "views.solarise"),
        ({"solarise_threshold": 1.5}, "views.solarise_threshold"),
        ({"noise": -0.1}, "views.noise: expected a standard deviation"),
        ({"noise_probability": 1.1}, "views.noise_probability"),
        ({"cutout": (3, 1)}, "views.cutout: expected two numbers of holes"),
        ({"cutout_fraction": 0.0}, "views.cutout_fraction"),
        ({"channels": 0}, "views.channels: expected a positive"),
        ({"channels": 1}, "views.jitter: saturation and hue .third and fourth. must be 0 with 1 channel"),
        ({"channels": 1, "jitter": None}, "views.grey: must be 0 with 1 channel"),
        ({"value_range": (1.0, 0.0)}, "views.value_range: expected two numbers, low < high"),
        ({"mean": (0.5,)}, "views.mean: expected 3 numbers .one per channel., got 1"),
        ({"std": (0.5, 0.5, 0.0)}, "views.std: expected positive"),
        ({"second": {"size": 3}}, "views.second.size: unknown key; allowed: crop_scale, crop_ratio, flip"),
        ({"second": {"name": "view"}}, "views.second.name: unknown key; allowed: crop_scale, crop_ratio, flip"),
        ({"second": {"blur": "often"}}, "views.second.blur: expected float, got 'often'"),
        ({"second": {"blur": 2.0}}, "views.second.blur: expected a number from 0 to 1"),
        ({"second": {}, "views": 1}, "views.second: needs at least 2 views"),
    ],
)
def test_refusals_name_the_field(arguments: dict[str, object], message: str) -> None:
    given = {"size": 16, "channels": 3, "value_range": (0.0, 1.0), **arguments}
    with pytest.raises(ValueError, match=message):
        VIEWS["contrastive"](**given)


def test_signature_is_a_schema() -> None:
    leaf = {"name": "contrastive", "size": 16, "crop_scale": [0.2, 1.0], "cutout": [1, 2], "second": {"blur": 0.1}}
    given = {"channels": 3, "value_range": (0.0, 255.0), "mean": None, "std": None}
    views = registry.build(VIEWS, leaf, "views", **given)
    assert views(batch_of(scene(2, 3, 16, 16)), seed=0, epoch=0)["views_1"].shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match="views.crop_scale: expected"):
        registry.check(VIEWS, {**leaf, "crop_scale": 0.2}, "views", tuple(given))


@pytest.mark.parametrize("name", ["contrastive", "standard"])
def test_images_of_another_kind_are_refused(name: str) -> None:
    views = VIEWS[name](16, channels=3, value_range=(0.0, 255.0))
    with pytest.raises(ValueError, match=r"images: expected \(B, 3, H, W\), got \(2, 1, 16, 16\)"):
        views(batch_of(scene(2, 1, 16, 16)), seed=0, epoch=0)
    with pytest.raises(ValueError, match="images: expected uint8, int16 or float32, got torch.float64"):
        views(batch_of(scene(2, 3, 16, 16).double()), seed=0, epoch=0)
