"""MoCo v2: a query against the key of its other view and a queue of earlier keys (Chen et al. 2020, 2003.04297)."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslmed_dist import distributed
from sslmed_dist.arguments import require_positive
from sslmed_dist.losses.collapse import collapse_measures
from sslmed_dist.methods.method import two_views
from sslmed_dist.methods.momentum import MomentumMethod, Queue


def info_nce(queries: Tensor, keys: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Mean over rows of ln(e^(q.k / t) + sum_j e^(q.n_j / t)) - q.k / t, a scalar; t is the temperature.

    ``queries`` q and ``keys`` k (N, D) and ``negatives`` n (K, D) are unit rows.

    Source: He et al. 2020, "Momentum contrast for unsupervised visual representation learning", Eq. 1.
    """
    positive = (queries * keys).sum(dim=1, keepdim=True)
    logits = torch.cat([positive, queries @ negatives.T], dim=1) / temperature  # (N, 1 + K)
    return (logits.logsumexp(dim=1) - logits[:, 0]).mean()


class MoCoV2(MomentumMethod):
    """View 0 through encoder and head is the query, view 1 through their slow copies the key: InfoNCE with the queue
    as negatives. Each network sees one view at a time, so batch norm's statistics are those of one view.

    ``queue`` is the number of keys kept; ``momentum`` is constant unless ``momentum_end`` is set (see
    ``MomentumMethod``). The defaults are the paper's for ImageNet, except for the temperature, 0.07 as in the thesis
    (Sec. 5.5.2; MoCo v2 has 0.2). ``symmetric``: view 1 is a query as well. The loss is then the mean of the two
    directions, not their sum, so that a learning rate means the same. Both directions see the queue as it was before
    the step, and the keys of both enter after it: no sample of the batch is its own negative.
    """

    def __init__(
        self,
        encoder: Mapping[str, Any] | str = "resnet",
        head: Mapping[str, Any] | str = "projection",
        queue: int = 65536,
        temperature: float = 0.07,
        momentum: float = 0.999,
        momentum_end: float | None = None,
        symmetric: bool = False,
        channels: int = 3,
    ) -> None:
        """``ValueError`` for an empty queue, a momentum outside [0, 1] or a temperature that is not above 0."""
        super().__init__(encoder, head, channels, momentum, momentum_end)
        self.temperature = require_positive("method.temperature", temperature)
        self.symmetric = symmetric
        self.queue = Queue(queue, self.head.out_dim)

    def embed(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """``queries`` and ``keys`` (n, V, D), V = 2 if symmetric, else 1: query v belongs to key v. Neither is
        normalised; the keys have no gradient."""
        first, second = two_views(batch, "moco_v2")
        # Pairs (view that is the query, view that is the key).
        directions = [(first, second), (second, first)] if self.symmetric else [(first, second)]
        queries = torch.stack([self.head(self.encoder(view)) for view, _ in directions], dim=1)
        with torch.no_grad():
            keys = torch.stack([self.momentum_head(self.momentum_encoder(view)) for _, view in directions], dim=1)
        return {"queries": queries, "keys": keys}

    def encoder_inputs(self, batch: dict[str, Tensor]) -> list[Tensor]:
        """View 0, and where both are queries view 1."""
        return list(two_views(batch, "moco_v2"))[: 2 if self.symmetric else 1]

    def objective(self, embeddings: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """InfoNCE of this rank's queries. The keys are put aside until the end of the step. ``ValueError`` if the queue
        cannot hold them."""
        queries = F.normalize(embeddings["queries"], dim=2)
        keys = F.normalize(embeddings["keys"].detach(), dim=2)
        self.queue.put_aside(keys)
        return {"loss": info_nce(queries.flatten(0, 1), keys.flatten(0, 1), self.queue.rows, self.temperature)}

    def remember(self) -> None:
        """The keys of the step enter the queue."""
        self.queue.write()

    @torch.no_grad()
    def measures(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        """Collapse measures of the whole batch's first queries and keys (see ``losses.collapse``)."""
        queries, keys = (distributed.gather(embeddings[name][:, 0]) for name in ("queries", "keys"))
        return collapse_measures(queries, keys)
