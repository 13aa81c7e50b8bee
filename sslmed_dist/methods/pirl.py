"""PIRL: an image and its jumbled patches have one representation (Misra and van der Maaten 2020, arXiv 1912.01991)."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslmed_dist import distributed
from sslmed_dist.arguments import require_positive, require_share
from sslmed_dist.losses.collapse import collapse_measures
from sslmed_dist.methods.method import two_views
from sslmed_dist.methods.momentum import MomentumMethod, Queue

PATCHES = 9
MARGIN = 1e-6  # a share nearer to 1 than this is taken as 1 - MARGIN in ln(1 - share), which has no value at 1


def nce(queries: Tensor, memories: Tensor, negatives: Tensor, own: Tensor, temperature: float) -> Tensor:
    """Mean over rows of -ln h - sum_j ln(1 - h_j), with the shares of a softmax over one positive and K negatives:
    (h, h_1, ..., h_K) = softmax(q.m / t, q.n_1 / t, ..., q.n_K / t), for unit rows q, m (N, D) and n (K, D).

    ``own`` (N, K) marks negatives that are left out: earlier entries of the row's own image.
    Source: Misra and van der Maaten 2020, Eq. 3 and 4.
    """
    positive = (queries * memories).sum(dim=1, keepdim=True) / temperature
    others = (queries @ negatives.T / temperature).masked_fill(own, -math.inf)
    shares = torch.cat([positive, others], dim=1).log_softmax(dim=1)
    rest = torch.log(-torch.expm1(shares[:, 1:].clamp_max(-MARGIN)))
    return -(shares[:, 0] + rest.sum(dim=1)).mean()


class PIRL(MomentumMethod):
    """weight NCE(m, g) + (1 - weight) NCE(m, f) (Eq. 5): f the head's projection of an image, g that of its nine
    patches, m the memory of the image, and a bank of other images' memories as negatives.

    g: every patch through the encoder and one linear layer, the nine results side by side (in their random order)
    through another linear layer. The paper's m is the average over epochs of the image's earlier f, from a bank with
    one entry per image of the data set. The thesis had room for a bank of 1024 (Sec. 3.5.3.2) and does not say how it
    was filled. Reading taken here: m averages weights instead of embeddings, it is another view of the image through
    the slow copies of encoder and head (``momentum``), and the bank is the last ``queue`` memories. That needs no
    state per image, is the same on any number of workers, and keeps f and m two different views of an image, as they
    are in the paper. Entries of the row's own image are no negatives, as in the paper, also where the data set is
    smaller than the bank. ``temperature`` 0.07, ``weight`` 0.5 and a linear head of 128 are the paper's.
    """

    def __init__(
        self,
        encoder: Mapping[str, Any] | str = "resnet",
        head: Mapping[str, Any] | str | None = None,
        queue: int = 1024,
        temperature: float = 0.07,
        weight: float = 0.5,
        momentum: float = 0.999,
        momentum_end: float | None = None,
        channels: int = 3,
    ) -> None:
        """``head`` null is ``{name: projection, layers: 1, out: 128}``. ``ValueError`` for an empty queue, a momentum
        or weight outside [0, 1] or a temperature that is not above 0."""
        head = {"name": "projection", "layers": 1, "out": 128} if head is None else head
        super().__init__(encoder, head, channels, momentum, momentum_end)
        self.temperature = require_positive("method.temperature", temperature)
        self.weight = require_share("method.weight", weight)
        width = self.head.out_dim
        self.patch_head = nn.Linear(self.encoder.feature_dim, width)
        self.jigsaw_head = nn.Linear(PATCHES * width, width)
        self.queue = Queue(queue, width)

    def embed(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """``image``, ``jigsaw`` and ``memory`` (n, D), not normalised, the memory without gradient.

        From ``views_0``, ``views_1`` (n, C, H, W) and ``patches`` (n, 9 C, p, p), patch after patch."""
        first, second = two_views(batch, "pirl")
        patches = batch.get("patches")
        channels = first.shape[1]
        if patches is None or patches.shape[:2] != (len(first), PATCHES * channels):
            got = "none" if patches is None else str(tuple(patches.shape))
            raise ValueError(
                f"patches: pirl needs ({len(first)}, {PATCHES * channels}, p, p) (views.name: jigsaw), got {got}"
            )
        pieces = patches.reshape(-1, channels, *patches.shape[2:])
        image = self.head(self.encoder(first))
        jigsaw = self.jigsaw_head(self.patch_head(self.encoder(pieces)).view(len(first), -1))
        with torch.no_grad():
            memory = self.momentum_head(self.momentum_encoder(second))
        return {"image": image, "jigsaw": jigsaw, "memory": memory}

    def objective(self, embeddings: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The two terms of this rank's rows; the memories wait for the end of the step. ``batch["index"]`` says whose
        they are. ``ValueError`` if the queue cannot hold them."""
        memory = F.normalize(embeddings["memory"].detach(), dim=1)
        index = batch["index"].to(memory.device)
        self.queue.put_aside(memory[:, None], index)
        own = index[:, None] == self.queue.ids
        terms = {}
        for name in ("jigsaw", "image"):
            rows = F.normalize(embeddings[name], dim=1)
            terms[name] = nce(rows, memory, self.queue.rows, own, self.temperature)
        loss = self.weight * terms["jigsaw"] + (1.0 - self.weight) * terms["image"]
        return {"loss": loss, "loss_jigsaw": terms["jigsaw"].detach(), "loss_image": terms["image"].detach()}

    def remember(self) -> None:
        """The memories of the step enter the queue."""
        self.queue.write()

    @torch.no_grad()
    def measures(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        """Collapse measures of the whole batch's images and jumbled patches (see ``losses.collapse``)."""
        return collapse_measures(*(distributed.gather(embeddings[name]) for name in ("image", "jigsaw")))
