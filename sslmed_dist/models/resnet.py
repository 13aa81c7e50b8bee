"""ResNet encoders (He et al. 2016, arXiv 1512.03385) of any width and number of input channels.

The blocks are torchvision's, and so are the state-dict keys: at ``width=64`` and three channels a torchvision weights
file loads as it is. ``stem="cifar"`` replaces the 7x7 stride-2 convolution and the max-pool by one 3x3 convolution
(stride 1, padding 1), as is usual for images of 32 pixels (Chen et al. 2020, SimCLR, appendix B.9).
"""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from sslmed_dist.models.interfaces import DenseEncoder

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
    later stages have 2, 4 and 8 times as many. ``weights`` is a local file with a torchvision state dict, of a ResNet
    or of a DeepLabV3 built on one (classifiers are left out); nothing is ever downloaded. ``ValueError`` for a width
    below 1 or weights that do not fit.
    """

    def __init__(
        self,
        depth: Literal[9, 18, 34, 50, 101, 152] = 18,
        stem: Literal["imagenet", "cifar"] = "imagenet",
        width: int = 64,
        weights: str | None = None,
        *,
        channels: int = 3,
    ) -> None:
        super().__init__()
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
            self.load(Path(weights))

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

    def load(self, path: Path) -> None:
        """Load a local torchvision state dict. ``ValueError`` names the file and the first key that does not fit."""
        where = f"method.encoder.weights: {path}"
        if not path.is_file():
            raise ValueError(f"{where}: no such file")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # unpickling reports foreign content in many ways; weights_only refuses code
            raise ValueError(f"{where}: not a state dict that torch can read ({type(error).__name__})") from None
        if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
            raise ValueError(f"{where}: expected a state dict of tensors, got {type(state).__name__}")
        expected = self.state_dict()
        # Files older than torch 0.4.1 lack the counters of batch norm.
        counters = {key: value for key, value in expected.items() if key.endswith("num_batches_tracked")}
        state = counters | body_of(state)
        for key in sorted(expected.keys() | state.keys()):
            if key not in expected or key not in state or expected[key].shape != state[key].shape:
                raise ValueError(f"{where}: {key} is missing, unknown or of another shape")
        self.load_state_dict(state)

    def maps(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> the last feature map, (N, feature_dim, H / 32, W / 32); H / 8 with the stem ``cifar``."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        last: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return last

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, feature_dim)."""
        return self.maps(images).mean(dim=(2, 3))


def body_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a torchvision state dict that belong to the ResNet itself. Of a ResNet's file, all but the
    classifier ``fc``; of a segmentation model's, all but its classifiers, with their prefix ``backbone.`` removed."""
    if not any(key.startswith("backbone.") for key in state):
        return {key: value for key, value in state.items() if not key.startswith("fc.")}
    heads = ("classifier.", "aux_classifier.")
    return {key.removeprefix("backbone."): value for key, value in state.items() if not key.startswith(heads)}
