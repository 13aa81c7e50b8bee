"""Long, narrow images cost what is made of them; ordinary ones are what they were, bit for bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from sslmed_dist.data import DATASETS
from sslmed_dist.data.images.decode import read_picture
from sslmed_dist.data.images.packed import fit
from sslmed_dist.strips import MOST_ASPECT, middle_of_strip
from sslmed_dist.views import VIEWS

MOST = 3 * 224 * 224 * (MOST_ASPECT + 1)  # values of a tensor; the enlarged strip has 1.5e9


class Largest(TorchDispatchMode):
    """Notes the number of values of the largest tensor that any operation gives back."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.values = max(self.values, result.numel())
        return result


@pytest.mark.parametrize("shape", [(10_000, 1), (1, 10_000), (9_999, 3), (30_000, 2)])
def test_a_strip_costs_little_everywhere(tmp_path: Path, shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    largest = Largest()
    for bits in (8, 16):
        with largest:
            dataset = DATASETS["image_folder"](str(tmp_path), size=224, bits=bits, workers=0)
            images = dataset.fetch(torch.tensor([0]), seed=0, epoch=0, draw=torch.zeros(1))["images"]
        assert images.shape == (1, 3, 224, 224)
        assert read_picture(tmp_path / "a.png", 224, 1, bits).numel() <= 224 * 224 * (MOST_ASPECT + 1)
    stored = torch.from_numpy(pixels)[None]
    with largest:
        assert fit(stored, 224).shape == (1, 224, 224)
    batch = {"images": stored[None], "index": torch.tensor([0]), "draw": torch.tensor([0])}
    for name, arguments in (
        ("standard", {}),
        ("contrastive", {"jitter": None, "grey": 0.0}),
        ("contrastive", {"jitter": None, "grey": 0.0, "rotation": 10.0}),
    ):
        views = VIEWS[name](size=32, channels=1, value_range=(0.0, 255.0), **arguments)
        with largest:
            view = views(batch, seed=0, epoch=0)["views_0"]
        assert view.shape == (1, 1, 32, 32) and bool(torch.isfinite(view).all())
    assert 224 * 224 < largest.values <= MOST


def test_the_middle_of_a_strip_is_that_of_the_enlarged_whole() -> None:
    """Enlarged fourfold, by whole numbers, so that both ways sample at the same points."""
    strip = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 601, 8), np.uint8))
    whole = F.interpolate(strip[None].float(), scale_factor=4.0, mode="bilinear", antialias=True)[0]
    top = (whole.shape[1] - 32) // 2
    assert torch.equal(fit(strip, 32), whole[:, top : top + 32].round().clamp(0, 255).to(torch.uint8))
    views = VIEWS["standard"](size=32, channels=1, value_range=(0.0, 255.0))
    view = views({"images": strip[None]}, seed=0, epoch=0)["views_0"][0]
    assert torch.allclose(view, whole[:, top : top + 32] / 255, atol=1e-6)


@pytest.mark.parametrize("shape", [(64, 64), (100, 37), (37, 100), (1, 17), (20, 300), (2000, 40)])
def test_ordinary_images_are_not_cut(shape: tuple[int, int]) -> None:
    assert middle_of_strip(*shape, 32) is None


@pytest.mark.parametrize("shape", [(100, 37), (20, 300), (50, 20)])
def test_ordinary_images_are_as_before(tmp_path: Path, shape: tuple[int, int]) -> None:
    """Resized as a whole, then cut: by Pillow for files, by torch elsewhere."""
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, shape, np.uint8))
    picture.save(tmp_path / "a.png")
    scale = 32 / min(shape)
    sides = [max(32, round(side * scale)) for side in shape]
    expected = np.array(picture.resize((sides[1], sides[0]), Image.Resampling.BILINEAR))
    assert np.array_equal(read_picture(tmp_path / "a.png", 32, 1)[0].numpy(), expected)
    stored = torch.from_numpy(np.array(picture))[None, None]
    view = VIEWS["standard"](size=32, channels=1, value_range=(0.0, 255.0))({"images": stored}, seed=0, epoch=0)
    sides = [int(32 * side / min(shape)) for side in shape]
    whole = F.interpolate(stored.float() / 255, sides, mode="bilinear", antialias=True, align_corners=False)
    top, left = (round((side - 32) / 2) for side in sides)
    assert torch.equal(view["views_0"], whole[:, :, top : top + 32, left : left + 32])


def test_views_of_images_near_their_size_average_as_many_samples_as_before() -> None:
    """An image 32 times as large as its view is sampled directly; only beyond is it made smaller first."""
    geometry = (
        VIEWS["contrastive"](size=8, channels=1, value_range=(0.0, 1.0), jitter=None, grey=0.0).chains[0].geometry
    )
    ordinary, large = torch.rand(1, 1, 307, 20), torch.rand(1, 1, 900, 20)
    assert geometry.smaller(ordinary) is ordinary
    assert torch.equal(geometry.smaller(large), F.adaptive_avg_pool2d(large, (307, 20)))
