"""From one annotated scan (the support) to margins on another (the query): the run's encoder, the organs that the
support shows it, and what it finds. A *margin* is the logit of the foreground less that of the background.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sslmed_dist import config, registry
from sslmed_dist.data.scans.grid import PixelAxis, Placement, place, to_model, upright
from sslmed_dist.data.scans.masks import Masks, to_slices
from sslmed_dist.data.scans.scan import StoredScan
from sslmed_dist.downstream.oneshot.evaluator import at_test, head_over
from sslmed_dist.downstream.oneshot.quadrants import body_centre
from sslmed_dist.downstream.oneshot.segmenter import Segmenter, Shown, by_part
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
    """A frozen encoder with the head that reads its feature maps, and the slices it sees: ``size`` x ``size`` pixels of
    ``pixel`` mm."""

    segmenter: Segmenter
    size: int
    pixel: float
    head: dict[str, Any]
    method: Mapping[str, Any]  # the run's own settings
    file: Path
    sha256: str


@dataclass(frozen=True)
class Organ:
    """One label of the support: its U support slices, standardised float32 (U, size, size), their masks bool (U, size,
    size), and what the segmenter learnt from them. Support slice u stands for part u of the organ."""

    label: int
    images: Tensor
    masks: Tensor
    shown: Shown


@dataclass(frozen=True)
class Found:
    """One label on a query of S slices: the estimated range of slices that hold the organ (``estimate``), and margins
    float32 (S, size, size). A slice in the range has the margins by the support slice of its part; a slice outside it
    has ``OUTSIDE`` everywhere."""

    label: int
    margins: Tensor
    estimate: Estimate
    placement: Placement


def load_model(
    run: Path,
    *,
    which: str = "last",
    part: pretrained.Part = "encoder",
    head: Mapping[str, Any] | None = None,
    pixel_mm: float | None = None,
    device: Device = "auto",
) -> Model:
    """The encoder of a run folder or checkpoint file, with the head that reads it.

    ``head``: entries that replace those of the run's own head (``cowpro`` where the run has no head of prototypes) with
    a window of 2; a ``head`` that names another one starts from that one's defaults. ``pixel_mm``: default is the pixel
    size that the run recorded of its training slices (``views.pixel_mm``). ``device`` stands in for the run's own.

    ``ValueError``: the encoder has no feature maps or does not take one channel, an entry of the head or a pixel size
    that is not allowed, or no pixel size at all.
    """
    if pixel_mm is not None and not 0 < pixel_mm < float("inf"):
        raise ValueError(f"pixel_mm: expected a number above 0, got {pixel_mm}")
    trained = pretrained.load(run, which, part=part)
    method, size = trained.settings.method, int(trained.settings.views["size"])
    if not callable(getattr(trained.encoder, "maps", None)):
        raise ValueError(
            f"{trained.file}: its encoder ({type(trained.encoder).__name__}) gives no feature maps, so it cannot "
            "segment; allowed: a run of the method cowpro, or of another whose encoder has maps"
        )
    if method["channels"] != 1:
        raise ValueError(f"{trained.file}: trained on {method['channels']} channels, but a scan has 1")
    leaf = head_leaf(method.get("head"), head or {})
    torch_device = build.choose_device(config.replace(trained.settings, run={"device": device}))
    segmenter = Segmenter(trained.encoder.to(torch_device), registry.build(PROTOTYPE_HEADS, leaf, "head"), torch_device)
    pixel = trained.settings.views.get("pixel_mm") if pixel_mm is None else pixel_mm
    if pixel is None:
        raise ValueError(
            f"{trained.file}: does not say how large the pixels of its training slices were; give --pixel-mm "
            f"({1.25 * 256 / size:g} for sets prepared as published)"
        )
    return Model(segmenter, size, float(pixel), leaf, method, trained.file, trained.sha256)


def head_leaf(run_head: Any, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The leaf of the head to evaluate with: ``asked`` over the run's own ``run_head``, see ``load_model``."""
    return {**at_test(head_over(run_head, asked), 2, "head"), **asked}


