"""An organ that is shown on one scan (the support) is found on others (the queries).

The steps: feature maps of complete scans, prototypes of the support slices, and margins (foreground less background
logit) of every pixel of the query slices.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sslmed_dist.downstream.features import evaluating
from sslmed_dist.downstream.oneshot import quadrants, slice_range, tidy
from sslmed_dist.downstream.oneshot.copying import AUTO, OFF, Copy, Weighing, copy_of, mixed
from sslmed_dist.downstream.oneshot.copying import check as check_copying
from sslmed_dist.downstream.oneshot.protocol import PARTS, parts_of, support_slices, true_range
from sslmed_dist.downstream.oneshot.slice_range import Estimate, Level, Stack
from sslmed_dist.downstream.oneshot.tidy import REMOVED, Centre, Place, Spacing
from sslmed_dist.models.prototype_heads import Prototypes
from sslmed_dist.printable import plural

CHUNK = 16  # slices that go through the encoder, or the head, at once
COPY_MASK = "copy_mask"  # the arm of the floor below


class CopyMask(nn.Module):
    """The floor of one-shot segmentation: every query slice gets the mask of its support slice. Stands in an encoder's
    place.

    It has no parameters and does not look at the images. Its head is ``CopiedMask``.
    """

    @property
    def own_head(self) -> Any:
        """``CopiedMask``."""
        return CopiedMask()

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
    """An organ as a support scan shows it; U is the number of the organ's parts."""

    slices: tuple[int, ...]  # (U,) the support slice of each part
    prototypes: tuple[Any, ...]  # (U,) the head's prototypes of each support slice
    areas: tuple[float, ...]  # (U,) mm^2 of the organ in each support slice
    stack: Stack  # the organ's range in the scan
    level: Level  # of evidence within and beyond that range
    quadrants: Tensor | None  # (2, 2) bool, those that it occupies; None: not asked for
    place: Place | None  # of the organ in the body; None: the body's centre was not given
    maps: Tensor  # (U, D, h, w) feature maps of the support slices
    masks: Tensor  # (U, H, W) bool, theirs
    copy: Copy | None = None  # what can be copied of the support's mask; None: not asked for


@dataclass(frozen=True)
class Found:
    """The organ on a query scan of S slices."""

    margins: Tensor  # (U, S, H, W) float32, by the support slice of each part
    estimate: Estimate  # of the range of slices that hold it
    one_piece: bool = False  # of the voxels of a range only the largest piece counts
    laid: Tensor | None = None  # the copied mask on the query (``copying.mixed``); None: it counts for nothing
    weighing: Weighing | None = None  # how much it counts; None: not asked for

    def within(self, first: int, last: int) -> Tensor:
        """The margins (n, H, W) of the n slices ``first`` ... ``last`` (inclusive), if these are the organ's range."""
        margins = by_part(self.margins, first, last)
        if self.laid is not None and self.weighing is not None:
            margins = mixed(margins, self.laid, self.weighing.weight)
        return tidy.in_one_piece(margins) if self.one_piece else margins

    def mask(self, first: int, last: int) -> Tensor:
        """The mask bool (S, H, W), if slices ``first`` ... ``last`` (inclusive) are the organ's range."""
        mask = torch.zeros(self.margins.shape[1:], dtype=torch.bool, device=self.margins.device)
        mask[first : last + 1] = self.within(first, last) > 0
        return mask

    def prediction(self) -> Tensor:
        """The mask bool (S, H, W) with the estimated range of slices, so without any knowledge of the query."""
        return self.mask(self.estimate.first, self.estimate.last)


