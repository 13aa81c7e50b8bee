"""CoWPro: one-shot segmentation learned from superpixels, without a label (thesis, chapter 7)."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sslmed_dist import registry
from sslmed_dist.arguments import require_not_negative, require_positive
from sslmed_dist.losses.overlap import edge_dice, soft_dice
from sslmed_dist.methods.method import Method
from sslmed_dist.models import ENCODERS, PROTOTYPE_HEADS, episode_norm
from sslmed_dist.models.interfaces import DenseEncoder
from sslmed_dist.models.prototype_heads import PrototypeHead

CYCLE_LEVEL = 0.95  # threshold of the prototypes of a predicted mask (thesis, Sec. 7.4.1.5)
PARTS = ("support", "support_mask", "query", "query_mask")


class CoWPro(Method):
    """From a support image and its mask, find the mask of the query, which is another view of the same image.

    loss = segmentation + ``cycle`` x cyclic consistency (Eq. 7.14) + ``overlap`` x spatial Dice term + ``edge`` x edge
    Dice term. The first two are means over episodes of a pixelwise cross entropy at the mask's size.

    * Segmentation compares the prediction for the query with its mask. Background pixels weigh ``background_weight``,
      and an episode's sum is divided by its sum of weights (Eq. 7.12).
    * Cyclic consistency goes back: the query, with the mask that was predicted for it, has to find the support's mask
      (Eq. 7.13). It is not weighted. It takes the hard prediction on the feature grid, without gradient, and uses the
      features that were computed already. An episode in which no foreground was predicted has no such term (0).
    * The Dice terms are those of FedCoWPro (Manna et al. 2025, arXiv 2503.23507), which adds both with weight 1; CoWPro
      has neither. They are means over episodes of ``losses.overlap.soft_dice`` and ``edge_dice`` of the foreground's
      probability in the query and its mask, at the mask's size. The way back has none.

    ``encoder`` is an entry of ENCODERS with ``maps``, ``head`` one of PROTOTYPE_HEADS. ``batch_norm`` says which
    statistics normalise: with ``episode`` those of one episode's images, so that E episodes at once compute what E
    batches of one compute, and the running statistics move once per step; with ``frozen`` the running statistics
    unchanged (those of loaded weights); with ``batch`` those of all images. ``channels`` is the images' number of
    channels (a run fills it in).
    ``cache`` ``stem``: the maps of the encoder's frozen stages are computed once for each of ``plan.copies`` draws of a
    slice and kept as float16, at most ``cache_gb`` of them.
    """

    encoder: DenseEncoder

    def __init__(
        self,
        encoder: Mapping[str, Any] | str = "dilated_resnet",
        head: Mapping[str, Any] | str = "cowpro",
        batch_norm: Literal["episode", "frozen", "batch"] = "episode",
        background_weight: float = 0.05,
        cycle: float = 1.0,
        overlap: float = 0.0,
        edge: float = 0.0,
        channels: int = 1,
        cache: Literal["stem", "off"] = "off",
        cache_gb: float = 4.0,
    ) -> None:
        """``ValueError`` for a background weight that is not above 0, a negative ``cycle``, ``overlap`` or ``edge``, or
        an encoder that is its own head, or without frozen stages whose maps are to be kept."""
        super().__init__()
        self.background_weight = require_positive("method.background_weight", background_weight)
        self.cycle = require_not_negative("method.cycle", cycle)
        self.overlap = require_not_negative("method.overlap", overlap)
        self.edge = require_not_negative("method.edge", edge)
        self.cache, self.cache_gb = cache, require_positive("method.cache_gb", cache_gb)
        self.encoder_evaluates = batch_norm == "frozen"  # its weights still learn
        self.encoder = registry.build(ENCODERS, encoder, "method.encoder", channels=channels)
        if getattr(self.encoder, "own_head", None) is not None:
            raise ValueError(
                "method.encoder: it is its own head, of which cowpro knows nothing; allowed: method.name: se_net"
            )
        if cache == "stem" and not hasattr(self.encoder, "stem"):
            raise ValueError("method.cache: stem needs an encoder with frozen stages (name: timm); allowed here: off")
        if batch_norm == "episode":
            episode_norm.convert(self.encoder)
        else:
            # Channels last in memory: oneDNN's convolutions are a quarter faster so, and twice as fast of depthwise
            # ones. Batch norm per episode would copy every map there and back.
            self.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.head: PrototypeHead = registry.build(PROTOTYPE_HEADS, head, "method.head")

    def embed(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Feature maps ``support`` (E, K, D, h, w) and ``query`` (E, D, h, w), from one forward pass of all images, and
        the masks ``support_mask`` (E, K, H, W) and ``query_mask`` (E, H, W), bool.

        The batch has ``support`` (E, C, H, W) or (E, K, C, H, W), ``support_mask`` (E, H, W) or (E, K, H, W), ``query``
        (E, C, H, W) and ``query_mask`` (E, H, W). ``ValueError`` names what is missing or of another shape. In place of
        the images it may have their maps of the frozen stages, ``support_stem_0`` (E, K, D, h, w) or (E, D, h, w),
        ``query_stem_0`` (E, D, h, w) and so on, as ``training.stem_cache`` keeps them.
        """
        if "query_stem_0" in batch:
            support_mask, query_mask = batch["support_mask"], batch["query_mask"]
            support_mask = support_mask[:, None] if support_mask.ndim == 3 else support_mask
            maps = self.maps_after(batch, query_mask.shape[1:])
        else:
            support, support_mask, query, query_mask = episodes_of(batch)
            maps = self.encoder.maps(self.rows(support, query))
        maps = maps.reshape(-1, len(query_mask), *maps.shape[1:])  # (1 + K, E, D, h, w)
        features = {"support": maps[:-1].transpose(0, 1), "query": maps[-1]}
        return {**features, "support_mask": support_mask > 0.5, "query_mask": query_mask > 0.5}

    def encoder_inputs(self, batch: dict[str, Tensor]) -> list[Tensor]:
        """The supports, then the query, (E, C, H, W) each."""
        support, _, query, _ = episodes_of(batch)
        return [*support.unbind(1), query]

    def rows(self, support: Tensor, query: Tensor) -> Tensor:
        """Supports (E, K, C, H, W) and queries (E, C, H, W) -> ((K + 1) E, C, H, W): rows image by image, the query
        last, as ``models.episode_norm`` expects them."""
        episode_norm.arrange(self.encoder, 1 + support.shape[1])
        return torch.cat([support.transpose(0, 1).flatten(0, 1).to(query), query])

    def maps_after(self, batch: Mapping[str, Tensor], size: Sequence[int]) -> Tensor:
        """The encoder's maps ((K + 1) E, D, h, w) of images of this ``size``, from those of its frozen stages."""
        count = sum(name.startswith("query_stem_") for name in batch)
        pairs = [(batch[f"support_stem_{i}"], batch[f"query_stem_{i}"]) for i in range(count)]
        stem = [self.rows(maps[:, None] if maps.ndim == 4 else maps, query) for maps, query in pairs]
        encoder: Any = self.encoder
        maps: Tensor = encoder.maps_after(stem, size)
        return maps

    def objective(self, embeddings: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """This rank's mean ``loss``, its terms ``segmentation``, ``overlap``, ``edge`` and ``cycle``, the share of
        episodes with a cyclic term (``cycled``) and the mean ``dice`` of the predicted query masks. Without cyclic
        consistency neither ``cycle`` nor ``cycled``, and a Dice term of weight 0 is not there."""
        support, query = embeddings["support"], embeddings["query"]
        truth = embeddings["query_mask"]
        # Segmentation: prototypes of the support score the query's pixels.
        scores = self.head.scores(self.head.prototypes(support, embeddings["support_mask"]), query)  # (E, 2, h, w)
        margins = upsampled(scores, truth)  # (E, H, W)
        segmentation = cross_entropy(margins, truth, self.background_weight).mean()
        logged = {"segmentation": segmentation.detach(), "dice": dice(margins.detach() > 0, truth).mean()}
        terms = self.dice_terms(margins, truth)
        logged |= {name: term.detach() for name, (_, term) in terms.items()}
        loss = segmentation
        for weight, term in terms.values():
            loss = loss + weight * term
        if self.cycle == 0:
            return {"loss": loss, **logged}
        # The way back, where any foreground was predicted: 0 elsewhere, but counted in the mean.
        predicted = scores.detach().argmax(dim=1)  # (E, h, w), 1 is foreground
        has_foreground = predicted.flatten(1).any(dim=1).to(query)  # (E,), 0 or 1
        cyclic = (has_foreground * self.back(predicted, embeddings)).mean()
        logged |= {"cycle": cyclic.detach(), "cycled": has_foreground.mean()}
        return {"loss": loss + self.cycle * cyclic, **logged}

    def dice_terms(self, margins: Tensor, truth: Tensor) -> dict[str, tuple[float, Tensor]]:
        """(weight, mean over episodes) of the Dice terms that count, by name, from ``margins`` and ``truth``
        (E, H, W)."""
        terms = {"overlap": (self.overlap, soft_dice), "edge": (self.edge, edge_dice)}
        # float32 also under half precision: sums over a slice's pixels have more than eight bits
        exact = margins if margins.dtype is torch.float64 else margins.float()
        found = exact.sigmoid(), truth.to(exact)
        return {name: (weight, term(*found).mean()) for name, (weight, term) in terms.items() if weight > 0}

    def back(self, predicted: Tensor, embeddings: dict[str, Tensor]) -> Tensor:
        """Cross entropy (E,) of the supports' masks, when the query with the mask ``predicted`` (E, h, w) serves as the
        support; the mean over the K supports."""
        support, truth = embeddings["support"], embeddings["support_mask"]
        prototypes = self.head.prototypes(embeddings["query"][:, None], predicted[:, None], CYCLE_LEVEL)
        losses = [
            cross_entropy(upsampled(self.head.scores(prototypes, support[:, k]), truth[:, k]), truth[:, k])
            for k in range(support.shape[1])
        ]
        return torch.stack(losses).mean(dim=0)

    def step_end(self, progress: float) -> None:
        """Move the running statistics of per-episode batch norm by what the step saw, equally on all ranks."""
        episode_norm.update_running(self.encoder)


def episodes_of(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Supports (E, K, C, H, W), their masks (E, K, H, W), queries (E, C, H, W) and their masks (E, H, W) of a batch, in
    which K = 1 may have no axis. ``ValueError`` names what is missing or of another shape."""
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
            shapes = f"{shape} beside a query of {tuple(query.shape)}, got {tuple(value.shape)}"
            raise ValueError(f"{name}: expected the shape {shapes}")
    return support, support_mask, query, query_mask


def upsampled(scores: Tensor, mask: Tensor) -> Tensor:
    """The logit of the foreground (E, H, W): ``scores`` (E, 2, h, w), foreground minus background, bilinear at the size
    of ``mask``. Interpolation is linear, so this equals interpolating both scores first.
    """
    margins = scores[:, 1:] - scores[:, :1]
    return F.interpolate(margins, size=mask.shape[-2:], mode="bilinear", align_corners=False).squeeze(1)


def cross_entropy(margins: Tensor, mask: Tensor, background_weight: float = 1.0) -> Tensor:
    """The cross entropy per episode (E,) of foreground logits ``margins`` (E, H, W) with ``mask`` (E, H, W): a weighted
    mean over pixels, foreground weighing 1 and background ``background_weight``."""
    target = mask.to(margins)
    # The softmax over two scores is the logistic function of their difference, hence the binary loss.
    pixel_losses = F.binary_cross_entropy_with_logits(margins, target, reduction="none")  # (E, H, W)
    weights = background_weight + (1 - background_weight) * target
    return (weights * pixel_losses).sum(dim=(1, 2)) / weights.sum(dim=(1, 2))


def dice(predicted: Tensor, mask: Tensor) -> Tensor:
    """The Dice coefficient per episode, float64 (E,), of two bool masks (E, H, W): 2 |both| / (|one| + |other|), and 1
    where both are empty."""
    both = (predicted & mask).sum(dim=(1, 2), dtype=torch.float64)
    sizes = predicted.sum(dim=(1, 2)) + mask.sum(dim=(1, 2))
    return torch.where(sizes > 0, 2 * both / sizes.clamp_min(1), 1.0)
