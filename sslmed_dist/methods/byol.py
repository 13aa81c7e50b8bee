"""BYOL and SimSiam: one view predicts the other's projection, without negatives."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslmed_dist import distributed, registry
from sslmed_dist.losses.collapse import collapse_measures
from sslmed_dist.methods.method import Method, require_width, two_views
from sslmed_dist.methods.momentum import MomentumMethod
from sslmed_dist.models import ENCODERS, HEADS
from sslmed_dist.models.interfaces import Head

Leaf = Mapping[str, Any] | str


def mean_cosine(a: Tensor, b: Tensor) -> Tensor:
    """Mean over rows of the cosine of ``a`` and ``b`` (N, D); a scalar."""
    return (F.normalize(a, dim=1) * F.normalize(b, dim=1)).sum(dim=1).mean()


def build_predictor(leaf: Leaf, head: Head) -> Head:
    """The head that maps projections to projections. ``ValueError`` when its output is of another width."""
    width = head.out_dim
    predictor: Head = registry.build(HEADS, leaf, "method.predictor", in_dim=width)
    require_width("predictor", predictor.out_dim, width, "head")
    return predictor


class BYOL(MomentumMethod):
    """p = predictor(head(encoder(view))) learns to predict t, the projection of the other view by slow copies of the
    encoder and the head (Grill et al. 2020, arXiv 2006.07733).

    The loss is that of the paper (Eq. 2): |p - t|^2 = 2 - 2 cos(p, t) of unit p and t, the mean over samples, SUMMED
    over the two directions: 4 at random, 0 at best. (Libraries that minimise the mean of -cos have a quarter of its
    gradient.) Each network sees one view at a time. Defaults are the paper's: heads of 4096 and 256, and a momentum
    that goes to 1 from 0.99, the paper's value for 300 epochs (0.996 for 1000).
    """

    def __init__(
        self,
        encoder: Leaf = "resnet",
        head: Leaf | None = None,
        predictor: Leaf | None = None,
        momentum: float = 0.99,
        momentum_end: float | None = 1.0,
        channels: int = 3,
    ) -> None:
        """``head`` and ``predictor`` null are ``{name: projection, hidden: 4096, out: 256, batch_norm: true}``.
        ``ValueError`` for a momentum outside [0, 1] or a predictor of another output width than the head."""
        paper = {"name": "projection", "hidden": 4096, "out": 256, "batch_norm": True}
        super().__init__(encoder, paper if head is None else head, channels, momentum, momentum_end)
        self.predictor = build_predictor(paper if predictor is None else predictor, self.head)

    def embed(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Predictions ``p0``, ``p1`` and targets ``t0``, ``t1`` (n, D) of both views, not normalised, the targets
        without gradient."""
        views = two_views(batch, "byol")
        # View by view, not both in one batch: batch norm then has the statistics of one view.
        p0, p1 = (self.predictor(self.head(self.encoder(view))) for view in views)
        with torch.no_grad():
            t0, t1 = (self.momentum_head(self.momentum_encoder(view)) for view in views)
        return {"p0": p0, "p1": p1, "t0": t0, "t1": t1}

    def objective(self, embeddings: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The sum of both directions: a mean over samples, so nothing is gathered."""
        p0, p1, t0, t1 = (embeddings[name] for name in ("p0", "p1", "t0", "t1"))
        # Each direction is 2 - 2 cos; a view's prediction is compared with the other view's target.
        return {"loss": 4.0 - 2.0 * (mean_cosine(p0, t1.detach()) + mean_cosine(p1, t0.detach()))}

    @torch.no_grad()
    def measures(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        """Collapse measures of the whole batch's targets (see ``losses.collapse``)."""
        return collapse_measures(*(distributed.gather(embeddings[name]) for name in ("t0", "t1")))


class SimSiam(Method):
    """As BYOL, without slow copies: the target is the other view's projection itself, held fixed (Chen and He 2021,
    arXiv 2011.10566).

    The loss is the paper's Eq. 2, the mean over samples and the two directions of -cos(p, stop(z)): 0 at random, -1 at
    best. Each view passes by itself. The paper ends its projector in a batch norm without scale and shift; here they
    are learned (``last_norm``). It also keeps the predictor's learning rate constant: not done here.
    """

    def __init__(
        self, encoder: Leaf = "resnet", head: Leaf | None = None, predictor: Leaf | None = None, channels: int = 3
    ) -> None:
        """``head`` null is three layers of 2048 with batch norm after each, ``predictor`` null 2048-512-2048 with
        batch norm after the first. ``ValueError`` for a predictor of another output width than the head."""
        super().__init__()
        norms = {"batch_norm": True, "last_norm": True}
        paper = {"name": "projection", "hidden": 2048, "out": 2048, "layers": 3, **norms}
        self.encoder = registry.build(ENCODERS, encoder, "method.encoder", channels=channels)
        width = self.encoder.feature_dim
        self.head: Head = registry.build(HEADS, paper if head is None else head, "method.head", in_dim=width)
        narrow = {"name": "projection", "hidden": 512, "out": self.head.out_dim, "batch_norm": True}
        self.predictor = build_predictor(narrow if predictor is None else predictor, self.head)

    def embed(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Predictions ``p0``, ``p1`` and projections ``z0``, ``z1`` (n, D), not normalised, the projections without
        gradient."""
        z0, z1 = (self.head(self.encoder(view)) for view in two_views(batch, "simsiam"))
        return {"p0": self.predictor(z0), "p1": self.predictor(z1), "z0": z0.detach(), "z1": z1.detach()}

    def objective(self, embeddings: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The mean of both directions: a mean over samples, so nothing is gathered."""
        p0, p1, z0, z1 = (embeddings[name] for name in ("p0", "p1", "z0", "z1"))
        return {"loss": -0.5 * (mean_cosine(p0, z1.detach()) + mean_cosine(p1, z0.detach()))}

    @torch.no_grad()
    def measures(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        """Collapse measures of the whole batch's projections (see ``losses.collapse``)."""
        return collapse_measures(*(distributed.gather(embeddings[name]) for name in ("z0", "z1")))
