"""From one annotated scan to margins on another: the run's encoder, the organs it is shown, and what it finds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sslmed_dist import config, registry
from sslmed_dist.data.scans.grid import PixelAxis, Placement, place, to_model, upright
from sslmed_dist.data.scans.scan import StoredScan
from sslmed_dist.downstream.oneshot import protocol
from sslmed_dist.downstream.oneshot.evaluator import at_test, head_over
from sslmed_dist.downstream.oneshot.quadrants import body_centre
from sslmed_dist.downstream.oneshot.segmenter import Segmenter, Shown
from sslmed_dist.downstream.oneshot.slice_range import Estimate
from sslmed_dist.models import PROTOTYPE_HEADS
from sslmed_dist.training import build, pretrained

PERCENTILE = 99.5  # of a volume's voxels: MR is clipped above it
SATURATED = 5e-4  # of the voxels at the maximum: such a volume is clipped already (prepared ones have 2e-3 and more)
OUTSIDE = -1e4  # margin where a label is not looked for: its probability is 0
Intensity = Literal["auto", "clip", "keep"]
Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class Model:
    """A frozen encoder with the head that reads its maps, and the grid it sees: ``size`` pixels of ``pixel`` mm."""

    segmenter: Segmenter
    size: int
    pixel: float
    head: dict[str, Any]
    method: Mapping[str, Any]  # the run's own settings
    file: Path
    sha256: str


@dataclass(frozen=True)
class Organ:
    """One label of the support: its support slices, standardised (U, size, size), their masks bool (U, size, size), and
    what the segmenter learnt from them."""

    label: int
    images: Tensor
    masks: Tensor
    shown: Shown


@dataclass(frozen=True)
class Found:
    """One label on a query: margins (S, size, size) of the part that serves each slice, ``OUTSIDE`` in the slices that
    are not in the estimated range, and that range."""

    label: int
    margins: Tensor
    estimate: Estimate
    placement: Placement

    def part(self, z: int) -> int:
        """The part that serves slice ``z`` of the range."""
        return protocol.part_of(z, self.estimate.first, self.estimate.last)


def load_model(
    run: Path,
    *,
    which: str = "last",
    part: pretrained.Part = "encoder",
    head: Mapping[str, Any] | None = None,
    pixel_mm: float | None = None,
    device: Device = "auto",
) -> Model:
    """The encoder of a run folder or checkpoint file. ``head``: entries laid over the run's own head (``cowpro`` for a
    run without one of prototypes) and a window of 2; a ``head`` that names another starts from that one's defaults.
    ``pixel_mm``: what the run recorded of its training slices (``views.pixel_mm``) where nothing is said. ``device``
    stands in for the run's own.

    ``ValueError``: the encoder has no feature maps or does not take one channel, an entry of the head or a pixel size
    that is not allowed, or no pixel size at all.
    """
    if pixel_mm is not None and not 0 < pixel_mm < float("inf"):
        raise ValueError(f"pixel_mm: expected a number above 0, got {pixel_mm}")
    found = pretrained.load(run, which, part=part)
    method, size = found.settings.method, int(found.settings.views["size"])
    if not callable(getattr(found.encoder, "maps", None)):
        raise ValueError(
            f"{found.file}: its encoder ({type(found.encoder).__name__}) gives no feature maps, so it cannot segment; "
            "allowed: a run of the method cowpro, or of another whose encoder has maps"
        )
    if method["channels"] != 1:
        raise ValueError(f"{found.file}: trained on {method['channels']} channels, but a scan has 1")
    leaf = head_leaf(method.get("head"), head or {})
    place = build.choose_device(config.replace(found.settings, run={"device": device}))
    segmenter = Segmenter(found.encoder.to(place), registry.build(PROTOTYPE_HEADS, leaf, "head"), place)
    pixel = found.settings.views.get("pixel_mm") if pixel_mm is None else pixel_mm
    if pixel is None:
        raise ValueError(
            f"{found.file}: does not say how large the pixels of its training slices were; give --pixel-mm "
            f"({1.25 * 256 / size:g} for sets prepared as published)"
        )
    return Model(segmenter, size, float(pixel), leaf, method, found.file, found.sha256)


def head_leaf(own: Any, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The head to evaluate with, as ``load_model`` says."""
    return {**at_test(head_over(own, asked), 2, "head"), **asked}