def standardised(
    scan: StoredScan, placement: Placement, intensity: Intensity = "auto", window: tuple[float, float] | None = None
) -> tuple[Tensor, str]:
    """(float32 slices (S, 1, size, size) as the encoder was trained on them, in words how they were clipped).

    A ``window`` clips the voxels to it, as is done with CT. Without one, ``intensity`` decides: ``clip`` cuts above the
    99.5th percentile of the volume, as MR is prepared; ``keep`` does not clip; ``auto`` clips, but not a volume that is
    clipped already (its 99.5th percentile would be too low). Then mean and standard deviation are made 0 and 1 over the
    field that the slices cover; where the field reaches beyond the volume, the volume's minimum counts, as in a
    prepared volume. ``ValueError`` naming the scan when the field is constant.
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
    """Mean and standard deviation over the field that the model's slices cover, computed on the voxels (I, J, K) before
    they are resampled. Where the field reaches beyond the volume, the volume's minimum counts."""

    def within(axis: PixelAxis) -> slice:
        # From the outer edge of the model's first pixel to that of its last, in source pixels.
        low, high = axis.start - axis.step / 2, axis.start + (placement.size - 0.5) * axis.step
        pixel_index = np.arange(axis.count)
        covered = np.nonzero((pixel_index >= low) & (pixel_index <= high))[0]
        return slice(int(covered[0]), int(covered[-1]) + 1) if len(covered) else slice(0, 0)

    inside = upright(voxels, placement)[:, within(placement.rows), within(placement.columns)]  # (S, h, w)
    # The field's size in source voxels; what the volume does not fill is ``added`` voxels of the lowest value.
    field_size = placement.slices * placement.size**2 * placement.rows.step * placement.columns.step
    added, low = max(field_size - inside.size, 0.0), float(voxels.min())
    total = inside.size + added
    # Mean and variance of the two groups together, from the mean and the variance of each.
    inside_mean, inside_variance = float(inside.mean(dtype=np.float64)), float(inside.var(dtype=np.float64))
    mean = (inside.size * inside_mean + added * low) / total
    squares = inside.size * (inside_variance + (inside_mean - mean) ** 2) + added * (low - mean) ** 2
    return mean, float(np.sqrt(squares / total))


def placed(model: Model, scan: StoredScan) -> Placement:
    """Where the scan lies in the model's slices. ``ValueError`` naming it for a volume of one axial slice."""
    placement = place(scan.voxels.shape, scan.affine, pixel=model.pixel, size=model.size)
    if placement.slices < 2:
        raise ValueError(f"{scan.path}: 1 axial slice (shape {scan.voxels.shape}); a volume has at least 2")
    return placement


def learn(
    model: Model, scan: StoredScan, masks: Masks, labels: Sequence[int], stack: Tensor, quadrants: bool
) -> tuple[list[Organ], dict[int, str]]:
    """(the organs of a support, one for each of ``labels`` that can be looked for; of every other label, why not).
    ``stack`` (S, 1, size, size) are its standardised slices, ``masks`` lie in its grid.

    A pixel of the model's slices belongs to a label that covers at least half of it. A label that no such pixel belongs
    to is left out. ``ValueError`` naming the mask where that leaves none.
    """
    organs: list[Organ] = []
    left_out: dict[int, str] = {}
    placement = place(masks.shape, masks.affine, pixel=model.pixel, size=model.size)
    # The scan is encoded once for all labels: maps (S, D, h, w).
    maps, centre = model.segmenter.maps(stack), body_centre(stack) if quadrants else None
    for label in labels:
        in_model = to_slices(masks.read(label), placement) >= 0.5  # (S, size, size)
        if not in_model.any():
            left_out[label] = (
                f"label {label} fills no pixel of the {model.size} x {model.size} slices of {model.pixel:g} mm about "
                f"the middle of the support; it is too small or lies outside them"
            )
            continue
        shown = model.segmenter.learn(maps, in_model, spacing(placement), centre)
        support_slices = list(shown.slices)  # U slice numbers
        organs.append(Organ(label, stack[support_slices, 0], in_model[support_slices], shown))
    if not organs:
        raise ValueError(f"{masks.path}: {'; '.join(left_out.values())}")
    return organs, left_out


def search(
    model: Model, organs: Sequence[Organ], stack: Tensor, placement: Placement, quadrants: bool
) -> Iterator[Found]:
    """Look for every organ in a query's standardised slices ``stack`` (S, 1, size, size), one after another. The range
    of slices that hold an organ is estimated (``downstream.oneshot.slice_range``); each slice of the range is segmented
    by the support slice of the part that it belongs to."""
    maps, centre = model.segmenter.maps(stack), body_centre(stack) if quadrants else None
    for organ in organs:
        result = model.segmenter.find(organ.shown, maps, (model.size, model.size), spacing(placement), centre)
        first, last = result.estimate.first, result.estimate.last
        margins = torch.full(tuple(result.margins.shape[1:]), OUTSIDE)  # (S, size, size)
        margins[first : last + 1] = by_part(result.margins, first, last).cpu()
        yield Found(organ.label, margins, result.estimate, placement)


def spacing(placement: Placement) -> tuple[float, float, float]:
    """Millimetres between rows, columns and slices of the stack."""
    return placement.pixel, placement.pixel, placement.spacing[2]
