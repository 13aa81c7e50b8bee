"""The deterministic view of evaluation: resize, centre crop, normalise."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslmed_dist.arguments import located
from sslmed_dist.strips import middle_of_strip
from sslmed_dist.views.intensity import Intensity


class StandardViews(nn.Module):
    """views_0: the centre crop of ``size`` x ``size`` pixels, normalised by (x - mean) / std. Nothing is random.

    Before the crop the shorter side is resized to ``resize`` pixels (antialiased bilinear; default ``size``). Images
    that are ``size`` x ``size`` already are neither resized nor cropped."""

    def __init__(
        self,
        size: int,
        resize: int | None = None,
        *,
        channels: int,
        value_range: tuple[float, float],
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        """``ValueError`` naming the field for a size that is not positive or a ``resize`` below ``size``."""
        super().__init__()
        if size <= 0:
            raise ValueError(f"views.size: expected a positive number of pixels, got {size}")
        if resize is not None and resize < size:
            raise ValueError(f"views.resize: expected at least size ({size}), got {resize}")
        self.size, self.resize = size, resize or size
        with located("views"):
            self.intensity = Intensity(channels, value_range, mean, std)

    @torch.no_grad()
    def forward(self, batch: Mapping[str, Tensor], *, seed: int, epoch: int) -> dict[str, Tensor]:
        """ "images" (B, C, H, W) uint8, int16 or float32 -> views_0 float32 (B, C, size, size); "images" is left out,
        all other entries are kept. ``seed`` and ``epoch`` are accepted as by every view and change nothing."""
        images = batch["images"]
        self.intensity.check(images)
        if self.intensity.mean.device != images.device:
            self.to(images.device)
        part = middle_of_strip(images.shape[-2], images.shape[-1], self.resize)
        if part is not None:
            first, last, start, end = part
            images = images[:, :, first:last, start:end]
        view = self.intensity.unit(images)
        height, width = view.shape[-2:]
        if (height, width) != (self.size, self.size):
            # The shorter side becomes ``resize``, the longer one keeps the aspect ratio.
            short = min(height, width)
            sides = [int(self.resize * side / short) for side in (height, width)]
            view = F.interpolate(view, size=sides, mode="bilinear", antialias=True, align_corners=False)
            top, left = (round((side - self.size) / 2) for side in sides)
            view = view[:, :, top : top + self.size, left : left + self.size].contiguous()
        view = self.intensity.normalise(view, view)
        return {**{name: value for name, value in batch.items() if name != "images"}, "views_0": view}
