"""An organ shown on one scan, found on others: feature maps of whole scans, prototypes of support slices, margins."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sslmed_dist.downstream.features import evaluating
from sslmed_dist.downstream.oneshot import quadrants, slice_range
from sslmed_dist.downstream.oneshot.protocol import PARTS, parts_of, support_slices, true_range
from sslmed_dist.downstream.oneshot.slice_range import Estimate, Level, Stack
from sslmed_dist.models.prototype_heads import Prototypes

CHUNK = 16  # slices that go through the encoder, or the head, at once
# The margin where nothing may be found: the lowest that a cosine head of temperature 1/20 gives.
REMOVED = -40.0
COPY_MASK = "copy_mask"  # the arm of the floor below

Spacing = tuple[float, float, float]  # mm between rows, columns and slices
Centre = tuple[float, float]  # (row, column), see ``quadrants.body_centre``


class CopyMask(nn.Module):
    """The floor of one-shot segmentation, in an encoder's place: every query slice gets its support slice's mask.

    It has no parameters and sees nothing; ``Segmenter`` puts ``CopiedMask`` in the head's place.
    """

    def maps(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 0, 1, 1)."""
        return images.new_zeros((len(images), 0, 1, 1))


class CopiedMask:
    """The head of ``CopyMask``: the support mask is the answer."""

    def prototypes(self, maps: Tensor, masks: Tensor) -> Tensor:
        """Masks (E, K, H, W) -> their mean over the K slices (E, H, W); the maps are not looked at."""
        return masks.mean(dim=1)

    def scores(self, prototypes: Tensor, maps: Tensor) -> Tensor:
        """Logits (E, 2, H, W) for E query slices: background 0, foreground 1 inside the mask and -1 outside."""
        foreground = (2.0 * prototypes - 1.0).expand(len(maps), -1, -1)
        return torch.stack([torch.zeros_like(foreground), foreground], dim=1)


@dataclass(frozen=True)
class Shown:
    """An organ as a support scan shows it: the support slice of each of U parts, their prototypes and areas in mm^2,
    the range in the stack, the ``level`` of evidence within it, the quadrants it occupies (None: not asked for)."""

    slices: tuple[int, ...]
    prototypes: tuple[Any, ...]
    areas: tuple[float, ...]
    stack: Stack
    level: Level
    quadrants: Tensor | None


@dataclass(frozen=True)
class Found:
    """What a query scan holds of it: float32 margins (U, S, H, W) by each part, and the estimated slices."""

    margins: Tensor
    estimate: Estimate

    def prediction(self) -> Tensor:
        """The mask bool (S, H, W) in the estimated slices, nothing of the query being known."""
        return predicted(self.margins, self.estimate.first, self.estimate.last)


