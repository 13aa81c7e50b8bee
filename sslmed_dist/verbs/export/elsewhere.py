"""What other libraries call a network of ours, and its tensors there."""

from dataclasses import dataclass
from typing import Any

from sslmed_dist.models.resnet import ResNet
from sslmed_dist.models.timm_encoder import TimmEncoder
from sslmed_dist.training.pretrained import Pretrained

PUBLISHED = (18, 34, 50, 101, 152)  # depths that torchvision and timm have
WIDTH = 64


@dataclass(frozen=True)
class Counterpart:
    """A network by its name in another library, what stands before its tensors' names in ours, and the channels that
    it takes."""

    name: str
    prefix: str
    channels: int


def as_torchvision(trained: Pretrained) -> Counterpart | None:
    """torchvision's network with this encoder's tensors, or None: ResNets of the published depths, width and stem."""
    encoder, leaf = trained.encoder, dict(trained.settings.method["encoder"])
    if not isinstance(encoder, ResNet) or int(leaf.get("depth", 18)) not in PUBLISHED:
        return None
    if leaf.get("stem", "imagenet") != "imagenet" or int(leaf.get("width", WIDTH)) != WIDTH:
        return None
    return Counterpart(f"resnet{leaf.get('depth', 18)}", "", encoder.channels)


def as_timm(trained: Pretrained) -> Counterpart | None:
    """timm's network with this encoder's tensors, or None: what torchvision has, and timm's own without ``stages``."""
    encoder = trained.encoder
    if isinstance(encoder, TimmEncoder):
        leaf: dict[str, Any] = dict(trained.settings.method["encoder"])
        return None if encoder.stages.numbers else Counterpart(str(leaf["model"]), "model.", encoder.channels)
    return as_torchvision(trained)
