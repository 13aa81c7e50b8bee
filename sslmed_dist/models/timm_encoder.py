"""Encoders of the library timm (Wightman 2019), by their names there: Inception-ResNet-v2, EfficientNets and others."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sslmed_dist.models.interfaces import DenseEncoder, load_weights, repeat_grey
from sslmed_dist.models.timm_stages import Stages, shallow_copy

PRETRAINED = "pretrained"  # the word that asks for a download
RGB = 3
WIDTH = 256  # channels of joined maps, as published for one-shot segmentation


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

    With ``stages`` the encoder is one of maps for segmentation. The maps of these stages (timm's ``feature_info``,
    0 is the finest; of a transformer they are its blocks) are brought to ``stride`` and put side by side, and
    ``project``, a 1x1 convolution without bias, makes ``width`` channels of them (``Stages``). What lies behind the
    last of them is cut off. ``dilated`` keeps the network itself from going beyond ``stride``. ``feature_dim`` is
    ``width`` and features are the maps' mean.
    ``frozen_stages`` K: the stages 0 ... K - 1 and all that comes before them keep their weights and statistics.
    """

    def __init__(
        self,
        model: str,
        weights: str | None = None,
        stages: tuple[int, ...] | None = None,
        stride: int | None = None,
        width: int | None = None,
        dilated: bool = False,
        frozen_stages: int = 0,
        *,
        channels: int = 3,
    ) -> None:
        """``ValueError``: timm not installed, a name it does not know, weights that do not fit or cannot be had, a
        stage that is not there, a network that cannot be dilated, ``stride``, ``width`` or ``dilated`` without
        ``stages``."""
        super().__init__()
        timm = library()
        if not timm.is_model(model):
            near = ", ".join(timm.list_models(f"*{model.split('_')[0]}*")[:8])
            raise ValueError(f"method.encoder.model: timm has no {model!r}{f'; near: {near}' if near else ''}")
        if stages is None and (stride, width, dilated) != (None, None, False):
            raise ValueError("method.encoder.stages: null beside stride, width or dilated, which are of stages' maps")
        self.channels = RGB if channels == 1 else channels
        options = {"num_classes": 0, "in_chans": self.channels}
        self.stages = Stages()
        if stages is not None or frozen_stages:
            with torch.device("meta"):  # what it is, before any memory is spent on it
                outline = timm.create_model(model, pretrained=False, **options)
            self.stages = Stages.of(outline, stages, stride, dilated, frozen_stages)
        options |= self.stages.options
        if weights == PRETRAINED:
            try:
                self.model = timm.create_model(model, pretrained=True, **options)
            except Exception as error:  # a hub, a network, a disk: many libraries, many exceptions
                reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
                raise ValueError(f"method.encoder.weights: {model}: timm could not get them: {reason}") from None
            self.taken = f"method.encoder.weights: timm's own of {model}, downloaded or from its cache"
        else:
            self.model = timm.create_model(model, pretrained=False, **options)
        whole = shallow_copy(self.model)  # as files of weights hold it, cut or not
        if stages is None:
            self.feature_dim = int(getattr(self.model, "head_hidden_size", None) or self.model.num_features)
        else:
            self.stages.cut(self.model)
            self.feature_dim = WIDTH if width is None else width
            if self.feature_dim < 1:
                raise ValueError(f"method.encoder.width: expected an integer >= 1, got {width}")
            self.project = nn.Conv2d(self.stages.channels, self.feature_dim, 1, bias=False)
        if weights is None and frozen_stages:
            self.taken = (
                f"method.encoder.frozen_stages: the first {frozen_stages} stages stay at random weights, because "
                "method.encoder.weights names none; run.start_from replaces them"
            )
        if weights is not None and weights != PRETRAINED:
            load_weights(self, weights, whole)
        self.stages.freeze(self.model)

    @property
    def maps_dim(self) -> int:
        """Channels of the maps. It differs from ``feature_dim`` where the network has a layer after the pooling."""
        return self.feature_dim if self.stages.numbers else int(self.model.num_features)

    def train(self, mode: bool = True) -> "TimmEncoder":
        """Training mode or evaluation mode; frozen stages are in evaluation mode in both."""
        super().train(mode)
        self.stages.settle(self.model)
        return self

    def maps(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> feature maps (N, ``maps_dim``, h, w): with ``stages`` at their stride, sizes rounded up; else
        the last ones before pooling. ``ValueError`` for a network that has none (tokens)."""
        images = repeat_grey(images, self.channels)
        if self.stages.numbers:
            joined: Tensor = self.project(self.stages.joined(self.model, images))
            return joined
        out = self.model.forward_features(images)
        if not isinstance(out, torch.Tensor) or out.dim() != 4:
            raise ValueError(
                "method.encoder.model: this network makes no feature maps of itself; allowed: a convolutional one, or "
                "stages, such as [3, 7, 11], with a stride"
            )
        return out

    def stem(self, images: Tensor) -> list[Tensor]:
        """(N, C, H, W) -> the maps of the frozen stages that ``maps_after`` needs. ``ValueError``: nothing is frozen,
        or a network of which no part can be left out."""
        return self.stages.stem(self.model, repeat_grey(images, self.channels))

    def maps_after(self, stem: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """What ``maps`` gives of images of this ``size`` (H, W), from their ``stem``."""
        joined: Tensor = self.project(self.stages.joined_after(self.model, stem, size))
        return joined

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, feature_dim)."""
        if self.stages.numbers:
            return self.maps(images).mean(dim=(2, 3))
        out: Tensor = self.model(repeat_grey(images, self.channels))
        return out
