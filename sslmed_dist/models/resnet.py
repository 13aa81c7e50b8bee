"""ResNet encoders (He et al. 2016, arXiv 1512.03385) of any width and number of input channels.

The blocks are torchvision's, and so are the state-dict keys: at ``width=64`` and three channels a torchvision weights
file loads as it is. ``stem="cifar"`` replaces the 7x7 stride-2 convolution and the max-pool by one 3x3 convolution
(stride 1, padding 1), as is usual for images of 32 pixels (Chen et al. 2020, SimCLR, appendix B.9).
"""

from typing import Any, Literal

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from sslmed_dist.models.interfaces import DenseEncoder, load_weights, repeat_grey

LAYERS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    9: (BasicBlock, (1, 1, 1, 1)),
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


class ResNet(DenseEncoder):
    """Images (N, C, H, W) -> features (N, feature_dim), the globally averaged last feature map.

    ``depth`` 9 is one basic block per stage. ``width`` is the number of channels of the first stage (64 in the paper);
    later stages have 2, 4 and 8 times as many. ``weights`` is a local file that holds the weights of such a network
    under torchvision's names, in whatever wrapper (``weights.find``); nothing is ever downloaded. ``rgb``: grey images
    are repeated to three channels, so that weights of colour images can be taken. ``ValueError`` for a width below 1 or
    weights that do not fit.
    """

    def __init__(
        self,
        depth: Literal[9, 18, 34, 50, 101, 152] = 18,
        stem: Literal["imagenet", "cifar"] = "imagenet",
        width: int = 64,
        weights: str | None = None,
        rgb: bool = False,
        *,
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.channels = channels = 3 if rgb and channels == 1 else channels
        if width < 1:
            raise ValueError(f"method.encoder.width: expected an integer >= 1, got {width}")
        block, repeats = LAYERS[depth]
        self.inplanes = width
        if stem == "cifar":
            self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
            self.maxpool: nn.Module = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(channels, width, 7, 2, 3, bias=False)
            self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        # The first stage keeps the resolution of the stem; each later one halves it and doubles the channels.
        stages = [self.stage(block, width * 2**i, n, 1 if i == 0 else 2) for i, n in enumerate(repeats)]
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.feature_dim = self.inplanes
        self.initialise()
        if weights is not None:
            load_weights(self, weights)

    def stage(self, block: Any, planes: int, repeats: int, stride: int) -> nn.Sequential:
        """One stage; the first block changes resolution and width, the others keep them."""
        out = planes * block.expansion
        shortcut = None
        if stride != 1 or self.inplanes != out:
            shortcut = nn.Sequential(nn.Conv2d(self.inplanes, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        # torchvision's Bottleneck multiplies planes by base_width / 64; 64 leaves the planes as given.
        blocks = [block(self.inplanes, planes, stride, shortcut)]
        self.inplanes = out
        blocks += [block(out, planes) for _ in range(1, repeats)]
        return nn.Sequential(*blocks)

    def initialise(self) -> None:
        """He initialisation of the convolutions, as torchvision does; normalisation starts as the identity."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def maps(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> the last feature map, (N, feature_dim, H / 32, W / 32); H / 8 with the stem ``cifar``."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(repeat_grey(images, self.channels)))))
        last: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return last

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, feature_dim)."""
        return self.maps(images).mean(dim=(2, 3))
