"""CoWPro: one-shot segmentation learned from superpixels, without a label (thesis, chapter 7)."""

from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from sslmed_dist import registry
from sslmed_dist.arguments import require_not_negative, require_positive
from sslmed_dist.methods.method import Method
from sslmed_dist.models import ENCODERS, PROTOTYPE_HEADS, episode_norm
from sslmed_dist.models.interfaces import DenseEncoder
from sslmed_dist.models.prototype_heads import PrototypeHead

CYCLE_LEVEL = 0.95  # threshold of the prototypes of a predicted mask (thesis, Sec. 7.4.1.5)
PARTS = ("support", "support_mask", "query", "query_mask")


class CoWPro(Method):
    """A support image and its mask have to find the mask of the query, which is another view of the same image.

    loss = segmentation + ``cycle`` x cyclic consistency (Eq. 7.14), each a mean over episodes of a cross entropy over
    the query's (the support's) pixels, at the mask's size. Segmentation weighs background pixels by
    ``background_weight`` and is divided by an episode's sum of weights (Eq. 7.12). Cyclic consistency, not weighted,
    lets the query, with the mask that was predicted for it, find the support's mask (Eq. 7.13): the hard prediction on
    the feature grid, without gradient, and the features that are there already. An episode in which nothing was
    predicted has no such term (0).

    ``encoder`` is an entry of ENCODERS with ``maps``, ``head`` one of PROTOTYPE_HEADS. ``batch_norm``: ``episode``
    takes the statistics of one episode's images, so that E episodes at once compute what E batches of one compute, and
    moves the running statistics once per step; ``frozen`` normalises by the running statistics as they are (of loaded
    weights); ``batch`` takes those of all images. ``channels`` is what the images have (a run fills it in).
    """

    encoder: DenseEncoder

    def __init__(
        self,
        encoder: Mapping[str, Any] | str = "dilated_resnet",
        head: Mapping[str, Any] | str = "cowpro",
        batch_norm: Literal["episode", "frozen", "batch"] = "episode",
        background_weight: float = 0.05,
        cycle: float = 1.0,
        channels: int = 1,
    ) -> None:
        """``ValueError`` for a background weight that is not above 0, or a negative ``cycle``."""
        super().__init__()
        self.background_weight = require_positive("method.background_weight", background_weight)
        self.cycle = require_not_negative("method.cycle", cycle)
        self.batch_norm = batch_norm
        self.encoder = registry.build(ENCODERS, encoder, "method.encoder", channels=channels)
        if batch_norm == "episode":
            episode_norm.convert(self.encoder)
        self.head: PrototypeHead = registry.build(PROTOTYPE_HEADS, head, "method.head")

    def train(self, mode: bool = True) -> Self:
        """Training mode; with ``batch_norm: frozen`` the encoder stays in evaluation mode (it learns all the same)."""
        super().train(mode)
        if self.batch_norm == "frozen":
            self.encoder.eval()
        return self

    def embed(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Maps of all images in one forward pass, ``support`` (E, K, D, h, w) and ``query`` (E, D, h, w), and the
        masks, ``support_mask`` bool (E, K, H, W) and ``query_mask`` (E, H, W).

        The batch has ``support`` (E, C, H, W) or (E, K, C, H, W), ``support_mask`` (E, H, W) or (E, K, H, W), ``query``
        (E, C, H, W) and ``query_mask`` (E, H, W). ``ValueError`` names what is missing or of another shape.
        """
        support, support_mask, query, query_mask = episodes_of(batch)
        rows = torch.cat([support.transpose(0, 1).flatten(0, 1).to(query), query])  # image by image
        episode_norm.arrange(self.encoder, 1 + support.shape[1])
        maps = self.encoder.maps(rows)
        maps = maps.reshape(-1, len(query), *maps.shape[1:])  # (1 + K, E, D, h, w)
        found = {"support": maps[:-1].transpose(0, 1), "query": maps[-1]}
        return {**found, "support_mask": support_mask > 0.5, "query_mask": query_mask > 0.5}

    def objective(self, embeddings: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """This rank's mean loss, its two terms, the share of episodes with a cyclic term (``cycled``) and the Dice of
        the predicted query masks."""
        support, query = embeddings["support"], embeddings["query"]
        truth = embeddings["query_mask"]
        scores = self.head.scores(self.head.prototypes(support, embeddings["support_mask"]), query)
        margins = upsampled(scores, truth)
        segmentation = cross_entropy(margins, truth, self.background_weight).mean()
        found = {"segmentation": segmentation.detach(), "dice": dice(margins.detach() > 0, truth).mean()}
        if self.cycle == 0:
            return {"loss": segmentation, **found}
        predicted = scores.detach().argmax(dim=1)
        some = predicted.flatten(1).any(dim=1).to(query)
        cyclic = (some * self.back(predicted, embeddings)).mean()
        found |= {"cycle": cyclic.detach(), "cycled": some.mean()}
        return {"loss": segmentation + self.cycle * cyclic, **found}

    def back(self, predicted: Tensor, embeddings: dict[str, Tensor]) -> Tensor:
        """Cross entropy (E,) of the supports' masks, found from the query with the mask ``predicted`` (E, h, w)."""
        support, truth = embeddings["support"], embeddings["support_mask"]
        prototypes = self.head.prototypes(embeddings["query"][:, None], predicted[:, None], CYCLE_LEVEL)
        each = [
            cross_entropy(upsampled(self.head.scores(prototypes, support[:, k]), truth[:, k]), truth[:, k])
            for k in range(support.shape[1])
        ]
        return torch.stack(each).mean(dim=0)

    def step_end(self, progress: float) -> None:
        """The running statistics of per-episode batch norm follow what the step saw, on all ranks alike."""
        episode_norm.update_running(self.encoder)


def episodes_of(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Supports (E, K, C, H, W), their masks (E, K, H, W), queries (E, C, H, W) and theirs (E, H, W). ``ValueError``
    names what is missing or of another shape."""
    missing = [name for name in PARTS if name not in batch]
    if missing:
        raise ValueError(
            f"views: cowpro needs episodes (views.name: episode), got a batch without {', '.join(missing)}"
        )
    support, support_mask, query, query_mask = (batch[name] for name in PARTS)
    if support.ndim == 4:
        support = support[:, None]
    if support_mask.ndim == 3:
        support_mask = support_mask[:, None]
    episodes, size = query.shape[0], query.shape[-2:]
    wanted = {
        "support": (support, (episodes, support.shape[1], *query.shape[1:])),
        "support_mask": (support_mask, (episodes, support.shape[1], *size)),
        "query_mask": (query_mask, (episodes, *size)),
    }
    for name, (value, shape) in wanted.items():
        if tuple(value.shape) != shape:
            given = f"{shape} beside a query of {tuple(query.shape)}, got {tuple(value.shape)}"
            raise ValueError(f"{name}: expected the shape {given}")
    return support, support_mask, query, query_mask


def upsampled(scores: Tensor, mask: Tensor) -> Tensor:
    """Foreground less background score (E, H, W) at the size of ``mask``, bilinear: the logit of the foreground.

    Bilinear interpolation is linear, so this is the difference of the two scores interpolated.
    """
    margins = scores[:, 1:] - scores[:, :1]
    return F.interpolate(margins, size=mask.shape[-2:], mode="bilinear", align_corners=False).squeeze(1)


def cross_entropy(margins: Tensor, mask: Tensor, background_weight: float = 1.0) -> Tensor:
    """Per episode (E,): the cross entropy of the softmax over [background, foreground], a mean over pixels weighted by
    ``background_weight`` for background and 1 for foreground."""
    target = mask.to(margins)
    each = F.binary_cross_entropy_with_logits(margins, target, reduction="none")
    weights = background_weight + (1 - background_weight) * target
    return (weights * each).sum(dim=(1, 2)) / weights.sum(dim=(1, 2))


def dice(predicted: Tensor, mask: Tensor) -> Tensor:
    """Per episode (E,) of two bool masks (E, H, W): 2 |both| / (|one| + |other|), 1 where both are empty."""
    both = (predicted & mask).sum(dim=(1, 2), dtype=torch.float64)
    sizes = predicted.sum(dim=(1, 2)) + mask.sum(dim=(1, 2))
    return torch.where(sizes > 0, 2 * both / sizes.clamp_min(1), 1.0)
