"""SE-Net: a network that is told by one annotated slice what to find on others (Guha Roy et al. 2020, "Squeeze & excite
guided few-shot segmentation of volumetric images", arXiv 1902.01314)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslmed_dist.models.interfaces import DenseEncoder, load_weights
from sslmed_dist.models.semiparallel import he_normal

LEVELS = 4  # poolings of each arm
Gates = tuple[Tensor, ...]
"""Of each of the 2 x LEVELS + 1 blocks how far it is let through, (E, 1, h, w) in [0, 1]."""


def block(before: int, after: int) -> nn.Sequential:
    """Convolution 5 x 5, batch norm, PReLU: (N, before, H, W) -> (N, after, H, W)."""
    return nn.Sequential(nn.Conv2d(before, after, 5, padding=2), nn.BatchNorm2d(after), nn.PReLU(after))


class Arm(nn.Module):
    """Four blocks, each with a 2 x 2 max-pool behind it, a bottleneck, and four blocks, each with an unpooling before
    it: (N, ``before``, H, W) -> (N, ``width``, H, W). All maps have ``width`` channels.

    Unpooling puts a value back to where its maximum was. There are no skip connections, as in the paper, where they
    made the segmenter copy the support.
    """

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(block(before if level == 0 else width, width) for level in range(LEVELS))
        self.bottleneck = block(width, width)
        self.up = nn.ModuleList(block(width, width) for _ in range(LEVELS))

    def forward(self, x: Tensor, gates: Gates | None = None) -> list[Tensor]:
        """The maps behind each block: four of H / 2 ... H / 16, the bottleneck's, four of H / 8 ... H. Where there are
        ``gates``, a block's maps are multiplied by its gate before they go on."""
        maps: list[Tensor] = []
        places: list[tuple[Tensor, torch.Size]] = []

        def gated(x: Tensor) -> Tensor:
            maps.append(x if gates is None else x * gates[len(maps)])
            return maps[-1]

        for layer in self.down:
            fine = layer(x)
            x, place = F.max_pool2d(fine, 2, return_indices=True)
            places.append((place, fine.shape))
            x = gated(x)
        x = gated(self.bottleneck(x))
        for layer, (place, shape) in zip(self.up, reversed(places), strict=True):
            x = gated(layer(unpooled(x, place, shape)))
        return maps


def unpooled(x: Tensor, place: Tensor, shape: torch.Size) -> Tensor:
    """``x`` (N, C, h, w) at the places (N, C, h, w) of its maxima in maps of ``shape`` (N, C, H, W), 0 elsewhere."""
    empty = x.new_zeros(*shape[:2], shape[2] * shape[3])
    return empty.scatter(2, place.flatten(2), x.flatten(2)).view(shape)


class SENet(DenseEncoder):
    """SE-Net: a conditioner sees a support image and its mask, a segmenter sees the query image. Behind each
    of nine blocks the conditioner's maps are squeezed to one channel and say where the segmenter's are let through:

        U_segmenter <- U_segmenter * sigmoid(w . U_conditioner + b)    (channel squeeze and spatial excitation)

    A 1 x 1 convolution of the segmenter's last maps gives the logits of background and foreground.

    ``segmenter``, ``conditioner``: channels of their maps (paper: 64 and 16). Images are (N, C, H, W) of at least
    16 x 16 pixels. ``maps`` are the images themselves, since nothing of a query is computed without a support: the
    network is its own head (``own_head``), with ``prototypes`` (the gates) and ``scores``. Gates of several supports
    are averaged. Features (``forward``) are the global average of the bottleneck with all gates open.
    Source: sections 3.1 to 3.3 of the paper; blocks and poolings follow its description of SD-Net.
    """

    def __init__(
        self, segmenter: int = 64, conditioner: int = 16, weights: str | None = None, *, channels: int = 3
    ) -> None:
        """``ValueError`` for a number of channels below 1, or ``weights`` (a local file) that do not fit."""
        super().__init__()
        for name, width in (("segmenter", segmenter), ("conditioner", conditioner)):
            if width < 1:
                raise ValueError(f"method.encoder.{name}: expected an integer >= 1, got {width}")
        self.conditioner = Arm(channels + 1, conditioner)
        self.squeeze = nn.ModuleList(nn.Conv2d(conditioner, 1, 1) for _ in range(2 * LEVELS + 1))
        self.segmenter = Arm(channels, segmenter)
        self.classifier = nn.Conv2d(segmenter, 2, 1)
        self.channels, self.feature_dim = channels, segmenter
        he_normal(self)
        if weights is not None:
            load_weights(self, weights)

    @property
    def own_head(self) -> Any:
        """The network itself."""
        return self

    @property
    def maps_dim(self) -> int:
        """The images' channels."""
        return self.channels

    def maps(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> the same. ``ValueError`` for images of other channels, or too small to be pooled."""
        if images.shape[1] != self.channels:
            raise ValueError(f"images: expected {self.channels} channels, got {images.shape[1]}")
        if min(images.shape[2:]) < 2**LEVELS:
            raise ValueError(f"images: expected at least {2**LEVELS} x {2**LEVELS} pixels, got {tuple(images.shape)}")
        return images

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, feature_dim)."""
        bottleneck: Tensor = self.segmenter(self.maps(images))[LEVELS]
        return bottleneck.mean(dim=(2, 3))

    def prototypes(self, maps: Tensor, masks: Tensor, level: float | None = None) -> Gates:
        """The gates of supports (E, K, C, H, W) with their masks (E, K, H, W), the mean over the K supports. There is
        no threshold that ``level`` could replace."""
        supports = torch.cat([maps, masks.to(maps.dtype)[:, :, None]], dim=2).flatten(0, 1)  # (E K, C + 1, H, W)
        squeezed = zip(self.conditioner(supports), self.squeeze, strict=True)
        gates = [torch.sigmoid(squeeze(conditions)) for conditions, squeeze in squeezed]  # (E K, 1, h, w)
        return tuple(gate.view(*maps.shape[:2], *gate.shape[1:]).mean(dim=1) for gate in gates)

    def scores(self, prototypes: Gates, maps: Tensor) -> Tensor:
        """Logits (E, 2, H, W) of [background, foreground] of queries (E, C, H, W). Gates of one episode serve all."""
        logits: Tensor = self.classifier(self.segmenter(maps, prototypes)[-1])
        return logits
