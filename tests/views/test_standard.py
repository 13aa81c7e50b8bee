"""The deterministic view."""

import pytest
import torch
from torchvision.transforms import functional as TF

from sslmed_dist.views import VIEWS
from tests.views.scenes import batch_of, scene, value_range


@pytest.mark.parametrize("height, width, resize", [(50, 70, 32), (70, 50, 36), (20, 31, None), (65, 64, 32)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32])
def test_resize_and_centre_crop_as_torchvision(height: int, width: int, resize: int | None, dtype: torch.dtype) -> None:
    images = scene(5, 2, height, width, dtype)
    low, high = value_range(dtype)
    mean, std = (0.5, 0.4), (0.2, 0.3)
    views = VIEWS["standard"](32, resize, channels=2, value_range=(low, high), mean=mean, std=std)
    result = views(batch_of(images), seed=0, epoch=0)
    unit = ((images.float() - low) / (high - low)).clamp(0, 1)
    expected = TF.normalize(TF.center_crop(TF.resize(unit, resize or 32, antialias=True), 32), mean, std)
    torch.testing.assert_close(result["views_0"], expected, atol=3e-6, rtol=0)
    assert set(result) == {"labels", "index", "draw", "views_0"} and result["views_0"].is_contiguous()
    assert torch.equal(result["views_0"], views(batch_of(images), seed=9, epoch=4)["views_0"])


def test_images_of_the_right_size_are_only_normalised() -> None:
    images = scene(3, 3, 16, 16, torch.float32)
    before = images.clone()
    views = VIEWS["standard"](16, 20, channels=3, value_range=(0.0, 1.0))
    assert torch.equal(views(batch_of(images), seed=0, epoch=0)["views_0"], images)
    views = VIEWS["standard"](16, channels=3, value_range=(0.0, 1.0), mean=(0.5,) * 3, std=(0.25,) * 3)
    assert torch.equal(views(batch_of(images), seed=0, epoch=0)["views_0"], (images - 0.5) / 0.25)
    assert torch.equal(images, before)


def test_bits_do_not_depend_on_the_batch() -> None:
    images = scene(9, 3, 45, 61)
    views = VIEWS["standard"](32, channels=3, value_range=(0.0, 255.0), mean=(0.5,) * 3, std=(0.25,) * 3)
    whole = views(batch_of(images), seed=0, epoch=0)["views_0"]
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for parts in (1, 2, 5):
                pieces = [views(batch_of(part), seed=0, epoch=0)["views_0"] for part in images.split(parts)]
                assert torch.equal(torch.cat(pieces), whole)
            last = images.to(memory_format=torch.channels_last)
            assert torch.equal(views(batch_of(last), seed=0, epoch=0)["views_0"], whole)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"size": 0}, "views.size: expected a positive"),
        ({"resize": 8}, r"views.resize: expected at least size \(16\), got 8"),
        ({"mean": (0.5, 0.5)}, "views.mean: expected 3 numbers"),
        ({"std": (-1.0, 1.0, 1.0)}, "views.std: expected positive"),
        (
            {"mean": (125.3, 123.0, 113.9)},
            r"views.mean: expected numbers on the scale 0 to 1, got \[125.3, 123.0, 113.9\]; divide them by 255",
        ),
        ({"std": (63.0, 62.1, 66.7)}, "views.std: expected numbers on the scale 0 to 1"),
    ],
)
def test_refusals_name_the_field(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VIEWS["standard"](**{"size": 16, "channels": 3, "value_range": (0.0, 1.0), **arguments})
