"""What an encoder and a head are to everything that builds on them."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sslmed_dist import weights
from sslmed_dist.printable import plural


class Encoder(nn.Module):
    """Images (N, C, H, W) -> features (N, ``feature_dim``). Its state dict holds all of it: buffers are persistent."""

    feature_dim: int
    taken: str | None = None  # of the file that ``weights`` names: what was loaded and what was left aside


def load_weights(encoder: Encoder, path: str, body: nn.Module | None = None) -> None:
    """Load the weights of ``encoder`` from a local file of any program (``weights.find``), and note in
    ``encoder.taken`` what was taken. Where the file does not hold all of the encoder, its ``body`` (None: there is no
    such part) is looked for instead. ``ValueError``: a file that cannot be read, or that holds neither."""
    where = f"method.encoder.weights: {path}"
    tensors = weights.read(Path(path).expanduser(), where)
    if body is not None and not weights.complete(tensors, encoder.state_dict()):
        found = weights.find(tensors, body.state_dict(), where)
        body.load_state_dict(found.state)
    else:
        found = weights.find(tensors, encoder.state_dict(), where)
        encoder.load_state_dict(found.state)
    encoder.taken = f"method.encoder.weights: {found}"


def repeat_grey(images: Tensor, channels: int) -> Tensor:
    """Images (..., C, H, W) with ``channels`` channels: grey ones (C = 1) are repeated, without a copy. ``ValueError``
    for another number of channels."""
    if images.shape[-3] == 1 and channels > 1:
        return images.expand(*images.shape[:-3], channels, *images.shape[-2:])
    if images.shape[-3] != channels:
        raise ValueError(f"images: expected {plural(channels, 'channel')}, got {images.shape[-3]}")
    return images


class DenseEncoder(Encoder, ABC):
    """An encoder that also returns its feature maps before they are averaged: what segmentation needs."""

    @abstractmethod
    def maps(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) -> feature maps (N, D, h, w), D = ``maps_dim``."""

    @property
    def own_head(self) -> Any:
        """What reads the maps in place of a recipe's head of prototypes (``prototype_heads.PrototypeHead``): a part of
        the network that was trained with it. None: any head may read them."""
        return None

    @property
    def maps_dim(self) -> int:
        """Channels of the maps: ``feature_dim``, where the features are the maps' average."""
        return self.feature_dim


class Head(nn.Module):
    """Features (N, D) -> (N, ``out_dim``)."""

    out_dim: int