class Segmenter:
    """What a frozen encoder and a head of prototypes (``models.prototype_heads``) make of the slices of a scan.

    A scan is encoded once (``maps``) and serves as support and query of any organ: ``learn``, then ``find``. The
    encoder runs in evaluation mode, without gradients, and gets its modes back. Nothing here is random.
    """

    def __init__(self, encoder: nn.Module, head: Any, device: torch.device | str, chunk: int = CHUNK) -> None:
        """``encoder`` has ``maps``: images (N, C, H, W) -> (N, D, h, w), and lies on ``device``. ``ValueError`` for an
        encoder without it, or ``chunk`` (slices at once) below 1."""
        if not callable(getattr(encoder, "maps", None)):
            raise ValueError(f"encoder: segmentation needs feature maps, {type(encoder).__name__} has none (`maps`)")
        if chunk < 1:
            raise ValueError(f"chunk: expected an integer >= 1, got {chunk}")
        self.encoder: Any = encoder
        self.head: Any = CopiedMask() if isinstance(encoder, CopyMask) else head
        self.device, self.chunk = torch.device(device), chunk

    @torch.inference_mode()
    def maps(self, images: Tensor) -> Tensor:
        """Feature maps float32 (S, D, h, w) of slices (S, C, H, W), on the device. ``ValueError`` where one is not
        finite."""
        with evaluating(self.encoder):
            maps = torch.cat(
                [self.encoder.maps(part.to(self.device)).float() for part in torch.split(images, self.chunk)]
            )
        bad = ~maps.flatten(1).isfinite().all(dim=1)
        if bad.any():
            raise ValueError(
                f"encoder: non-finite features for {int(bad.sum())} of {len(maps)} slices, first for slice "
                f"{int(torch.nonzero(bad)[0])}; is its checkpoint the last good one?"
            )
        return maps

    @torch.inference_mode()
    def prototypes(self, maps: Tensor, masks: Tensor) -> Any:
        """The head's valid prototypes of K support slices together: maps (K, D, h, w), masks 0/1 (K, H, W)."""
        found = self.head.prototypes(maps[None], masks[None].to(self.device, torch.float32))
        return valid_only(found) if isinstance(found, Prototypes) else found

    @torch.inference_mode()
    def margins(self, prototypes: Sequence[Any], maps: Tensor, size: Sequence[int]) -> Tensor:
        """Foreground less background logit of every pixel of S query slices, by each of U sets of prototypes: maps
        (S, D, h, w) -> float32 (U, S, H, W).

        Bilinear (``align_corners=False``) from the map to ``size`` (H, W), as the logits are in training; being linear,
        this is the difference of the resized logits. A pixel is foreground where its margin is above 0.
        """

        def margin(one: Any, part: Tensor) -> Tensor:
            logits = self.head.scores(one, part)
            difference = (logits[:, 1] - logits[:, 0])[:, None]
            return functional.interpolate(difference, tuple(size), mode="bilinear", align_corners=False)[:, 0]

        return torch.stack(
            [torch.cat([margin(one, part) for part in torch.split(maps, self.chunk)]) for one in prototypes]
        )

    @torch.inference_mode()
    def learn(self, maps: Tensor, mask: Tensor, spacing: Spacing, centre: Centre | None = None) -> Shown:
        """The organ whose ``mask`` bool (S, H, W) lies on a support scan of S slices, of which ``maps`` are all.

        ``centre`` of its body asks for quadrants. ``ValueError`` for an empty mask.
        """
        mask = mask.to(self.device).bool()
        held = true_range(mask)
        if held is None:
            raise ValueError("mask: expected at least one voxel, got an empty mask")
        chosen = support_slices(torch.nonzero(mask.flatten(1).any(dim=1))[:, 0].tolist(), PARTS)
        learnt = tuple(self.prototypes(maps[z : z + 1], mask[z : z + 1]) for z in chosen)
        pixels = [int(mask[z].sum()) for z in chosen]
        stack = Stack(*held, count=len(mask), spacing=spacing[2])
        own = slice_range.evidence(self.margins(learnt, maps, mask.shape[1:]), pixels)
        return Shown(
            slices=tuple(chosen),
            prototypes=learnt,
            areas=tuple(count * spacing[0] * spacing[1] for count in pixels),
            stack=stack,
            level=slice_range.calibrate(own, stack, chosen),
            quadrants=None if centre is None else quadrants.occupied(mask, centre),
        )

    @torch.inference_mode()
    def together(self, each: Sequence[Shown], maps: Sequence[Tensor], masks: Sequence[Tensor]) -> Shown:
        """Several supports of one organ as one: what ``learn`` made of each, with the maps and masks it was given.

        Part by part the head gets the K support slices at once (local prototypes of all, global ones averaged); areas
        are means, a quadrant is occupied where one support occupies it, range and level are the last support's.
        """
        chosen = list(zip(*(shown.slices for shown in each), strict=True))
        stacks = [
            [torch.stack([of[k][z].to(self.device) for k, z in enumerate(part)]) for of in (maps, masks)]
            for part in chosen
        ]
        quarters = [shown.quadrants for shown in each if shown.quadrants is not None]
        return replace(
            each[-1],
            prototypes=tuple(self.prototypes(features, mask) for features, mask in stacks),
            areas=tuple(sum(areas) / len(each) for areas in zip(*(shown.areas for shown in each), strict=True)),
            quadrants=torch.stack(quarters).any(dim=0) if quarters else None,
        )

    @torch.inference_mode()
    def find(
        self, shown: Shown, maps: Tensor, size: tuple[int, int], spacing: Spacing, centre: Centre | None = None
    ) -> Found:
        """The organ on a query scan: its ``maps`` (S, D, h, w), the ``size`` (H, W) and ``spacing`` of its slices, and
        the ``centre`` of its body where the organ was learnt with quadrants: outside them margins are ``REMOVED``."""
        margins = self.margins(shown.prototypes, maps, size)
        inside = None
        if shown.quadrants is not None:
            assert centre is not None, "an organ learnt with quadrants is found with the query's own centre"
            inside = quadrants.allowed(shown.quadrants, centre, size)
            margins = margins.masked_fill(~inside, REMOVED)
        areas = [area / (spacing[0] * spacing[1]) for area in shown.areas]
        found = slice_range.evidence(margins, areas, inside)
        return Found(margins, slice_range.estimate(found, shown.level, shown.stack, spacing[2]))


def valid_only(of: Prototypes) -> Prototypes:
    """The prototypes of one episode without those that have no part in it: the same scores, most of the foreground's
    products saved. A set without a valid one is left as it is, for the head to see."""

    def kept(vectors: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        return (vectors[:, valid[0]], valid[:, valid[0]]) if valid.any() else (vectors, valid)

    return Prototypes(*kept(of.foreground, of.foreground_valid), *kept(of.background, of.background_valid))


def predicted(margins: Tensor, first: int, last: int) -> Tensor:
    """The mask bool (S, H, W) when slices ``first`` ... ``last`` hold the organ, each decided by its own part (margins
    (U, S, H, W)) and all others being empty."""
    parts = parts_of(first, last, len(margins)).to(margins.device)
    slices = torch.arange(first, last + 1, device=margins.device)
    mask = torch.zeros(margins.shape[1:], dtype=torch.bool, device=margins.device)
    mask[first : last + 1] = margins[parts, slices] > 0
    return mask
