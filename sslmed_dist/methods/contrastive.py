"""Two views, one encoder, one head, one pairwise loss: SimCLR's set-up (Chen et al. 2020, arXiv 2002.05709)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sslmed_dist import distributed, registry
from sslmed_dist.losses import LOSSES
from sslmed_dist.losses.collapse import collapse_measures
from sslmed_dist.losses.pairs import advance
from sslmed_dist.losses.weighted import WeightedSum
from sslmed_dist.methods.method import Method
from sslmed_dist.models import ENCODERS, HEADS


class Contrastive(Method):
    """``loss(head(encoder(view_0)), head(encoder(view_1)))``, both views in one forward pass.

    ``encoder``, ``head`` and ``loss`` are entries of ENCODERS, HEADS and LOSSES; ``channels`` is the images' number of
    channels (a run fills it in from its data).
    """

    def __init__(
        self,
        encoder: Mapping[str, Any] | str = "resnet",
        head: Mapping[str, Any] | str = "projection",
        loss: Mapping[str, Any] | str = "nt_xent",
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.encoder = registry.build(ENCODERS, encoder, "method.encoder", channels=channels)
        self.head = registry.build(HEADS, head, "method.head", in_dim=self.encoder.feature_dim)
        self.loss = registry.build(LOSSES, loss, "method.loss")

    def embed(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """``z0`` and ``z1`` (N, D), not normalised, of ``views_0`` and ``views_1`` (N, C, H, W)."""
        views = torch.cat([batch["views_0"], batch["views_1"]])
        z0, z1 = self.head(self.encoder(views)).chunk(2)
        return {"z0": z0, "z1": z1}

    def objective(self, embeddings: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """This rank's value of the loss over the batch of all ranks; of a weighted sum also its terms by name."""
        z0, z1 = embeddings["z0"], embeddings["z1"]
        if not isinstance(self.loss, WeightedSum):
            return {"loss": self.loss(z0, z1)}
        terms = self.loss.terms(z0, z1)
        return {"loss": self.loss.total(terms), **{name: value.detach() for name, value in terms.items()}}

    def step_begin(self, epoch: float, progress: float) -> None:
        """Tell temperatures that follow a schedule over epochs how many ``epoch`` are done."""
        advance(self.loss, epoch)

    @torch.no_grad()
    def measures(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        """Collapse measures of the whole batch's embeddings (see ``losses.collapse``)."""
        return collapse_measures(distributed.gather(embeddings["z0"]), distributed.gather(embeddings["z1"]))
