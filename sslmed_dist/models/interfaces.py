"""What an encoder and a head are to everything that builds on them."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Encoder(nn.Module):
    """Images (N, C, H, W) -> features (N, ``feature_dim``)."""

    feature_dim: int


class DenseEncoder(Encoder, ABC):
    """An encoder that also says where: what segmentation needs."""

    @abstractmethod
    def maps(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> feature maps (N, D, h, w)."""


class Head(nn.Module):
    """Features (N, D) -> (N, ``out_dim``)."""

    out_dim: int
