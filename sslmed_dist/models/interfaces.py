"""What an encoder and a head are to everything that builds on them."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Encoder(nn.Module):
    """Images (N, C, H, W) -> features (N, ``feature_dim``)."""

    feature_dim: int


class DenseEncoder(Encoder, ABC):
    """An encoder that also returns its feature maps before they are averaged: what segmentation needs."""

    @abstractmethod
    def maps(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) -> feature maps (N, D, h, w), D = ``feature_dim``."""


class Head(nn.Module):
    """Features (N, D) -> (N, ``out_dim``)."""

    out_dim: int
