"""SE-Net trained on episodes: an annotated slice says what to find on another."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sslmed_dist import registry
from sslmed_dist.losses.overlap import soft_dice
from sslmed_dist.methods.cowpro import dice, episodes_of
from sslmed_dist.methods.method import Method
from sslmed_dist.models import ENCODERS
from sslmed_dist.models.interfaces import DenseEncoder


class SENetEpisodes(Method):
    """From a support image and its mask, find the mask of the query; the loss is one minus the Dice coefficient of the
    foreground's probability and the query's mask, the mean over episodes (``losses.overlap.soft_dice``).

    ``encoder`` is an entry of ENCODERS that is its own head (``se_net``). ``channels`` is the images' number of
    channels (a run fills it in). Published training takes labelled episodes (``data.masks: labelled``); superpixels
    serve as well. Source: Guha Roy et al. 2020, arXiv 1902.01314.
    """

    encoder: DenseEncoder

    def __init__(self, encoder: Mapping[str, Any] | str = "se_net", channels: int = 1) -> None:
        """``ValueError`` for an encoder that is not its own head."""
        super().__init__()
        self.encoder = registry.build(ENCODERS, encoder, "method.encoder", channels=channels)
        if getattr(self.encoder, "own_head", None) is None:
            raise ValueError("method.encoder: expected one that is its own head; allowed: se_net")

    @property
    def head(self) -> Any:
        """The encoder's own."""
        return self.encoder.own_head

    def embed(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The foreground's ``probabilities`` (E, H, W) and the ``query_mask`` (E, H, W), bool, of a batch as
        ``CoWPro.embed`` takes it."""
        support, support_mask, query, query_mask = episodes_of(batch)
        maps = self.encoder.maps(support.flatten(0, 1)).view(support.shape)
        gates = self.head.prototypes(maps, support_mask)
        logits = self.head.scores(gates, self.encoder.maps(query))  # (E, 2, H, W)
        return {"probabilities": logits.softmax(dim=1)[:, 1], "query_mask": query_mask > 0.5}

    def encoder_inputs(self, batch: dict[str, Tensor]) -> list[Tensor]:
        """The supports, then the query, (E, C, H, W) each."""
        support, _, query, _ = episodes_of(batch)
        return [*support.unbind(1), query]

    def objective(self, embeddings: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """This rank's mean ``loss``, and the mean ``dice`` of the predicted query masks."""
        probabilities, truth = embeddings["probabilities"], embeddings["query_mask"]
        # float32 also under half precision: sums over a slice's pixels have more than eight bits
        exact = probabilities if probabilities.dtype is torch.float64 else probabilities.float()
        loss = soft_dice(exact, truth.to(exact)).mean()
        return {"loss": loss, "dice": dice(probabilities.detach() > 0.5, truth).mean()}
