"""Encoders and heads. An encoder maps images to features and says how many: ``feature_dim``."""

from collections.abc import Callable, Mapping
from typing import Any

from sslmed_dist.models.alexnet import AlexNet
from sslmed_dist.models.dilated import DilatedResNet
from sslmed_dist.models.heads import DinoHead, Identity, Projection
from sslmed_dist.models.jigsaw_networks import SKID, SSLACL
from sslmed_dist.models.prototype_heads import ALPNetHead, CoWProHead, PANetHead
from sslmed_dist.models.resnet import ResNet
from sslmed_dist.models.se_net import SENet
from sslmed_dist.models.sequence import CNN3DHead, ConvLSTMHead, DivframHead, MaxHead, MeanHead, SliceHead
from sslmed_dist.models.timm_encoder import TimmEncoder
from sslmed_dist.models.vgg import VGG

ENCODERS: Mapping[str, Callable[..., Any]] = {
    "resnet": ResNet,
    "dilated_resnet": DilatedResNet,
    "sslacl": SSLACL,
    "skid": SKID,
    "timm": TimmEncoder,
    "vgg": VGG,
    "alexnet": AlexNet,
    "se_net": SENet,
}
HEADS: Mapping[str, Callable[..., Any]] = {"projection": Projection, "identity": Identity, "dino": DinoHead}
# Heads without parameters that score a query's pixels by a support's prototypes.
PROTOTYPE_HEADS: Mapping[str, Callable[..., Any]] = {"cowpro": CoWProHead, "alpnet": ALPNetHead, "panet": PANetHead}
# Heads that read the slices of an examination together.
SLICE_HEADS: Mapping[str, Callable[..., SliceHead]] = {
    "divfram": DivframHead,
    "convlstm": ConvLSTMHead,
    "cnn3d": CNN3DHead,
    "max": MaxHead,
    "mean": MeanHead,
}