class Segmenter:
    """One-shot segmentation with a frozen encoder and a head of prototypes (``models.prototype_heads``), or the head
    that the encoder brings (``own_head``).

    A scan is encoded once (``maps``) and serves as support and query of any organ: ``learn`` an organ on the support,
    then ``find`` it on queries. The encoder runs in evaluation mode, without gradients, and gets its modes back.
    Nothing here is random.
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: Any,
        device: torch.device | str,
        chunk: int = CHUNK,
        *,
        quadrants: bool = False,
        tidy: bool = False,
        neighbours: bool = False,
        copying: str = OFF,
    ) -> None:
        """``encoder`` has ``maps``: images (N, C, H, W) -> (N, D, h, w), and lies on ``device``. With ``quadrants``
        nothing is found in quarters of the body that the support's organ leaves empty, with ``tidy`` masks are made
        plausible (``oneshot.tidy``); both need the centre of each body. With ``neighbours`` margins are averaged over
        neighbouring slices and nothing else. With ``copying`` (``copying.AUTO``) organs are learnt so that
        ``weighing.weighed`` can copy the support's mask. Of the floor none of these is done but quadrants.
        ``ValueError`` for an encoder without maps, ``chunk`` (slices at once) below 1, or an unknown ``copying``."""
        if not callable(getattr(encoder, "maps", None)):
            raise ValueError(f"encoder: segmentation needs feature maps, {type(encoder).__name__} has none (`maps`)")
        if chunk < 1:
            raise ValueError(f"chunk: expected an integer >= 1, got {chunk}")
        self.encoder: Any = encoder
        own_head = getattr(encoder, "own_head", None)
        self.head: Any = head if own_head is None else own_head
        self.device, self.chunk = torch.device(device), chunk
        floor = isinstance(encoder, CopyMask)
        self.quadrants, self.tidy, self.neighbours = quadrants, tidy and not floor, neighbours and not floor
        self.copying = check_copying(copying) == AUTO and not floor

    @torch.inference_mode()
    def maps(self, images: Tensor) -> Tensor:
        """Feature maps float32 (S, D, h, w) of slices (S, C, H, W), on the device. ``ValueError`` where a feature is
        not finite."""
        with evaluating(self.encoder):
            maps = torch.cat(
                [self.encoder.maps(part.to(self.device)).float() for part in torch.split(images, self.chunk)]
            )
        bad = ~maps.flatten(1).isfinite().all(dim=1)
        if bad.any():
            raise ValueError(
                f"encoder: non-finite features for {int(bad.sum())} of {plural(len(maps), 'slice')}, first for slice "
                f"{int(torch.nonzero(bad)[0])}; is its checkpoint the last good one?"
            )
        return maps

    @torch.inference_mode()
    def prototypes(self, maps: Tensor, masks: Tensor) -> Any:
        """The head's valid prototypes of K support slices together: maps (K, D, h, w), masks 0/1 (K, H, W)."""
        # the head takes episodes: this is one (E = 1) of K shots
        with evaluating(self.encoder):
            prototypes = self.head.prototypes(maps[None], masks[None].to(self.device, torch.float32))
        return valid_only(prototypes) if isinstance(prototypes, Prototypes) else prototypes

    @torch.inference_mode()
    def margins(self, prototypes: Sequence[Any], maps: Tensor, size: Sequence[int]) -> Tensor:
        """The margins of S query slices by each of U sets of prototypes: maps (S, D, h, w) -> float32 (U, S, H, W).

        A margin is the foreground logit less the background logit. A pixel is foreground where it is above 0. Margins
        are resized from the map to ``size`` (H, W), bilinear with ``align_corners=False``, as the logits are in
        training. Resizing is linear, so this is the same as the difference of the resized logits.
        """

        def margin(prototype_set: Any, maps_chunk: Tensor) -> Tensor:
            logits = self.head.scores(prototype_set, maps_chunk)  # (s, 2, h, w)
            difference = (logits[:, 1] - logits[:, 0])[:, None]  # (s, 1, h, w)
            return functional.interpolate(difference, tuple(size), mode="bilinear", align_corners=False)[:, 0]

        with evaluating(self.encoder):
            return torch.stack(
                [
                    torch.cat([margin(prototype_set, maps_chunk) for maps_chunk in torch.split(maps, self.chunk)])
                    for prototype_set in prototypes
                ]
            )

    @torch.inference_mode()
    def learn(self, maps: Tensor, mask: Tensor, spacing: Spacing, centre: Centre | None = None) -> Shown:
        """The organ with the ``mask`` bool (S, H, W) on a support scan with the ``maps`` (S, D, h, w).

        With ``centre``, that of the body in the scan, its place in the body is learnt too, and where they are asked for
        its quadrants. ``ValueError`` for an empty mask.
        """
        mask = mask.to(self.device).bool()
        organ_range = true_range(mask)
        if organ_range is None:
            raise ValueError("mask: expected at least one voxel, got an empty mask")
        slices = support_slices(torch.nonzero(mask.flatten(1).any(dim=1))[:, 0].tolist(), PARTS)
        # each part of the organ is learnt from one slice
        prototypes = tuple(self.prototypes(maps[z : z + 1], mask[z : z + 1]) for z in slices)
        pixel_counts = [int(mask[z].sum()) for z in slices]
        stack = Stack(*organ_range, count=len(mask), spacing=spacing[2])
        # the support scan as its own query: how much evidence slices within and beyond the organ get
        own_margins = self.margins(prototypes, maps, mask.shape[1:])
        self_evidence = slice_range.evidence(own_margins, pixel_counts)
        return Shown(
            slices=tuple(slices),
            prototypes=prototypes,
            areas=tuple(count * spacing[0] * spacing[1] for count in pixel_counts),
            stack=stack,
            level=slice_range.calibrate(self_evidence, stack, slices),
            quadrants=quadrants.occupied(mask, centre) if self.quadrants and centre is not None else None,
            place=None if centre is None else tidy.place_of(mask, centre, spacing, PARTS),
            maps=maps[slices],
            masks=mask[slices],
            copy=copy_of(mask, own_margins, slices, organ_range, spacing[:2]) if self.copying else None,
        )

    @torch.inference_mode()
    def together(self, each: Sequence[Shown], maps: Sequence[Tensor], masks: Sequence[Tensor]) -> Shown:
        """K supports of one organ as one. ``each`` is what ``learn`` made of each support, from these ``maps`` and
        ``masks``.

        For each part the head gets the K support slices at once; it keeps the local prototypes of all and averages the
        global ones. Areas are means. A quadrant is occupied where one support occupies it. Range, level, place and
        what can be copied are those of the last support.
        """
        slices_by_part = list(zip(*(shown.slices for shown in each), strict=True))
        # for each part the K support slices: maps (K, D, h, w) and masks (K, H, W)
        stacks = [
            [torch.stack([of[k][z].to(self.device) for k, z in enumerate(part)]) for of in (maps, masks)]
            for part in slices_by_part
        ]
        occupied_by_each = [shown.quadrants for shown in each if shown.quadrants is not None]
        return replace(
            each[-1],
            prototypes=tuple(self.prototypes(features, mask) for features, mask in stacks),
            areas=tuple(sum(areas) / len(each) for areas in zip(*(shown.areas for shown in each), strict=True)),
            quadrants=torch.stack(occupied_by_each).any(dim=0) if occupied_by_each else None,
        )

    @torch.inference_mode()
    def find(
        self, shown: Shown, maps: Tensor, size: tuple[int, int], spacing: Spacing, centre: Centre | None = None
    ) -> Found:
        """The organ on a query scan with the ``maps`` (S, D, h, w); ``size`` (H, W) and ``spacing`` are those of its
        slices. Tidy masks, and an organ that was learnt with quadrants, need the ``centre`` of the query's body;
        outside the quadrants margins are ``REMOVED``."""
        margins = self.margins(shown.prototypes, maps, size)
        if self.tidy:
            assert shown.place is not None and centre is not None, "tidy masks need the centres of both bodies"
            margins = tidy.tidied(margins, shown.place, centre, spacing)
        elif self.neighbours:
            margins = tidy.smoothed(margins)
        inside = None
        if shown.quadrants is not None:
            assert centre is not None, "an organ learnt with quadrants is found with the query's own centre"
            inside = quadrants.allowed(shown.quadrants, centre, size)
            margins = margins.masked_fill(~inside, REMOVED)
        # the support's areas in pixels of the query, whose pixels may have another size
        areas = [area / (spacing[0] * spacing[1]) for area in shown.areas]
        evidence = slice_range.evidence(margins, areas, inside)
        return Found(margins, slice_range.estimate(evidence, shown.level, shown.stack, spacing[2]), self.tidy)


def valid_only(of: Prototypes) -> Prototypes:
    """The prototypes of one episode (E = 1) without those that are not valid. Scores stay the same, and most products
    with foreground prototypes are saved. A set without a valid prototype is left as it is; the head deals with it."""

    def only_valid(vectors: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        return (vectors[:, valid[0]], valid[:, valid[0]]) if valid.any() else (vectors, valid)

    return Prototypes(*only_valid(of.foreground, of.foreground_valid), *only_valid(of.background, of.background_valid))


def by_part(margins: Tensor, first: int, last: int) -> Tensor:
    """Of the margins (U, S, H, W) by every part, those of slices ``first`` ... ``last`` (inclusive) by the part that
    each slice belongs to: (last - first + 1, H, W)."""
    parts = parts_of(first, last, len(margins)).to(margins.device)
    slices = torch.arange(first, last + 1, device=margins.device)
    # pairs (part, slice) pick one map of margins for each slice of the range
    return margins[parts, slices]
