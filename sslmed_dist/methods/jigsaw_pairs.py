"""SimCLR and MoCo v2 of pairs of an image and its nine jumbled patches, encoded as PIRL does (thesis, Sec. 3.5.3.2).

The thesis compares its jigsaw networks with them. It says that jigsaw is the transformation and that nothing but the
encoder's structure, PIRL's, differs from the plain methods. Every patch passes the encoder and a linear layer; the nine
results side by side, in their random order, pass another one. The views are those of PIRL (``jigsaw``).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sslmed_dist.methods.contrastive import Contrastive
from sslmed_dist.methods.method import two_views
from sslmed_dist.methods.moco import MoCoV2
from sslmed_dist.methods.momentum import frozen_copy
from sslmed_dist.methods.pirl import PATCHES, patches_of
from sslmed_dist.models.interfaces import Head


class PuzzleHead(Head):
    """A head for images, and beside it PIRL's for puzzles; both give ``out_dim`` numbers."""

    def __init__(self, image: Head, in_dim: int) -> None:
        super().__init__()
        self.image, self.out_dim = image, image.out_dim
        self.patch = nn.Linear(in_dim, self.out_dim)
        self.jigsaw = nn.Linear(PATCHES * self.out_dim, self.out_dim)

    def forward(self, features: Tensor) -> Tensor:
        """Features (n, D) of images."""
        projected: Tensor = self.image(features)
        return projected

    def puzzles(self, features: Tensor) -> Tensor:
        """Features (9 n, D) of patches, those of a puzzle beside each other -> (n, ``out_dim``)."""
        projected: Tensor = self.jigsaw(self.patch(features).view(-1, PATCHES * self.out_dim))
        return projected


class ContrastiveJigsaw(Contrastive):
    """``loss`` of an image (view 0) and its puzzle. Arguments as ``contrastive``; with NT-Xent it is the thesis's
    SimCLR."""

    head: PuzzleHead

    def __init__(
        self,
        encoder: Mapping[str, Any] | str = "resnet",
        head: Mapping[str, Any] | str = "projection",
        loss: Mapping[str, Any] | str = "nt_xent",
        channels: int = 3,
    ) -> None:
        super().__init__(encoder, head, loss, channels)
        self.head = PuzzleHead(self.head, self.encoder.feature_dim)

    def embed(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """``z0`` of ``views_0`` (n, C, H, W) and ``z1`` of ``patches`` (n, 9 C, p, p): (n, D), not normalised.
        ``ValueError`` for another number or shape of views or patches."""
        image, _ = two_views(batch, "contrastive_jigsaw")
        patches = patches_of(batch, image, "contrastive_jigsaw").flatten(0, 1)  # (9 n, C, p, p)
        return {"z0": self.head(self.encoder(image)), "z1": self.head.puzzles(self.encoder(patches))}

    def encoder_inputs(self, batch: dict[str, Tensor]) -> list[Tensor]:
        """View 0; after it come single patches."""
        return [batch["views_0"]]


class MoCoJigsaw(MoCoV2):
    """MoCo v2 whose two views are an image and its puzzle, each the query once and the key once; as in the symmetric
    ``moco_v2`` the loss is the mean of both directions. The key of the image is of view 1, the query of view 0.
    Arguments as ``moco_v2``; the thesis had room for a queue of 1024."""

    head: PuzzleHead
    momentum_head: PuzzleHead

    def __init__(
        self,
        encoder: Mapping[str, Any] | str = "resnet",
        head: Mapping[str, Any] | str = "projection",
        queue: int = 1024,
        temperature: float = 0.07,
        momentum: float = 0.999,
        momentum_end: float | None = None,
        channels: int = 3,
    ) -> None:
        """``ValueError`` as ``moco_v2``."""
        super().__init__(encoder, head, queue, temperature, momentum, momentum_end, symmetric=True, channels=channels)
        self.head = PuzzleHead(self.head, self.encoder.feature_dim)
        self.momentum_head = frozen_copy(self.head)

    def embed(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """``queries`` and ``keys`` (n, 2, D): the image's query belongs to the puzzle's key, and the puzzle's query to
        the image's key. Images are ``views_0`` and ``views_1`` (n, C, H, W), puzzles ``patches`` (n, 9 C, p, p).
        Nothing is normalised; the keys have no gradient. ``ValueError`` for another number or shape of views or
        patches."""
        first, second = two_views(batch, "moco_v2_jigsaw")
        patches = patches_of(batch, first, "moco_v2_jigsaw").flatten(0, 1)  # (9 n, C, p, p)
        queries = [self.head(self.encoder(first)), self.head.puzzles(self.encoder(patches))]
        with torch.no_grad():
            slow = self.momentum_encoder
            keys = [self.momentum_head.puzzles(slow(patches)), self.momentum_head(slow(second))]
        return {"queries": torch.stack(queries, dim=1), "keys": torch.stack(keys, dim=1)}

    def encoder_inputs(self, batch: dict[str, Tensor]) -> list[Tensor]:
        """View 0; after it come single patches."""
        return [batch["views_0"]]
