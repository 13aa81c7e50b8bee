"""The masks of an annotated scan: one binary volume for each label, read one at a time.

Labels may overlap, and there may be a hundred of them, so no label map stands between a file and who reads it.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslmed_dist.data.scans.grid import Placement, slab, to_model
from sslmed_dist.data.scans.scan import StoredScan

Mask = NDArray[np.bool_]
MOST_LABEL = 65535
NEAR = 1e-3  # how far a value may be from the whole number that is meant: resampling and scaled storage round
NO_IDS = f"holds values that are no label ids; allowed: whole numbers from 0 to {MOST_LABEL}"


@dataclass(frozen=True)
class Masks:
    """The labels of a scan. ``read`` gives the mask of a label, bool of ``shape`` (I, J, K), with ``affine`` (voxel
    index to RAS mm). ``names`` are the labels, ascending, with their names. ``notices``: what reading left aside or had
    to guess, a line each. ``by_files``: the names are those of files, which may be patients'."""

    path: Path
    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    oriented: bool
    names: dict[int, str]
    read: Callable[[int], Mask]
    notices: tuple[str, ...] = ()
    by_files: bool = False


def name_of(label: int) -> str:
    """The name of a label whose file gives it none."""
    return f"label {label}"


def require_label(path: Path, what: str, number: int, known: Collection[int]) -> int:
    """The number itself as a label of a DICOM object. ``ValueError`` for one that no label map can hold, and for one of
    two regions: they would become one."""
    if not 1 <= number <= MOST_LABEL:
        raise ValueError(f"{path}: {what} {number}; allowed: 1 to {MOST_LABEL}, since 0 is where nothing is")
    if number in known:
        raise ValueError(f"{path}: {what} {number} stands in it twice; allowed: a number of its own for each")
    return number


def of_label_map(scan: StoredScan, names: dict[int, str] | None = None) -> Masks:
    """The labels of a volume whose voxels are label ids, 0 for none. Values within 0.001 of a whole number are that
    number. ``names``: of labels that have one. ``ValueError`` naming the file for a value that is no id."""
    values, labels = whole(scan.voxels, scan.path)
    shape = (values.shape[0], values.shape[1], values.shape[2])
    given = {label: (names or {}).get(label, name_of(label)) for label in labels}
    return Masks(scan.path, shape, scan.affine, scan.oriented, given, lambda label: values == label)


def whole(voxels: NDArray[Any], path: Path) -> tuple[NDArray[Any], list[int]]:
    """(label ids uint8 or uint16 of the shape of ``voxels``, the ids above 0 ascending). ``ValueError`` as
    ``of_label_map``."""
    values, counts = np.empty_like(voxels, np.uint16), np.zeros(MOST_LABEL + 1, np.int64)
    for k in range(voxels.shape[2]):
        nearest = np.round(voxels[:, :, k])
        if np.abs(voxels[:, :, k] - nearest).max() > NEAR or nearest.min() < 0 or nearest.max() > MOST_LABEL:
            raise ValueError(f"{path}: {NO_IDS}")
        values[:, :, k] = nearest
        counts += np.bincount(values[:, :, k].ravel(), minlength=MOST_LABEL + 1)
    labels = [int(label) for label in np.nonzero(counts)[0] if label]
    return (values.astype(np.uint8) if not labels or labels[-1] < 256 else values), labels


def chosen(masks: Masks, labels: Sequence[int]) -> list[int]:
    """The labels to look for, ascending: ``labels``, or all. ``ValueError`` naming the file for one that it does not
    hold, and for a file without any."""
    if not masks.names:
        raise ValueError(f"{masks.path}: the mask is empty; it has to hold a label id above 0")
    for label in labels:
        if label not in masks.names:
            raise ValueError(f"{masks.path}: holds no label {label}; allowed: {', '.join(map(str, masks.names))}")
    return sorted(set(labels)) or list(masks.names)


def to_slices(mask: Mask, placement: Placement) -> Tensor:
    """Float32 (S, size, size): the share of each of the model's pixels that the ``mask`` (I, J, K) fills. Only the
    slices that it reaches are resampled."""
    shares = torch.zeros((placement.slices, placement.size, placement.size))
    across = tuple(axis for axis in range(3) if axis != placement.axes[2])
    held: Mask = np.asarray(mask.any(axis=across))  # (S,), in the order of the array
    reached = np.nonzero(held[:: -1 if placement.flips[2] else 1])[0]
    if len(reached):
        first, last = int(reached[0]), int(reached[-1])
        index, part = slab(placement, first, last)
        shares[first : last + 1] = to_model(mask[index].astype(np.float32), part, outside=0.0)[:, 0]
    return shares
