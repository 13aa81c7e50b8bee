"""VGG's convolutions (Simonyan and Zisserman 2015, arXiv 1409.1556), of any width: the network that predicts which
transform was applied (thesis, Sec. 3.3.1, which does not say how deep; 16 layers are the default)."""

from typing import Literal

from torch import Tensor, nn
from torchvision.models.vgg import cfgs

from sslmed_dist.models.interfaces import DenseEncoder, load_weights, repeat_grey
from sslmed_dist.models.semiparallel import he_normal, require_network_width, scaled

LAYERS = {11: "A", 13: "B", 16: "D", 19: "E"}  # torchvision's lists of widths, "M" a max-pool


class VGG(DenseEncoder):
    """Images (N, C, H, W) -> the global average of the last maps, (N, 512 ``width``), H and W at least 32.

    Without the fully connected layers, so any size passes. At ``width`` 1 and three channels the names are those of
    torchvision (``features.N``), whose weights files load. ``rgb``: grey images are repeated to three channels, as such
    a file needs. ``weights`` as for ``ResNet``.
    """

    def __init__(
        self,
        depth: Literal[11, 13, 16, 19] = 16,
        batch_norm: bool = False,
        width: float = 1.0,
        rgb: bool = True,
        weights: str | None = None,
        *,
        channels: int = 3,
    ) -> None:
        """``ValueError`` for a width outside (0, 2], or weights that do not fit."""
        super().__init__()
        require_network_width(width)
        self.channels = before = 3 if rgb and channels == 1 else channels
        layers: list[nn.Module] = []
        for filters in cfgs[LAYERS[depth]]:
            if filters == "M":
                layers.append(nn.MaxPool2d(2, 2))
                continue
            after = scaled(int(filters), width)
            layers += [nn.Conv2d(before, after, 3, padding=1), *([nn.BatchNorm2d(after)] if batch_norm else [])]
            layers.append(nn.ReLU(inplace=True))
            before = after
        self.features = nn.Sequential(*layers)
        self.feature_dim = before
        he_normal(self)
        if weights is not None:
            load_weights(self, weights)

    def maps(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> the last maps, (N, feature_dim, H / 32, W / 32)."""
        out: Tensor = self.features(repeat_grey(images, self.channels))
        return out

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, feature_dim)."""
        return self.maps(images).mean(dim=(2, 3))
