"""Which series of an examination a recipe takes, and how its slices are made ready to be trained on.

A slot is a name of the recipe, such as ``sagittal`` or ``coronal_t1``; it begins with its plane. Its rule is a regular
expression that is searched, in capitals or not, in the line of a series (``Series.line``).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from sslmed_dist.data.exams.planes import PLANES, mirrored
from sslmed_dist.data.exams.series import LeftAside, Series
from sslmed_dist.data.exams.series_stack import read_stack
from sslmed_dist.data.scans.grid import pixel_axis, resample, weights

PERCENTILES = (0.5, 99.5)  # of a series' pixels: what becomes black and white
DEFAULT_RULES = {"sagittal": "", "coronal": "", "axial": ""}
LARGEST = {8: 255, 16: 32767}  # bits -> the value of white, as uint8 or int16
MOST_SLICES = 4096
Stored = NDArray[Any]  # (S, size, size) uint8 or int16
Side = Literal["left", "right"]


@dataclass(frozen=True)
class Preparation:
    """What is done to a series: ``rules`` choose it for a slot, then its slices get ``size`` x ``size`` pixels of
    ``mm`` millimetres, and ``bits`` of depth. With ``side`` those of the other side of the body are mirrored to it."""

    rules: Mapping[str, str]
    size: int = 256
    mm: float = 0.6
    bits: int = 8
    side: Side | None = None

    def __post_init__(self) -> None:
        """``ValueError`` naming the argument that is out of range."""
        if not 8 <= self.size <= 4096:
            raise ValueError(f"data.size: expected 8 to 4096 pixels, got {self.size}")
        if not 0.01 <= self.mm <= 100:
            raise ValueError(f"data.mm: expected 0.01 to 100 mm a pixel, got {self.mm}")
        if self.bits not in LARGEST:
            raise ValueError(f"data.bits: expected 8 or 16, got {self.bits}")
        if not self.rules:
            raise ValueError("data.series: expected at least one slot and its rule")
        for slot, rule in self.rules.items():
            if not re.fullmatch(f"({'|'.join(PLANES)})(_[a-z0-9_]+)?", slot) or len(slot) > 60:
                allowed = f"allowed: {', '.join(PLANES)}, each perhaps with _ and small letters or digits behind it"
                raise ValueError(f"data.series: slot {slot[:80]!r}; {allowed}")
            try:
                re.compile(rule)
            except re.error as error:
                raise ValueError(f"data.series.{slot}: not a regular expression: {error}") from None

    @property
    def white(self) -> int:
        """The value that white is stored as."""
        return LARGEST[self.bits]


def candidates(series: Sequence[Series], slot: str, rule: str) -> list[Series]:
    """The series of the slot's plane that its ``rule`` fits, the best one first: the one with the most pixels, of those
    the one with the highest number, for a series is repeated where the first one was no good."""
    fitting = [
        item
        for item in series
        if item.plane == slot.partition("_")[0] and re.search(rule, item.line, flags=re.IGNORECASE)
    ]
    return sorted(fitting, key=lambda item: (-int(np.prod(item.shape)), -item.tags.number, item.files[0].name))


def prepare_series(series: Series, how: Preparation, laterality: str) -> tuple[Stored, dict[str, Any]]:
    """(slices (S, size, size), what is known of them) of one series. The dictionary is part of the exam's record.

    Intensities are cut at the 0.5 and 99.5 percentiles of the series. What lies outside the field of view is black.
    ``ValueError`` naming the file for a series that cannot be read or whose pixels are all equal.
    """
    if series.shape[0] > MOST_SLICES:
        raise ValueError(f"{series.files[0]}: a series of {series.shape[0]} slices; allowed: {MOST_SLICES}")
    said: list[str] = []
    stack = read_stack(series, said)
    low, high = (float(value) for value in np.percentile(stack, PERCENTILES))
    if not low < high:
        low, high = float(stack.min()), float(stack.max())
    if not low < high:
        raise ValueError(f"{series.files[0]}: all pixels of its series are equal ({low:g})")
    scaled = np.clip((stack - np.float32(low)) / np.float32(high - low), 0.0, 1.0)
    turned = how.side is not None and laterality not in ("", how.side)
    if turned:
        scaled = np.ascontiguousarray(mirrored(scaled, series.plane))
    stored = stored_values(fixed_pixels(scaled, series.spacing_mm[1:], how), how)
    facts = {
        "file": series.files[0].name,
        "description": series.tags.description,
        "plane": series.plane,
        "oblique": round(series.oblique, 1),
        "spacing_mm": [round(side, 4) for side in series.spacing_mm],
        "shape": list(stack.shape),
        "missing": series.missing,
        "mirrored": turned,
        "modality": series.tags.modality,
        "scanner": series.tags.scanner,
        "field_tesla": series.tags.field_tesla,
        "echo_ms": series.tags.echo_ms,
        "repetition_ms": series.tags.repetition_ms,
        "intensity": [low, high],
        "notices": said,
    }
    return stored, facts


def fixed_pixels(stack: NDArray[np.float32], spacing: tuple[float, float], how: Preparation) -> NDArray[np.float32]:
    """(S, H, W) -> (S, size, size) of ``mm`` millimetres a pixel about the middle of the slice, bilinear, against
    aliasing where pixels become larger; ``spacing`` is mm between rows and between columns."""
    steps = torch.arange(how.size, dtype=torch.float64)
    maps = []
    for count, side in zip(stack.shape[1:], spacing, strict=True):
        axis = pixel_axis(count, how.mm / side, how.size)
        maps.append(weights(axis.start + axis.step * steps, count, axis.step))
    result: NDArray[np.float32] = resample(torch.from_numpy(stack), maps[0], maps[1], 0.0).numpy()
    return result


def stored_values(scaled: NDArray[np.float32], how: Preparation) -> Stored:
    """Values 0 to 1 as they are kept."""
    kind = np.uint8 if how.bits == 8 else np.int16
    return np.rint(np.clip(scaled, 0.0, 1.0) * how.white).astype(kind)


def reasons(aside: Sequence[LeftAside]) -> list[str]:
    """Why things were left aside, one entry for each, without what is particular to one: of ``reasons`` equal ones can
    be counted."""
    return [item.reason.partition(" (")[0] for item in aside]
