"""The first and the last step of every view: intensities to [0, 1], and normalisation."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

DTYPES = (torch.uint8, torch.int16, torch.float32)


class Intensity(nn.Module):
    """``unit`` maps [low, high] to [0, 1] and clamps; ``normalise`` is (x - mean) / std per channel."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        channels: int,
        value_range: tuple[float, float],
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        """``mean`` and ``std`` are on the [0, 1] scale; None is 0 and 1. ``ValueError`` naming the field otherwise."""
        super().__init__()
        if channels <= 0:
            raise ValueError(f"channels: expected a positive number, got {channels}")
        if len(value_range) != 2 or not value_range[0] < value_range[1]:
            raise ValueError(f"value_range: expected two numbers, low < high, got {list(value_range)}")
        mean = tuple(mean) if mean is not None else (0.0,) * channels
        std = tuple(std) if std is not None else (1.0,) * channels
        for field, values in (("mean", mean), ("std", std)):
            if len(values) != channels:
                raise ValueError(f"{field}: expected {channels} numbers (one per channel), got {len(values)}")
            # Bytes' mean and deviation are far larger, those of standardised volumes are not.
            if max(map(abs, values)) > 3:
                raise ValueError(
                    f"{field}: expected numbers on the scale 0 to 1, got {list(values)}; divide them by 255"
                )
        if min(std) <= 0:
            raise ValueError(f"std: expected positive numbers, got {list(std)}")
        self.channels, self.low, self.high = channels, float(value_range[0]), float(value_range[1])
        self.plain = set(mean) == {0.0} and set(std) == {1.0}
        self.register_buffer("mean", column(mean), persistent=False)
        self.register_buffer("std", column(std), persistent=False)

    def check(self, images: Tensor, dims: int = 4) -> None:
        """``ValueError`` for images of another shape, number of channels or type than were configured. ``dims`` 4 is
        (B, C, H, W), 5 an examination or a clip, (B, S, C, H, W)."""
        if images.ndim != dims or images.shape[-3] != self.channels:
            expected = f"(B, {'S, ' * (dims - 4)}{self.channels}, H, W)"
            raise ValueError(f"images: expected {expected}, got {tuple(images.shape)}")
        if images.dtype not in DTYPES:
            raise ValueError(f"images: expected uint8, int16 or float32, got {images.dtype}")

    def unit(self, images: Tensor) -> Tensor:
        """Images of any allowed type -> float32 in [0, 1] of the same shape, contiguous, new memory. Values outside
        [low, high] are clamped (the range may be a window on 16-bit intensities)."""
        unit = torch.empty(images.shape, dtype=torch.float32, device=images.device).copy_(images)
        if self.low != 0.0:
            unit.sub_(self.low)
        if self.high - self.low != 1.0:
            unit.div_(self.high - self.low)
        # Bytes cannot leave a range that contains 0 to 255: no clamp is needed.
        inside = images.dtype is torch.uint8 and self.low <= 0 and self.high >= 255
        return unit if inside else unit.clamp_(0.0, 1.0)

    def normalise(self, images: Tensor, out: Tensor) -> Tensor:
        """(x - mean) / std of ``images`` (..., C, H, W), written to ``out`` of the same shape, which is returned."""
        if self.plain:
            return out.copy_(images)
        return torch.sub(images, self.mean, out=out).div_(self.std)


def column(values: Sequence[float]) -> Tensor:
    """One value per channel as float32 (C, 1, 1), the shape that broadcasts to images."""
    return torch.tensor(values, dtype=torch.float32)[:, None, None]


def require_range(images: Tensor, value_range: tuple[float, float], expects: str) -> None:
    """``ValueError`` for images (N, C, H, W) whose values cannot be of ``value_range``, black and white as stored.

    Where bytes are expected, 0 to 255, real numbers that end at 1 have been scaled; those that go below 0 and span less
    than a tenth of it have been normalised; what lies beyond it by more than a twentieth, as no resizing makes it, is
    of another scale. Another range may be a window of what was measured, which cuts: beyond ten times its width it is
    that of other images. ``expects`` says what is expected, in words.
    """
    low, high = value_range
    if not images.numel():
        return
    least, most, width = float(images.min()), float(images.max()), high - low
    bytes_expected = value_range == (0.0, 255.0)
    beyond = width * (0.05 if bytes_expected else 10.0)
    narrow = bytes_expected and least < 0 and most - least < width / 10
    if not (math.isfinite(least) and math.isfinite(most)):
        why = "some are NaN or infinite"
    elif least < low - beyond or most > high + beyond or narrow:
        why = "they were normalised, or are of another scale"
    elif bytes_expected and images.is_floating_point() and 0 <= least < most <= 1:
        why = "they were scaled to [0, 1]; load_encoder(..., value_range=(0, 1)) takes these"
    else:
        return
    raise ValueError(f"images: values from {least:.4g} to {most:.4g}: {why}; expected {expects}")
