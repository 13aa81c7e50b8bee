"""Padding: voxels that were never measured, and that would spoil mean, contrast and fill of those that were.

DICOM states it (PixelPaddingValue; PS3.3, C.7.5.1.1.2), NIfTI cannot. What no file states is known by standing alone:
a value below 0 and far below all others.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslmed_dist.printable import plural

SAMPLE = 2**20  # voxels, evenly spaced, that the percentiles are taken of
FREQUENT = 0.005  # share of the voxels at the lowest value, above which the percentiles are those of the others
FAR = 0.5  # how far below the lower percentile a value stands alone, as a share of the distance of the percentiles
PERCENTILES = (0.5, 99.5)
FEWEST_VALUES = 32  # different ones that a measured image has
MOST_VALUES = 4  # that padding of one volume has
TOLD = "padding"  # begins a notice of replaced voxels


def fill_padding(voxels: NDArray[np.float32]) -> tuple[str, ...]:
    """Replace padding in ``voxels``, of any shape, by the lowest value of the others, in place; in words what was done,
    a line each.

    Padding is what is NaN (stated by the file), and what lies below 0 and more than half of the distance between the
    0.5 and 99.5 percentiles below the former. Where 0.5 % of the voxels or more hold the lowest value, the percentiles
    are those of the others. Volumes of fewer than 32 different values are left alone. Volumes without padding keep
    every bit. ``ValueError`` where all voxels are padding.
    """
    stated = np.isnan(voxels)
    count = int(stated.sum())
    if count == voxels.size:
        raise ValueError("all of its voxels are padding")
    bound = lowest_measured(voxels.ravel(order="K"))
    alone = voxels < np.float32(bound)  # False for NaN
    few = int(alone.sum())
    if not count and not few:
        return ()
    floor = np.float32(np.min(voxels, initial=np.inf, where=~(stated | alone)))
    lines = []
    if count:
        lines.append(f"{TOLD}, as the files state it: {share(count, voxels)} of the voxels, set to {floor:g}")
    if few:
        low = float(np.min(voxels, initial=np.inf, where=alone))
        lines.append(f"{TOLD}, by values far below all others ({low:g}): {share(few, voxels)}, set to {floor:g}")
    voxels[stated | alone] = floor
    return tuple(lines)


def lowest_measured(voxels: NDArray[np.float32]) -> float:
    """The value that voxels (N,) below it are padding of, -inf where none is."""
    sample = voxels[:: max(1, len(voxels) // SAMPLE)]
    sample = sample[np.isfinite(sample)]
    lowest = float(np.nanmin(voxels))
    if lowest >= 0 or not len(sample):
        return -np.inf
    bound = bound_of(sample)
    # padding of a round field of view may be a fifth of the voxels, and have several values
    for _ in range(MOST_VALUES):
        least = sample.min()
        if (sample == least).mean() < FREQUENT or least == sample.max():
            break
        sample = sample[sample > least]
        if least < bound_of(sample):
            bound = bound_of(sample)
    return min(bound, 0.0) if lowest < bound else -np.inf


def bound_of(sample: NDArray[np.float32]) -> float:
    """How low a value may lie beside these; -inf where they are so few that each may stand alone."""
    if len(np.unique(sample)) < FEWEST_VALUES:
        return -np.inf
    low, high = (float(value) for value in np.percentile(sample, PERCENTILES))
    return low - FAR * (high - low)


def padding_notices(padded: Sequence[bool]) -> list[str]:
    """What a set of exams says of those whose padding was replaced."""
    many = sum(padded)
    return (
        [f"{plural(many, 'exam')} with {TOLD}: values far below all others, set to the lowest of these"] if many else []
    )


def share(count: int, voxels: NDArray[Any]) -> str:
    """A count of voxels as a percentage of all."""
    return f"{100 * count / voxels.size:.2g} %"