def standardised(
    scan: StoredScan, placement: Placement, intensity: Intensity = "auto", window: tuple[float, float] | None = None
) -> tuple[Tensor, str]:
    """(slices (S, 1, size, size) as the encoder was trained on them, how they were clipped).

    ``window``: clipped to it, as CT is. Else ``clip``: above the 99.5th percentile of the volume, as MR is prepared;
    ``keep``: not at all; ``auto``: clipped unless it is already, for the percentile of a clipped volume lies lower.
    Then (x - mean) / sd over the field the slices cover; what of it lies outside the volume counts with the minimum, as
    in a prepared volume. ``ValueError`` naming the scan when that is constant.
    """
    voxels, how = scan.voxels, "kept"
    if window is not None:
        voxels, how = np.clip(voxels, *window), f"clipped to {window[0]:g} to {window[1]:g}"
    elif intensity == "clip" or (intensity == "auto" and float((voxels == voxels.max()).mean()) < SATURATED):
        top = np.float32(np.percentile(voxels, PERCENTILE))
        voxels, how = np.minimum(voxels, top), f"clipped above {top:g} (percentile {PERCENTILE})"
    elif intensity == "auto":
        how = "kept (clipped already)"
    mean, deviation = field_moments(voxels, placement)
    if not deviation > 0:
        raise ValueError(f"{scan.path}: the volume is constant ({mean:g}) where the model looks")
    return (to_model(voxels, placement) - mean) / deviation, how


def field_moments(voxels: np.ndarray[Any, np.dtype[np.float32]], placement: Placement) -> tuple[float, float]:
    """Mean and standard deviation of the voxels in the field of the slices, in their own resolution."""

    def within(axis: PixelAxis) -> slice:
        low, high = axis.start - axis.step / 2, axis.start + (placement.size - 0.5) * axis.step
        index = np.arange(axis.count)
        found = np.nonzero((index >= low) & (index <= high))[0]
        return slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, 0)

    inside = upright(voxels, placement)[:, within(placement.rows), within(placement.columns)]
    area = placement.slices * placement.size**2 * placement.rows.step * placement.columns.step
    added, low = max(area - inside.size, 0.0), float(voxels.min())
    total = inside.size + added
    own, spread = float(inside.mean(dtype=np.float64)), float(inside.var(dtype=np.float64))
    mean = (inside.size * own + added * low) / total
    squares = inside.size * (spread + (own - mean) ** 2) + added * (low - mean) ** 2
    return mean, float(np.sqrt(squares / total))


def placed(model: Model, scan: StoredScan) -> Placement:
    """Where the scan lies in the model's grid. ``ValueError`` naming it for a volume of one axial slice."""
    found = place(scan.voxels.shape, scan.affine, pixel=model.pixel, size=model.size)
    if found.slices < 2:
        raise ValueError(f"{scan.path}: 1 axial slice (shape {scan.voxels.shape}); a volume has at least 2")
    return found


def learn(
    model: Model, scan: StoredScan, mask: StoredScan, labels: Sequence[int], stack: Tensor, quadrants: bool
) -> list[Organ]:
    """The organs of a support: ``stack`` are its standardised slices, ``mask`` lies in its grid.

    A pixel belongs to a label whose share in it is half or more. ``ValueError`` naming the mask for a label that no
    pixel of the model's slices belongs to.
    """
    placement, organs = placed(model, mask), []
    maps, centre = model.segmenter.maps(stack), body_centre(stack) if quadrants else None
    for label in labels:
        masks = to_model((mask.voxels == label).astype(np.float32), placement)[:, 0] >= 0.5
        if not masks.any():
            raise ValueError(
                f"{mask.path}: label {label} fills no pixel of the {model.size} x {model.size} slices of "
                f"{model.pixel:g} mm about the middle of {scan.path.name}; it is too small or lies outside them"
            )
        shown = model.segmenter.learn(maps, masks, spacing(placement), centre)
        chosen = list(shown.slices)
        organs.append(Organ(label, stack[chosen, 0], masks[chosen], shown))
    return organs


def search(model: Model, organs: Sequence[Organ], stack: Tensor, placement: Placement, quadrants: bool) -> list[Found]:
    """Every organ on a query's standardised slices (S, 1, size, size): which slices hold it is estimated, each is
    served by the support slice of its part (``downstream.oneshot.slice_range``)."""
    maps, centre = model.segmenter.maps(stack), body_centre(stack) if quadrants else None
    found = []
    for organ in organs:
        seen = model.segmenter.find(organ.shown, maps, (model.size, model.size), spacing(placement), centre)
        first, last = seen.estimate.first, seen.estimate.last
        served = torch.full(tuple(seen.margins.shape[1:]), OUTSIDE)
        for z in range(first, last + 1):
            served[z] = seen.margins[protocol.part_of(z, first, last), z].cpu()
        found.append(Found(organ.label, served, seen.estimate, placement))
    return found


def spacing(placement: Placement) -> tuple[float, float, float]:
    """Millimetres between rows, columns and slices of the stack."""
    return placement.pixel, placement.pixel, placement.spacing[2]
