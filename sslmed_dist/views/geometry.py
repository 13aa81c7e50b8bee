"""Random resized crop, flips and rotation as one affine map per sample and one bilinear resampling."""

import math
from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslmed_dist.arguments import require_between, require_range, require_share
from sslmed_dist.views.draws import Draws, levels, look_up

ATTEMPTS = 10
ANTIALIAS_FROM = 1.2  # sources up to this multiple of the view's side are sampled once per output pixel

Fill = Literal["reflection", "border", "zeros"]


class Geometry(nn.Module):
    """Crop, flip and rotate; the result is square, ``size`` x ``size`` pixels.

    * The box is drawn as in torchvision's ``RandomResizedCrop``: area (as a fraction of the image) and logarithm of the
      aspect ratio uniform, sides and corner whole pixels, the first of ten attempts that fits, else the largest
      centred box of an allowed ratio.
    * ``rotation``: uniform in [-rotation, rotation] degrees (positive is anti-clockwise), of the resized view about its
      centre. Corners show the pixels around the box, and past the edge of the image what ``fill`` says.
    * Bilinear, ``align_corners=False``. At the border of the box it blends in the true neighbour outside of it
      (torchvision, which cuts first, repeats the edge). No antialiasing for sources up to 1.2 times the view's side;
      for larger ones and with ``antialias``, the mean of s x s samples per pixel, s = ceil(side / (1.2 size)): a rule
      of the image size alone, not of the batch or the box. It costs s^2; store images near the view's size instead.

    Without crop, rotation and change of size the pixels are copied, exactly.
    """

    ratios: Tensor
    turns: Tensor

    def __init__(
        self,
        size: int,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        vertical_flip: float = 0.0,
        rotation: float = 0.0,
        fill: Fill = "reflection",
        antialias: bool = True,
    ) -> None:
        """``ValueError`` naming the field for a value outside its range."""
        super().__init__()
        if size <= 0:
            raise ValueError(f"size: expected a positive number of pixels, got {size}")
        require_range("crop_scale", crop_scale, 0.0, 1.0)
        require_range("crop_ratio", crop_ratio, 0.0)
        require_share("flip", flip)
        require_share("vertical_flip", vertical_flip)
        require_between("rotation", rotation, 0.0, 180.0)
        if fill not in ("reflection", "border", "zeros"):
            raise ValueError(f"fill: expected one of reflection, border, zeros, got {fill!r}")
        self.size, self.scale, self.ratio, self.fill = size, tuple(crop_scale), tuple(crop_ratio), fill
        self.flip, self.vertical_flip, self.rotation, self.antialias = flip, vertical_flip, rotation, antialias
        self.still = self.scale == (1.0, 1.0) and self.ratio == (1.0, 1.0) and rotation == 0.0
        angles = levels(-math.radians(rotation), math.radians(rotation))
        self.register_buffer("ratios", levels(math.log(crop_ratio[0]), math.log(crop_ratio[1])).exp(), persistent=False)
        self.register_buffer("turns", torch.stack([angles.cos(), angles.sin()], 1), persistent=False)
        attempts = [f"{name}:{attempt}" for name in ("area", "ratio") for attempt in range(ATTEMPTS)]
        self.words = (*attempts, "top", "left", "flip", "vertical_flip", "rotation")

    def boxes(self, draws: Draws, height: int, width: int) -> Tensor:
        """Float64 (B, 4): left, top, width, height of each box, in whole pixels."""
        area = torch.stack([draws[f"area:{attempt}"] for attempt in range(ATTEMPTS)])
        ratio = look_up(self.ratios, torch.stack([draws[f"ratio:{attempt}"] for attempt in range(ATTEMPTS)]))
        area = (self.scale[0] + (self.scale[1] - self.scale[0]) * area) * (height * width)
        sides = torch.stack([(area * ratio).sqrt().round(), (area / ratio).sqrt().round()])  # (2, attempts, B)
        fits = (sides[0] > 0) & (sides[0] <= width) & (sides[1] > 0) & (sides[1] <= height)
        first = fits.to(torch.uint8).argmax(0)  # the first of the largest: the first that fits
        across, down = sides.gather(1, first.expand(2, 1, -1)).squeeze(1)
        left = (draws["left"] * (width - across + 1)).floor()
        top = (draws["top"] * (height - down + 1)).floor()
        whole = self.centred(height, width, draws["top"])
        return torch.where(fits.any(0)[:, None], torch.stack([left, top, across, down], 1), whole)

    def centred(self, height: int, width: int, like: Tensor) -> Tensor:
        """The box of a sample whose attempts all failed: as large as the allowed ratios let it be, centred."""
        down = min(height, round(width / self.ratio[0]))
        across = min(width, round(height * self.ratio[1]))
        return like.new_tensor([(width - across) // 2, (height - down) // 2, across, down])

    def draw(self, draws: Draws, height: int, width: int) -> Tensor:
        """Float32 (B, 2, 3): the map from the view's coordinates in [-1, 1] to those of the image."""
        left, top, across, down = self.boxes(draws, height, width).unbind(1)
        turn = look_up(self.turns, draws["rotation"])
        cos, sin = turn.unbind(1) if self.rotation else (torch.ones_like(left), torch.zeros_like(left))
        x = torch.where(draws["flip"] < self.flip, -across / width, across / width)
        y = torch.where(draws["vertical_flip"] < self.vertical_flip, -down / height, down / height)
        rows = [x * cos, -x * sin, (2 * left + across) / width - 1, y * sin, y * cos, (2 * top + down) / height - 1]
        return torch.stack(rows, 1).view(-1, 2, 3).to(torch.float32)

    def samples(self, height: int, width: int) -> int:
        """How many samples per output pixel and axis an image of this size takes."""
        return max(1, math.ceil(max(height, width) / (ANTIALIAS_FROM * self.size))) if self.antialias else 1

    def forward(self, images: Tensor, affine: Tensor) -> Tensor:
        """Float32 (n, C, H, W) and their maps -> (n, C, size, size)."""
        height, width = images.shape[-2:]
        if self.still and height == width == self.size:
            images = torch.where(affine[:, :1, :1, None] < 0, images.flip(-1), images)
            return torch.where(affine[:, 1:, 1:2, None] < 0, images.flip(-2), images)
        # an upright box samples at most half a pixel past the image, where the edge is right whatever fills corners
        padding = self.fill if self.rotation else "border"
        total: Tensor | None = None
        samples = self.samples(height, width)
        for grid in self.grids(affine, samples):
            part = F.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=False)
            total = part if total is None else total.add_(part)
        assert total is not None
        return total if samples == 1 else total.div_(samples * samples)

    def grids(self, affine: Tensor, samples: int) -> Iterator[Tensor]:
        """Sampling grids (n, size, size, 2). Separate multiplications and additions, for ``affine_grid``'s batched
        matrix product may round differently in another batch."""
        pixels = torch.arange(self.size, device=affine.device, dtype=torch.float32)
        steps = [(2 * (pixels + (k + 0.5) / samples)) / self.size - 1 for k in range(samples)]
        # x + iy: one addition of whole pairs is contiguous, two of every other number are not
        slope, lean, shift = torch.view_as_complex(affine.transpose(1, 2).contiguous())[..., None].unbind(1)
        for down in steps:
            column = lean * down + shift
            for across in steps:
                yield torch.view_as_real((slope * across)[:, None, :] + column[:, :, None])
