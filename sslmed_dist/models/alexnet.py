"""AlexNet's convolutions (Krizhevsky 2014, arXiv 1404.5997) as an encoder: what MRNet (Bien et al. 2018) stands on."""

from torch import Tensor, nn

from sslmed_dist.models.interfaces import DenseEncoder, load_weights, repeat_grey

# Filters, kernel, stride and padding of each convolution, and whether a max-pool follows.
CONVOLUTIONS = (
    (64, 11, 4, 2, True),
    (192, 5, 1, 2, True),
    (384, 3, 1, 1, False),
    (256, 3, 1, 1, False),
    (256, 3, 1, 1, True),
)


class AlexNet(DenseEncoder):
    """Images (N, C, H, W) -> features (N, 256), the globally averaged last feature map.

    The layers are torchvision's, and so are the names of the weights: ``weights`` is a local file of such a network (as
    for ``ResNet``); what belongs to its classifier is left aside. ``rgb``: three input channels, to which grey images
    are repeated, as MRNet does; the published weights need it.
    """

    def __init__(self, rgb: bool = True, weights: str | None = None, *, channels: int = 3) -> None:
        """``ValueError`` for weights that do not fit."""
        super().__init__()
        self.channels = 3 if rgb and channels == 1 else channels
        layers: list[nn.Module] = []
        before = self.channels
        for after, kernel, stride, padding, pooled in CONVOLUTIONS:
            layers += [nn.Conv2d(before, after, kernel, stride, padding), nn.ReLU(inplace=True)]
            layers += [nn.MaxPool2d(3, 2)] if pooled else []
            before = after
        self.features = nn.Sequential(*layers)
        self.feature_dim = before
        if weights is not None:
            load_weights(self, weights)

    def maps(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 256, h, w), 7 x 7 for images of 256."""
        out: Tensor = self.features(repeat_grey(images, self.channels))
        return out

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 256)."""
        return self.maps(images).mean(dim=(2, 3))
