"""ResNets with dilation in place of the last strides: feature maps with an eighth (or a quarter) of the image's side.

The body is that of torchvision's DeepLabV3 (Chen et al. 2017, arXiv 1706.05587), without its pyramid of dilated
convolutions and without a classifier; a 1x1 convolution narrows the maps (Ouyang et al. 2020, arXiv 2007.09886).
"""

from typing import Literal

import torch
from torch import Tensor, nn

from sslmed_dist.models.interfaces import DenseEncoder, load_weights
from sslmed_dist.models.resnet import ResNet

# Total stride of the network with the usual stem -> the stages whose stride is replaced.
DILATED_STAGES = {8: ("layer3", "layer4"), 4: ("layer2", "layer3", "layer4")}


def dilate(body: ResNet, stride: int = 8) -> ResNet:
    """``body``, changed in place: stride 1 in its last two (total ``stride`` 8) or three stages (4), whose 3x3
    convolutions are dilated by 2, 4 (and 8) instead.

    The first 3x3 convolution of a stage, which had the stride, gets the dilation of the stage before. So every fourth
    (eighth) row and column of the new maps equals the maps of the unchanged body. For bottlenecks, whose first block
    has one 3x3 convolution, this is torchvision's rule for ``replace_stride_with_dilation``. For basic blocks, which
    have two, torchvision refuses it. Parameters and their names stay.
    """
    dilation = 1
    for name in DILATED_STAGES[stride]:
        layers = [layer for layer in body.get_submodule(name).modules() if isinstance(layer, nn.Conv2d)]
        for layer in layers:
            layer.stride = (1, 1)
        # The first 3x3 convolution still sees the maps at the spacing of the stage before; the others at twice that.
        first, *others = [layer for layer in layers if layer.kernel_size == (3, 3)]
        first.dilation = first.padding = (dilation, dilation)
        dilation *= 2
        for layer in others:
            layer.dilation = layer.padding = (dilation, dilation)
    return body


class DilatedResNet(DenseEncoder):
    """Images (N, C, H, W) -> maps (N, out, H / stride, W / stride), sizes rounded up; with the stem ``cifar``, which
    has no stride of its own, a quarter of ``stride``.

    ``backbone`` is a ResNet of this ``depth``, ``stem`` and ``width``, ``project`` a 1x1 convolution to ``out``
    channels without bias. ``stride`` 8 is the published one; 4 gives slices of 128 pixels the published grid of 32 x
    32. Images of one channel are repeated to three, as published, so that weights learned on colour images fit.
    ``weights`` is a local file of a torchvision ResNet or DeepLabV3, in whatever wrapper (``weights.find``):
    classifiers are left out, and the 1x1 convolution starts from random weights. Of a file of this network itself the
    1x1 convolution is loaded too. ``feature_dim`` is ``out``. ``ValueError`` for an ``out`` below 1, or weights that do
    not fit.
    """

    def __init__(
        self,
        depth: Literal[9, 18, 34, 50, 101] = 101,
        stem: Literal["imagenet", "cifar"] = "imagenet",
        width: int = 64,
        out: int = 256,
        weights: str | None = None,
        stride: Literal[8, 4] = 8,
        *,
        channels: int = 3,
    ) -> None:
        super().__init__()
        if out < 1:
            raise ValueError(f"method.encoder.out: expected an integer >= 1, got {out}")
        self.backbone = dilate(ResNet(depth, stem, width, channels=3 if channels == 1 else channels), stride)
        self.project = nn.Conv2d(self.backbone.feature_dim, out, 1, bias=False)
        self.feature_dim = out
        if weights is not None:
            load_weights(self, weights, body=self.backbone)

    def maps(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) -> feature maps (N, out, H / stride, W / stride), sizes rounded up."""
        narrow: Tensor = self.project(self.backbone.maps(images))
        return narrow

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, out): the mean of the maps, for methods that compare whole images."""
        return torch.mean(self.maps(images), dim=(2, 3))
