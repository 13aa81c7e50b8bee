"""Distances between the surfaces of two masks in mm, by MONAI: the 95th percentile Hausdorff distance, surface Dice.

The surface of a mask is its voxels that have a face neighbour outside it. Each counts once, whatever the area of its
faces.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from sslmed_dist.downstream.oneshot.tidy import Spacing


def hausdorff95(prediction: Tensor, truth: Tensor, spacing: Spacing) -> float | None:
    """The 95th percentile Hausdorff distance in mm between two masks (S, H, W).

    A directed distance is the 95th percentile, over the surface voxels of one mask, of the distance to the nearest
    surface voxel of the other; the result is the larger one of the two directions. ``spacing`` in mm is between rows,
    columns and slices. None where a mask is empty. ``ValueError`` for different shapes.
    """
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance

    if not both(prediction, truth):
        return None
    with quiet():
        distance = compute_hausdorff_distance(
            batched(prediction), batched(truth), include_background=True, percentile=95, spacing=sides(spacing)
        )
    return float(distance)


def surface_dice(prediction: Tensor, truth: Tensor, spacing: Spacing, tolerance: float) -> float | None:
    """The share of the voxels of both surfaces that lie within ``tolerance`` mm of the other surface, in [0, 1]
    (Nikolov et al. 2018, arXiv 1809.04430, with numbers of voxels in place of areas). Masks, ``spacing``, None and
    ``ValueError`` as for ``hausdorff95``; ``ValueError`` also for a negative tolerance."""
    from monai.metrics.surface_dice import SurfaceDiceMetric

    if not tolerance >= 0:
        raise ValueError(f"tolerance: expected a number >= 0 mm, got {tolerance}")
    if not both(prediction, truth):
        return None
    metric = SurfaceDiceMetric(class_thresholds=[tolerance], include_background=True)
    with quiet():
        return float(metric(batched(prediction), batched(truth), spacing=sides(spacing)))


@contextmanager
def quiet() -> Iterator[None]:
    """A block without MONAI's warnings about its own deprecated arguments."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def both(prediction: Tensor, truth: Tensor) -> bool:
    """Whether both masks hold a voxel. ``ValueError`` unless they are of one shape (S, H, W)."""
    if prediction.shape != truth.shape or truth.ndim != 3:
        shapes = f"{tuple(prediction.shape)} and {tuple(truth.shape)}"
        raise ValueError(f"prediction, truth: expected masks of one shape (S, H, W), got {shapes}")
    return bool(prediction.any()) and bool(truth.any())


def batched(mask: Tensor) -> Tensor:
    """(S, H, W) -> (1, 1, S, H, W) on the CPU, where the distance transform runs."""
    return mask.bool().float().cpu()[None, None]


def sides(spacing: Spacing) -> list[float]:
    """The spacing in the order of a volume's axes: slices, rows, columns."""
    rows, columns, slices = spacing
    return [slices, rows, columns]
