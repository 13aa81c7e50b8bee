"""Small images and batches for the tests of views."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslmed_dist import randomness
from sslmed_dist.views import VIEWS

OFF: dict[str, Any] = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "flip": 0.0, "jitter": None, "grey": 0.0}
ALL: dict[str, Any] = {
    "vertical_flip": 0.3,
    "rotation": 30.0,
    "blur": 0.5,
    "solarise": 0.4,
    "noise": 0.05,
    "noise_probability": 0.7,
    "cutout": (0, 3),
}


def scene(count: int, channels: int, height: int, width: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    """Smooth keyed noise: float32 in [0, 1], uint8 in [0, 255] or int16 in [-1000, 3000]."""
    cells = torch.arange(count * channels * 36)
    coarse = randomness.uniform("scene", count, cells).float().view(count, channels, 6, 6)
    images = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    if dtype is torch.uint8:
        return (images * 255).round().to(dtype)
    return (images * 4000 - 1000).round().to(dtype) if dtype is torch.int16 else images


def value_range(dtype: torch.dtype) -> tuple[float, float]:
    return {torch.uint8: (0.0, 255.0), torch.int16: (-800.0, 2500.0)}.get(dtype, (0.0, 1.0))


def batch_of(images: Tensor, first: int = 0) -> dict[str, Tensor]:
    count = len(images)
    return {
        "images": images,
        "labels": torch.arange(count) % 3,
        "index": torch.arange(first, first + count),
        "draw": torch.zeros(count, dtype=torch.int64),
    }


def make(size: int, channels: int = 3, dtype: torch.dtype = torch.uint8, **arguments: Any) -> Any:
    """Contrastive views for scenes of a type; without colour unless there are three channels."""
    if channels != 3:
        arguments = {"jitter": (0.4, 0.4, 0.0, 0.0), "grey": 0.0, **arguments}
    return VIEWS["contrastive"](size, channels=channels, value_range=value_range(dtype), **arguments)


def constant(words: tuple[str, ...], value: float = 0.5, count: int = 1, **chosen: float) -> dict[str, Tensor]:
    """Draws in which every word has one value, but for those that are chosen."""
    return {word: torch.full((count,), chosen.get(word, value), dtype=torch.float64) for word in words}


def make_episodes(size: int, channels: int = 1, **arguments: Any) -> Any:
    """Episode views that leave intensities on their scale."""
    mean = {"mean": (0.0,) * channels, "std": (1.0,) * channels}
    return VIEWS["episode"](size, channels=channels, value_range=(0.0, 1.0), **{**mean, **arguments})


def episode_batch(count: int, size: int, channels: int = 1) -> dict[str, Tensor]:
    """Slices in [-1, 3] with masks, and draws of 0, 1 and 2."""
    images = scene(count, channels, size, size, torch.float32) * 4 - 1
    indices = torch.arange(count)
    mask = (scene(count, 1, size, size, torch.float32)[:, 0] > 0.5).to(torch.uint8)
    return {"images": images, "mask": mask, "index": indices, "draw": indices % 3, "labels": 0 * indices - 1}
