"""Pretraining methods."""

from collections.abc import Callable, Mapping
from typing import Any

from sslmed_dist.methods.contrastive import Contrastive
from sslmed_dist.methods.method import Method

METHODS: Mapping[str, Callable[..., Any]] = {"contrastive": Contrastive}

__all__ = ["METHODS", "Method"]
