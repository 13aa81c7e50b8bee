"""Whether a series lacks slices at its ends, where no gap between positions shows it.

What may say so: a count of the series' images in its files, and InstanceNumbers that do not begin with 1. Both are the
scanner's habit and no law, so they count only where they cannot mean anything else.
"""

from collections.abc import Sequence
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
