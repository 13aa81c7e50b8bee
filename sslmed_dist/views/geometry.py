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

MOST_SAMPLES = 32  # along an axis; beyond them images are averaged first

Fill = Literal["reflection", "border", "zeros"]


class Geometry(nn.Module):
    """Crop, flip and rotate; the result is square, ``size`` x ``size`` pixels.

    * The box is drawn as in torchvision's ``RandomResizedCrop``: area (as a fraction of the image) and logarithm of the
      aspect ratio uniform, sides and corner in integer pixels. Of ten attempts the first that fits into the image
      counts; if none fits, the largest centred box of an allowed ratio.
    * ``rotation``: uniform in [-rotation, rotation] degrees (positive is anti-clockwise), of the resized view about its
      centre. Corners show the pixels around the box, and past the edge of the image what ``fill`` says.
    * Sampling is bilinear, ``align_corners=False``. At the border of the box it blends in the true neighbour outside of
      it (torchvision, which cuts first, repeats the edge). Images up to 1.2 times the view's side are not antialiased.
      For larger ones, and with ``antialias``, a pixel is the mean of s x s samples, s = ceil(side / (1.2 size)). This s
      depends on the image size alone, not on the batch or the box. It costs s^2: store images near the view's size.
      Above s = 32 the longer side is brought to 38 ``size`` first, each pixel the mean of those it stands for.

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
        # Tables of e^(uniform) and of (cos, sin), looked up by the draws (see ``views.draws``).
        self.register_buffer("ratios", levels(math.log(crop_ratio[0]), math.log(crop_ratio[1])).exp(), persistent=False)
        self.register_buffer("turns", torch.stack([angles.cos(), angles.sin()], 1), persistent=False)
        attempts = [f"{name}:{attempt}" for name in ("area", "ratio") for attempt in range(ATTEMPTS)]
        self.words = (*attempts, "top", "left", "flip", "vertical_flip", "rotation")

    def boxes(self, draws: Draws, height: int, width: int) -> Tensor:
        """The crop box of each sample, float64 (B, 4): left, top, width, height in integer pixels."""
        # The sides of every attempt's box: width = sqrt(area ratio), height = sqrt(area / ratio).
        area = torch.stack([draws[f"area:{attempt}"] for attempt in range(ATTEMPTS)])  # (attempts, B)
        ratio = look_up(self.ratios, torch.stack([draws[f"ratio:{attempt}"] for attempt in range(ATTEMPTS)]))
        area = (self.scale[0] + (self.scale[1] - self.scale[0]) * area) * (height * width)
        sides = torch.stack([(area * ratio).sqrt().round(), (area / ratio).sqrt().round()])  # (2, attempts, B)
        fits = (sides[0] > 0) & (sides[0] <= width) & (sides[1] > 0) & (sides[1] <= height)
        first = fits.to(torch.uint8).argmax(0)  # (B,): argmax gives the first maximum, so the first attempt that fits
        across, down = sides.gather(1, first.expand(2, 1, -1)).squeeze(1)  # width and height, (B,) each
        left = (draws["left"] * (width - across + 1)).floor()
        top = (draws["top"] * (height - down + 1)).floor()
        fallback = self.centred(height, width, draws["top"])
        return torch.where(fits.any(0)[:, None], torch.stack([left, top, across, down], 1), fallback)

    def centred(self, height: int, width: int, like: Tensor) -> Tensor:
        """The box (4,) of a sample whose attempts all failed: centred, as large as the allowed ratios permit."""
        down = min(height, round(width / self.ratio[0]))
        across = min(width, round(height * self.ratio[1]))
        return like.new_tensor([(width - across) // 2, (height - down) // 2, across, down])

    def draw(self, draws: Draws, height: int, width: int) -> Tensor:
        """Affine maps, float32 (B, 2, 3), from the view's coordinates (x, y) in [-1, 1] to those of the image."""
        left, top, across, down = self.boxes(draws, height, width).unbind(1)
        turn = look_up(self.turns, draws["rotation"])
        cos, sin = turn.unbind(1) if self.rotation else (torch.ones_like(left), torch.zeros_like(left))
        # A box of half the image's width maps [-1, 1] to half of it; a flip turns the sign.
        x = torch.where(draws["flip"] < self.flip, -across / width, across / width)
        y = torch.where(draws["vertical_flip"] < self.vertical_flip, -down / height, down / height)
        # diag(x, y) times the rotation, and as shift the centre of the box.
        rows = [x * cos, -x * sin, (2 * left + across) / width - 1, y * sin, y * cos, (2 * top + down) / height - 1]
        return torch.stack(rows, 1).view(-1, 2, 3).to(torch.float32)

    def samples(self, height: int, width: int) -> int:
        """How many samples an output pixel is averaged from along each axis, for an image of this size."""
        return max(1, math.ceil(max(height, width) / (ANTIALIAS_FROM * self.size))) if self.antialias else 1

    def smaller(self, images: Tensor) -> Tensor:
        """Images (n, C, H, W) of which no side asks for more than ``MOST_SAMPLES`` samples: most as they are."""
        height, width = images.shape[-2:]
        if self.samples(height, width) <= MOST_SAMPLES:
            return images
        most = int(MOST_SAMPLES * ANTIALIAS_FROM * self.size)
        # affine maps count in shares of the image, so they hold for the smaller one as well
        return F.adaptive_avg_pool2d(images, (min(height, most), min(width, most)))

    def forward(self, images: Tensor, affine: Tensor) -> Tensor:
        """Float32 images (n, C, H, W) and their affine maps (n, 2, 3) -> views (n, C, size, size)."""
        height, width = images.shape[-2:]
        # Nothing is resampled: copy, flipped where the map's diagonal is negative.
        if self.still and height == width == self.size:
            images = torch.where(affine[:, :1, :1, None] < 0, images.flip(-1), images)
            return torch.where(affine[:, 1:, 1:2, None] < 0, images.flip(-2), images)
        images = self.smaller(images)
        height, width = images.shape[-2:]
        # A box that is not turned samples at most half a pixel past the image: there the edge is right, whatever
        # ``fill`` puts into the corners.
        padding = self.fill if self.rotation else "border"
        total: Tensor | None = None
        samples = self.samples(height, width)
        for grid in self.grids(affine, samples):
            part = F.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=False)
            total = part if total is None else total.add_(part)
        assert total is not None
        return total if samples == 1 else total.div_(samples * samples)

    def grids(self, affine: Tensor, samples: int) -> Iterator[Tensor]:
        """Sampling grids (n, size, size, 2) of (x, y), one for each of the samples x samples points in a pixel.

        Separate multiplications and additions, because ``affine_grid``'s batched matrix product may round differently
        in another batch."""
        pixels = torch.arange(self.size, device=affine.device, dtype=torch.float32)
        # For each sample within a pixel, its coordinates in [-1, 1] along an axis, (size,).
        steps = [(2 * (pixels + (k + 0.5) / samples)) / self.size - 1 for k in range(samples)]
        # A point as the complex number x + iy: adding pairs is contiguous, adding every other number twice is not.
        # What a point gains by x, by y, and regardless of both: (n, 1) each.
        by_x, by_y, shift = torch.view_as_complex(affine.transpose(1, 2).contiguous())[..., None].unbind(1)
        for down in steps:
            row_part = by_y * down + shift  # (n, size)
            for across in steps:
                yield torch.view_as_real((by_x * across)[:, None, :] + row_part[:, :, None])
