"""PIRL: an image and its shuffled patches get the same representation (Misra and van der Maaten 2020, 1912.01991)."""

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

PATCHES = 9  # of an image, cut from 3 x 3 cells
MARGIN = 1e-6  # ln(1 - share) is not finite at a share of 1: there a share counts as 1 - MARGIN at most


def nce(queries: Tensor, memories: Tensor, negatives: Tensor, same_image: Tensor, temperature: float) -> Tensor:
    """Mean over rows of -ln h - sum_j ln(1 - h_j), a scalar, with the shares of a softmax over one positive and K
    negatives: (h, h_1, ..., h_K) = softmax(q.m / t, q.n_1 / t, ..., q.n_K / t), t the temperature.

    ``queries`` q and ``memories`` m (N, D) and ``negatives`` n (K, D) are unit rows. ``same_image`` bool (N, K) marks
    negatives that are left out, because they are earlier entries of the row's own image.
    Source: Misra and van der Maaten 2020, Eq. 3 and 4.
    """
    positive = (queries * memories).sum(dim=1, keepdim=True) / temperature
    others = (queries @ negatives.T / temperature).masked_fill(same_image, -math.inf)
    log_shares = torch.cat([positive, others], dim=1).log_softmax(dim=1)  # (N, 1 + K)
    # ln(1 - h_j) from ln h_j. A negative that is left out has the share 0 and adds nothing.
    log_rest = torch.log(-torch.expm1(log_shares[:, 1:].clamp_max(-MARGIN)))
    return -(log_shares[:, 0] + log_rest.sum(dim=1)).mean()


def patches_of(batch: Mapping[str, Tensor], image: Tensor, method: str) -> Tensor:
    """The nine patches (n, 9, C, p, p) of each of the images (n, C, H, W), in their random order, from ``patches``
    (n, 9 C, p, p) of the batch. ``ValueError``, naming ``method``, where they are missing or of another shape."""
    patches, channels = batch.get("patches"), image.shape[1]
    if patches is None or patches.dim() != 4 or patches.shape[:2] != (len(image), PATCHES * channels):
        got = "none" if patches is None else str(tuple(patches.shape))
        wanted = f"({len(image)}, {PATCHES * channels}, p, p)"
        raise ValueError(f"patches: {method} needs {wanted} (views.name: jigsaw), got {got}")
    return patches.reshape(len(image), PATCHES, channels, *patches.shape[2:])


class PIRL(MomentumMethod):
    """weight NCE(m, g) + (1 - weight) NCE(m, f) (Eq. 5): f is the head's projection of an image, g that of its nine
    patches, m the memory of the image; the negatives are a bank of other images' memories.

    For g, every patch passes the encoder and one linear layer; the nine results side by side (in their random order)
    pass another linear layer. The paper's m is the average over epochs of the image's earlier f, from a bank with one
    entry per image of the data set. The thesis had room for a bank of 1024 (Sec. 3.5.3.2) and does not say how it was
    filled. Here m averages weights instead of embeddings: it is another view of the image through the slow copies of
    encoder and head (``momentum``), and the bank is the last ``queue`` memories. That needs no state per image, is the
    same on any number of workers, and keeps f and m two different views of an image, as they are in the paper. Earlier
    memories of the row's own image are not used as negatives, as in the paper, also where the data set is smaller than
    the bank. ``temperature`` 0.07, ``weight`` 0.5 and a linear head of 128 are the paper's.
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
        """``image`` (f), ``jigsaw`` (g) and ``memory`` (m), each (n, D), not normalised, the memory without gradient.

        The batch has ``views_0``, ``views_1`` (n, C, H, W) and ``patches`` (n, 9 C, p, p), patch after patch.
        ``ValueError`` for another number or shape of views or patches."""
        first, second = two_views(batch, "pirl")
        pieces = patches_of(batch, first, "pirl").flatten(0, 1)  # (9 n, C, p, p)
        image = self.head(self.encoder(first))
        jigsaw = self.jigsaw_head(self.patch_head(self.encoder(pieces)).view(len(first), -1))
        with torch.no_grad():
            memory = self.momentum_head(self.momentum_encoder(second))
        return {"image": image, "jigsaw": jigsaw, "memory": memory}

    def encoder_inputs(self, batch: dict[str, Tensor]) -> list[Tensor]:
        """View 0; after it come single patches."""
        return [two_views(batch, "pirl")[0]]

    def objective(self, embeddings: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weighted loss of this rank's rows and its two terms. The memories, with the sample ids ``batch["index"]``
        (n,), are put aside until the end of the step. ``ValueError`` if the queue cannot hold them."""
        memory = F.normalize(embeddings["memory"].detach(), dim=1)
        index = batch["index"].to(memory.device)
        self.queue.put_aside(memory[:, None], index)
        same_image = index[:, None] == self.queue.ids  # (n, K)
        terms = {}
        for name in ("jigsaw", "image"):
            rows = F.normalize(embeddings[name], dim=1)
            terms[name] = nce(rows, memory, self.queue.rows, same_image, self.temperature)
        loss = self.weight * terms["jigsaw"] + (1.0 - self.weight) * terms["image"]
        return {"loss": loss, "loss_jigsaw": terms["jigsaw"].detach(), "loss_image": terms["image"].detach()}

    def remember(self) -> None:
        """The memories of the step enter the queue."""
        self.queue.write()

    @torch.no_grad()
    def measures(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        """Collapse measures of the whole batch's images and shuffled patches (see ``losses.collapse``)."""
        return collapse_measures(*(distributed.gather(embeddings[name]) for name in ("image", "jigsaw")))
