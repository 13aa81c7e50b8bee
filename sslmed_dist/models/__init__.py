"""Encoders and heads. An encoder maps images to features and says how many: ``feature_dim``."""

from collections.abc import Callable, Mapping
from typing import Any

from sslmed_dist.models.heads import DinoHead, Identity, Projection
from sslmed_dist.models.resnet import ResNet

ENCODERS: Mapping[str, Callable[..., Any]] = {"resnet": ResNet}
HEADS: Mapping[str, Callable[..., Any]] = {"projection": Projection, "identity": Identity, "dino": DinoHead}
