"""Whether a series lacks slices where no gap between positions shows it: at its ends, or every second one throughout.

What may say so of the ends: a count of the series' images in its files, and InstanceNumbers that do not begin with 1.
Of the others: SpacingBetweenSlices, SliceThickness and steps of the InstanceNumbers. All are the scanner's habit and no
law, so they count only where they cannot mean anything else.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sslmed_dist.data.scans.dicom_header import whole_number

# Attributes that count the images of a series, or of an acquisition, which often is one (PS3.3, C.7.6.1 and C.8.9.4).
COUNTS = ("NumberOfSeriesRelatedInstances", "ImagesInAcquisition", "NumberOfSlices")
PRIVATE = {"Philips Imaging DD 001": (0x2001, 0x18), "GEMS_RELA_01": (0x0021, 0x4F)}  # creator -> group, element


def stated_count(path: Path, header: Any) -> int | None:
    """The number of slices that an image's header gives to one volume of its series, None where it gives none. A count
    of images over several temporal positions is divided by their number."""
    phases = whole_number(path, header, "NumberOfTemporalPositions") or 1
    for name in COUNTS:
        count = whole_number(path, header, name)
        if count:
            whole = name != "NumberOfSlices" and phases > 1 and count % phases == 0
            return count // phases if whole else count
    for creator, (group, element) in PRIVATE.items():
        try:
            count = int(header.private_block(group, creator)[element].value)
        except (KeyError, TypeError, ValueError, AttributeError):
            continue
        if count > 0:
            return count
    return None


STRIDE_UNKNOWN = "its files do not say how far apart its slices were made: whether every second is missing is unknown"
SAME_STEP = 0.05  # relative difference of a distance and what a file says of it


@dataclass(frozen=True)
class Stride:
    """``every``: only each of so many slices is there, 1 for all; ``why`` it is known; ``doubt``, what is to be said
    where the files leave it open."""

    every: int = 1
    why: str = ""
    doubt: str = ""


def stride_of(step: float, frames: Sequence[Any]) -> Stride:
    """Whether slices are missing regularly in a series of sorted ``frames`` that follow each other by ``step`` mm.

    SpacingBetweenSlices is the distance of the middles of two slices; a step of n times that lacks slices. Some write
    the gap between the slices there instead, so a step of the thickness and that gap is none. InstanceNumbers that go
    in steps of n say the same only where the slices are n times as far apart as they are thick, since echoes of one
    series take turns in counting. What is open is said: a step of two thicknesses or more without InstanceNumbers that
    follow each other, a spacing that they contradict, and where the files say nothing at all.
    """
    between, thickness = (same({getattr(frame, name) for frame in frames}) for name in ("between", "thickness"))
    numbers = [frame.instance for frame in frames if frame.instance is not None]
    steps = {abs(int(gap)) for gap in np.diff(numbers)} if len(numbers) == len(frames) else set()
    counted = steps.pop() if len(steps) == 1 else 0  # 0: InstanceNumbers that say nothing
    apart = f"its slices lie {step:g} mm apart"
    if between is not None and (many := multiple(step, between)) > 1:
        is_gap = thickness is not None and abs(between + thickness - step) <= SAME_STEP * step and counted < 2
        if counted == 1 and not is_gap:
            said = f"SpacingBetweenSlices is contradicted, {between:g} mm: {apart}, none missing by InstanceNumber"
            return Stride(doubt=said)
        if not is_gap:
            return Stride(many, f"SpacingBetweenSlices is {between:g} mm, but {apart}")
    if between is not None:
        return Stride()
    if thickness is not None and counted > 1 and multiple(step, thickness) == counted:
        return Stride(
            counted, f"its InstanceNumbers go in steps of {counted}, and {apart}, {thickness:g} mm thick each"
        )
    if thickness is not None and counted != 1 and step >= (2 - SAME_STEP) * thickness:
        return Stride(doubt=f"every second slice may be missing, since {apart} and are {thickness:g} mm thick")
    return Stride(doubt=STRIDE_UNKNOWN if thickness is None and counted != 1 else "")


def same(values: Collection[float | None]) -> float | None:
    """The one value of all slices; None where they differ or have none."""
    return next(iter(values)) if len(values) == 1 else None


def multiple(step: float, unit: float) -> int:
    """How many times ``unit`` the ``step`` is, 1 where it is no whole number of times."""
    many = round(step / unit)
    return many if many > 1 and abs(step - many * unit) <= SAME_STEP * unit else 1


def ends_missing(instances: Sequence[int | None], stated: Sequence[int | None], inside: int = 0) -> tuple[int, str]:
    """(slices missing at the ends, in words why it is known) of a series whose slices, sorted by position, have these
    InstanceNumbers and stated counts; ``inside`` of them are missing in gaps between the others. (0, "") where all are
    there, or nothing says so.

    A count that is a multiple of the slices there are counts several volumes, and says nothing. InstanceNumbers count
    where they follow the slices one by one and begin above 1, but not so high that they go on from another series.
    """
    count = len(instances)
    said = {number for number in stated if number}
    if len(said) == 1:
        (whole,) = said
        lacking = whole - count - inside
        if lacking > 0 and whole % count:
            return lacking, f"its files count {whole} slices"
    numbers = [number for number in instances if number is not None]
    if len(numbers) == count > 1:
        steps = np.diff(numbers)
        first = min(numbers)
        one_way = bool((steps > 0).all() or (steps < 0).all())
        if one_way and max(numbers) - first + 1 == count + inside and 1 < first <= count:
            return first - 1, f"its InstanceNumbers begin with {first}"
    return 0, ""


def ends_unknown(stated: Sequence[int | None]) -> bool:
    """Whether no count in the files would show that a slice is missing at an end."""
    return len({number for number in stated if number}) != 1
