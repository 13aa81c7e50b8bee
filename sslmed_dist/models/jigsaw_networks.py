"""The jigsaw networks of the thesis, chapter 3: SSLACL and SKID, encoders on the semi-parallel stem.

Both take patches (N, 9, C, h, w), patch k into branch k, or whole images (N, C, H, W), each into all nine branches.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from sslmed_dist.models.interfaces import DenseEncoder, load_weights, repeat_grey
from sslmed_dist.models.semiparallel import (
    BRANCHES,
    Convolution,
    SemiParallel,
    he_normal,
    require_network_width,
    scaled,
)


class PuzzleEncoder(DenseEncoder):
    """An encoder of nine patches or of whole images."""

    stem: SemiParallel

    def stems(self, x: Tensor) -> Tensor:
        """The stem's maps of patches (N, 9, C, h, w) or of whole images (N, C, H, W). Grey input is repeated to the
        stem's channels. ``ValueError`` for another shape or number of channels."""
        if x.dim() not in (4, 5) or (x.dim() == 5 and x.shape[1] != BRANCHES):
            raise ValueError(
                f"images: expected nine patches (N, 9, C, h, w) or images (N, C, H, W), got {tuple(x.shape)}"
            )
        x = repeat_grey(x, self.stem.channels)
        return self.stem(x) if x.dim() == 5 else self.stem.whole(x)

    def forward(self, images: Tensor) -> Tensor:
        """Patches (N, 9, C, h, w) or images (N, C, H, W) -> (N, ``feature_dim``), the maps' global average."""
        return self.maps(images).mean(dim=(2, 3))


class SSLACL(PuzzleEncoder):
    """SSLACL's pretext network (Fig. 3.4): stem of widths 256 and 512, a 3 x 3 convolution to 2048, then side by side
    (3 x 3 convolution, 3 x 3 convolution of stride 2) and (3 x 3 convolution, max-pool 2), 1024 each.

    No batch norm, ReLU after every convolution. Grey images have one input channel. ``width`` multiplies all widths.
    ``weights`` as for ``ResNet``. With two layers of 1024 and C classes behind it, it has 173.0 M parameters at C = 500
    and 173.5 M at C = 1000 (Table 3.9).
    """

    def __init__(self, width: float = 1.0, weights: str | None = None, *, channels: int = 1) -> None:
        """``ValueError`` for a width outside (0, 2], or weights that do not fit."""
        super().__init__()
        require_network_width(width)
        self.stem = SemiParallel(channels, (scaled(256, width), scaled(512, width)), norm=False)
        wide, narrow = scaled(2048, width), scaled(1024, width)
        self.reduce = Convolution(BRANCHES * self.stem.width, wide, norm=False)
        self.strided = nn.Sequential(
            Convolution(wide, narrow, norm=False), Convolution(narrow, narrow, stride=2, norm=False)
        )
        self.pooled = nn.Sequential(Convolution(wide, narrow, norm=False), nn.MaxPool2d(2, ceil_mode=True))
        self.feature_dim = 2 * narrow
        he_normal(self)
        if weights is not None:
            load_weights(self, weights)

    def maps(self, images: Tensor) -> Tensor:
        """Patches (N, 9, C, h, w) or images (N, C, H, W) -> (N, 2048, h / 8, w / 8) at width 1."""
        x = self.reduce(self.stems(images))
        return torch.cat([self.strided(x), self.pooled(x)], 1)


class Skip(nn.Module):
    """x + 0.25 (two 3 x 3 convolutions of x); ``between``: filters of the first. No ReLU after the sum."""

    scale = 0.25

    def __init__(self, channels: int, between: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(Convolution(channels, between), Convolution(between, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, h, w), same shape."""
        out: Tensor = x + self.scale * self.layers(x)
        return out


class DimensionReduction(nn.Module):
    """Side by side: (3 x 3 convolution, 3 x 3 convolution of stride 2) and (average-pool 2, 1 x 1 convolution), half of
    the output's filters each."""

    def __init__(self, before: int, half: int) -> None:
        super().__init__()
        self.strided = nn.Sequential(Convolution(before, half), Convolution(half, half, stride=2))
        self.pooled = nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), Convolution(before, half, kernel=1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, before, h, w) -> (N, 2 half, h / 2, w / 2), rounded up."""
        return torch.cat([self.strided(x), self.pooled(x)], 1)


Version = Literal["v1", "v2", "v3", "no_blocks"]
# Filters of Table 3.1: first convolution of Skip 1, output of reduction 1, first convolution of Skip 2, output of
# reduction 2. A Skip block's output is as wide as its input.
VARIANTS: dict[str, tuple[int, int, int, int]] = {
    "v1": (512, 1024, 512, 4096),
    "v2": (512, 2048, 1024, 4096),
    "v3": (1024, 2048, 2048, 4096),
}


class SKID(PuzzleEncoder):
    """SKID's pretext network (Fig. 3.5, Table 3.1): stem of widths 256 and 256, 1 x 1 convolution to 1024, then twice
    (Skip, dimension reduction). Batch norm and ReLU after every convolution.

    ``version`` ``no_blocks`` is the ablation: no Skip, average-pool 2 in place of a reduction, so 1024 features.
    ``rgb``: the stem has three input channels, to which grey images are repeated; the published counts need it. With a
    layer of 1024 and C classes behind it, v3 has 217,681,640 values at C = 1000 and 217,169,140 at C = 500, the running
    statistics of batch norm counted. ``width`` multiplies all widths; ``weights`` as for ``ResNet``.
    """

    def __init__(
        self,
        version: Version = "v3",
        width: float = 1.0,
        rgb: bool = True,
        weights: str | None = None,
        *,
        channels: int = 1,
    ) -> None:
        """``ValueError`` for a width outside (0, 2], or weights that do not fit."""
        super().__init__()
        require_network_width(width)
        stem_width, squeezed = scaled(256, width), scaled(1024, width)
        self.stem = SemiParallel(3 if rgb and channels == 1 else channels, (stem_width, stem_width), norm=True)
        self.squeeze = Convolution(BRANCHES * stem_width, squeezed, kernel=1)
        if version == "no_blocks":
            self.blocks = nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), nn.AvgPool2d(2, ceil_mode=True))
            self.feature_dim = squeezed
        else:
            between_1, out_1, between_2, out_2 = VARIANTS[version]
            half_1, half_2 = scaled(out_1 // 2, width), scaled(out_2 // 2, width)
            self.blocks = nn.Sequential(
                Skip(squeezed, scaled(between_1, width)),
                DimensionReduction(squeezed, half_1),
                Skip(2 * half_1, scaled(between_2, width)),
                DimensionReduction(2 * half_1, half_2),
            )
            self.feature_dim = 2 * half_2
        he_normal(self)
        if weights is not None:
            load_weights(self, weights)

    def maps(self, images: Tensor) -> Tensor:
        """Patches (N, 9, C, h, w) or images (N, C, H, W) -> the second reduction's output, (N, 4096, h / 16, w / 16) at
        width 1: 4 x 4 for patches of 64, 16 x 16 for a whole slice of 256."""
        out: Tensor = self.blocks(self.squeeze(self.stems(images)))
        return out
