"""Slices of exams, and their masks, as tensors of one size."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sslmed_dist.data.exams.exam_folder import UprightExam
from sslmed_dist.data.exams.superpixels import Maps, Recipe, relabel


def standardise(scan: UprightExam, size: int | None) -> Tensor:
    """The slices, float32 (S, 1, H, W): (x - mean) / sd over all voxels of the volume, then brought to ``size``.
    ``ValueError`` for a constant volume."""
    mean, deviation = scan.moments()  # float64, so the division is float64 too and is rounded once, to float32
    images = torch.from_numpy(((scan.slices - mean) / deviation).astype(np.float32))[:, None]
    if size is None:
        return images
    square = to_square(images, float(images.min()))
    if square.shape[-1] == size:
        return square
    return F.interpolate(square, (size, size), mode="bilinear", antialias=True, align_corners=False)


def to_square(images: Tensor, value: float) -> Tensor:
    """Pad (..., H, W) with ``value`` to a square (..., max(H, W), max(H, W)) about its centre."""
    height, width = images.shape[-2:]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    return F.pad(images, (left, side - width - left, top, side - height - top), value=value)


def to_size(labels: Tensor, size: int | None) -> Tensor:
    """Label maps (S, H, W) padded with 0 to a square and brought to (S, size, size) by the nearest pixel."""
    if size is None:
        return labels
    square = to_square(labels[:, None], 0)
    return F.interpolate(square.to(torch.float32), (size, size), mode="nearest-exact")[:, 0].to(labels.dtype)


def organ_maps(scans: Sequence[UprightExam], size: int | None) -> list[Tensor]:
    """The organ values of every scan, uint8 (S, H, W), at ``size``."""
    return [to_size(torch.from_numpy(scan.organs), size) for scan in scans if scan.organs is not None]


def pseudo_masks(stored_maps: Sequence[Maps], recipe: Recipe, size: int | None) -> list[Tensor]:
    """The superpixels of every scan at ``size``, int16 (S, H, W), 1 ... n in each slice.

    The least size of a superpixel (see ``data.exams.superpixels``) shrinks with the slice's area. Superpixels that are
    smaller after resizing are dropped, and the others numbered anew.
    """
    maps = [torch.from_numpy(scan_maps.astype(np.int16)) for scan_maps in stored_maps]
    if size is None:
        return maps
    resized = []
    for scan_maps in maps:
        least = recipe.least(size / max(scan_maps.shape[1:]))
        relabelled = np.stack([relabel(labels, least) for labels in to_size(scan_maps, size).numpy()])
        resized.append(torch.from_numpy(relabelled.astype(np.int16)))
    return resized


def usable(maps: Tensor, scan: UprightExam, values: Sequence[int]) -> Tensor:
    """Int64 (n,): the numbers of the slices with a mask in ``maps`` (S, H, W), of any size, and without a voxel of the
    organ ``values``, which are looked for in the slices as stored."""
    is_usable = maps.flatten(1).amax(1) > 0  # (S,)
    if values:
        assert scan.organs is not None
        is_usable &= torch.from_numpy(~np.isin(scan.organs, values).any(axis=(1, 2)))
    return torch.nonzero(is_usable)[:, 0]


def presence(maps: Tensor, count: int) -> Tensor:
    """Float32 (N, count) of ``maps`` (N, H, W): 1 in column k where the map has a pixel of the value k + 1."""
    return torch.stack([(maps == k + 1).flatten(1).any(1) for k in range(count)], 1).to(torch.float32)
