"""The run's encoder with its head, and scans as it sees them. A *margin* is the logit of the foreground less that of
the background."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from sslmed_dist import config, registry
from sslmed_dist.data.scans.grid import PixelAxis, Placement, place, to_model, upright
from sslmed_dist.data.scans.scan import StoredScan
from sslmed_dist.downstream.oneshot.copying import AUTO
from sslmed_dist.downstream.oneshot.evaluator import at_test, head_over
from sslmed_dist.downstream.oneshot.segmenter import Segmenter
from sslmed_dist.models import PROTOTYPE_HEADS
from sslmed_dist.printable import note
from sslmed_dist.training import build, pretrained

PERCENTILE = 99.5  # of a volume's voxels: MR is clipped above it
SATURATED = 5e-4  # of the voxels at the maximum: such a volume is clipped already (prepared ones have 2e-3 and more)
GUESS = "a guess"  # begins the words about a pixel size that nobody said
Intensity = Literal["auto", "clip", "keep"]
Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class Model:
    """A frozen encoder with the head that reads its feature maps, and the slices it sees: ``size`` x ``size`` pixels of
    ``pixel`` mm."""

    segmenter: Segmenter
    size: int
    pixel: float
    pixel_from: str  # in words, where ``pixel`` comes from
    head: dict[str, Any]
    method: Mapping[str, Any]  # the run's own settings
    file: Path
    sha256: str


def load_model(
    run: Path,
    *,
    which: str = "last",
    part: pretrained.Part = "encoder",
    head: Mapping[str, Any] | None = None,
    pixel_mm: float | None = None,
    field_mm: float | None = None,
    device: Device = "auto",
    quadrants: bool = False,
    tidy: bool = True,
    copying: str = AUTO,
) -> Model:
    """The encoder of a run folder or checkpoint file, with the head that reads it.

    An encoder that is its own head (``se_net``) takes no ``head``. Else, ``head``: entries that replace those of the
    run's own head (``cowpro`` where the run has no head of prototypes) with a window of 2; a ``head`` that names
    another one starts from that one's defaults. ``pixel_mm``: default is the pixel size that the run recorded of its
    training slices (``views.pixel_mm``). Where it recorded none (sizes differed or were not known) the slices are taken
    to have shown as much as the support does, ``field_mm``. ``device`` stands in for the run's own. ``quadrants``,
    ``tidy``, ``copying``: see ``Segmenter``.

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
    own_head = getattr(trained.encoder, "own_head", None) is not None
    if own_head and head:
        raise ValueError(f"head: {trained.file}: its encoder ({method['encoder']['name']}) is its own head")
    leaf = {"name": method["encoder"]["name"]} if own_head else head_leaf(method.get("head"), head or {})
    torch_device = build.choose_device(config.replace(trained.settings, run={"device": device}))
    encoder, built = (
        trained.encoder.to(torch_device),
        None if own_head else registry.build(PROTOTYPE_HEADS, leaf, "head"),
    )
    segmenter = Segmenter(encoder, built, torch_device, quadrants=quadrants, tidy=tidy, copying=copying)
    pixel, source = pixel_of(trained.file, trained.settings.views.get("pixel_mm"), pixel_mm, field_mm, size)
    if source.startswith(GUESS):
        note(f"{run}: pixel size {pixel:g} mm is {source}")
    return Model(segmenter, size, pixel, source, leaf, method, trained.file, trained.sha256)


def pixel_of(
    file: Path, recorded: float | None, given: float | None, field: float | None, size: int
) -> tuple[float, str]:
    """(mm of a side of the model's pixels, in words where that is from): ``given``, or what the run ``recorded``, or
    the ``field`` of view of the support in mm over ``size``. ``ValueError`` without any of them."""
    if given is not None:
        return float(given), "given"
    if recorded is not None:
        return float(recorded), "recorded at training"
    if field is None:
        raise ValueError(f"{file}: does not say how large the pixels of its training slices were; give --pixel-mm")
    return round(field / size, 4), (
        f"{GUESS}: the run does not say; the support shows {field:g} mm, which makes {field / size:g} mm for each of "
        f"{size} pixels. If training slices showed more or less of a body than that, give --pixel-mm"
    )


def field_of_view(scan: StoredScan) -> float:
    """The longer side of a scan's axial slices in mm."""
    placement = place(scan.voxels.shape, scan.affine, pixel=1.0, size=1)
    return max(axis.count / axis.step for axis in (placement.rows, placement.columns))


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


def spacing(placement: Placement) -> tuple[float, float, float]:
    """Millimetres between rows, columns and slices of the stack."""
    return placement.pixel, placement.pixel, placement.spacing[2]
