"""Encoders of the library timm (Wightman 2019), by their names there: Inception-ResNet-v2, EfficientNets and others."""

from typing import Any

import torch
from torch import Tensor

from sslmed_dist.models.interfaces import DenseEncoder, load_weights, repeat_grey

PRETRAINED = "pretrained"  # the word that asks for a download
RGB = 3


def library() -> Any:
    """timm. ``ValueError`` where it is not installed."""
    try:
        import timm
    except ImportError:
        raise ValueError("method.encoder: timm is not installed; pip install 'sslmed-dist[timm]'") from None
    return timm


class TimmEncoder(DenseEncoder):
    """Images (N, C, H, W) -> timm's pooled features (N, feature_dim) of the network called ``model``, no classifier.

    Grey images are repeated to three channels. ``weights``: null starts at random; a file holds such a network's
    weights under timm's names, in whatever wrapper (``weights.find``); the word ``pretrained`` downloads timm's own,
    which nothing else ever does. How images are normalised is the recipe's affair (``views.mean``, ``views.std``).
    """

    def __init__(self, model: str, weights: str | None = None, *, channels: int = 3) -> None:
        """``ValueError``: timm not installed, a name it does not know, weights that do not fit or cannot be had."""
        super().__init__()
        timm = library()
        if not timm.is_model(model):
            near = ", ".join(timm.list_models(f"*{model.split('_')[0]}*")[:8])
            raise ValueError(f"method.encoder.model: timm has no {model!r}{f'; near: {near}' if near else ''}")
        self.channels = RGB if channels == 1 else channels
        options = {"num_classes": 0, "in_chans": self.channels}
        if weights == PRETRAINED:
            try:
                self.model = timm.create_model(model, pretrained=True, **options)
            except Exception as error:  # a hub, a network, a disk: many libraries, many exceptions
                reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
                raise ValueError(f"method.encoder.weights: {model}: timm could not get them: {reason}") from None
            self.taken = f"method.encoder.weights: timm's own of {model}, downloaded or from its cache"
        else:
            self.model = timm.create_model(model, pretrained=False, **options)
        self.feature_dim = int(getattr(self.model, "head_hidden_size", None) or self.model.num_features)
        if weights is not None and weights != PRETRAINED:
            load_weights(self, weights, self.model)

    @property
    def maps_dim(self) -> int:
        """Channels of the maps. It differs from ``feature_dim`` where the network has a layer after the pooling."""
        return int(self.model.num_features)

    def maps(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> the last feature maps before pooling, (N, ``maps_dim``, h, w). ``ValueError`` for a network
        that has none (tokens)."""
        out = self.model.forward_features(repeat_grey(images, self.channels))
        if not isinstance(out, torch.Tensor) or out.dim() != 4:
            raise ValueError("method.encoder.model: this network makes no feature maps; allowed: a convolutional one")
        return out

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, feature_dim)."""
        out: Tensor = self.model(repeat_grey(images, self.channels))
        return out
