"""Surface distances against loops over voxels, on small anisotropic volumes."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from sslmed_dist.downstream.oneshot.surfaces import hausdorff95, surface_dice

pytest.importorskip("monai")
SPACING = (1.25, 2.0, 7.7)  # between rows, columns, slices

Point = tuple[float, float, float]


def surface(mask: Tensor) -> list[Point]:
    """Where a mask's surface voxels lie, in mm (slice, row, column)."""
    held = {tuple(voxel) for voxel in mask.nonzero().tolist()}
    steps = [tuple(step) for axis in range(3) for step in (torch.eye(3)[axis], -torch.eye(3)[axis])]
    edge = [
        v for v in held if any(tuple(int(a + b) for a, b in zip(v, step, strict=True)) not in held for step in steps)
    ]
    rows, columns, slices = SPACING
    return [(v[0] * slices, v[1] * rows, v[2] * columns) for v in edge]


def nearest(first: list[Point], second: list[Point]) -> list[float]:
    return [min(math.dist(a, b) for b in second) for a in first]


def blobs(seed: int) -> tuple[Tensor, Tensor]:
    """Two boxes that overlap, with ragged surfaces."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(2):
        mask = torch.zeros(6, 12, 12, dtype=torch.bool)
        z, y, x = torch.randint(0, 3, (3,), generator=generator).tolist()
        mask[z : z + 3, y : y + 8, x : x + 7] = True
        found.append(mask & (torch.rand(mask.shape, generator=generator) < 0.9))
    return found[0], found[1]


@pytest.mark.parametrize("seed", range(4))
def test_distances_equal_a_loop_over_surface_voxels(seed: int) -> None:
    guess, truth = blobs(seed)
    first, second = surface(guess), surface(truth)
    there, back = nearest(first, second), nearest(second, first)
    percentiles = [float(torch.quantile(torch.tensor(d, dtype=torch.float64), 0.95)) for d in (there, back)]
    assert hausdorff95(guess, truth, SPACING) == pytest.approx(max(percentiles), rel=1e-5)
    for tolerance in (0.0, 1.3, 2.5, 8.0):
        within = sum(distance <= tolerance for distance in itertools.chain(there, back))
        expected = within / (len(first) + len(second))
        assert surface_dice(guess, truth, SPACING, tolerance) == pytest.approx(expected, rel=1e-5)


def test_the_spacing_belongs_to_its_axis() -> None:
    """One voxel beside another: the distance is the spacing of the axis between them."""
    for axis, expected in ((0, SPACING[2]), (1, SPACING[0]), (2, SPACING[1])):
        guess, truth = torch.zeros(2, 5, 5, 5, dtype=torch.bool)
        truth[2, 2, 2] = True
        guess[tuple(3 if a == axis else 2 for a in range(3))] = True
        assert hausdorff95(guess, truth, SPACING) == pytest.approx(expected)
        assert surface_dice(guess, truth, SPACING, expected - 0.1) == 0.0
        assert surface_dice(guess, truth, SPACING, expected + 0.1) == 1.0


def test_equal_masks_and_empty_ones() -> None:
    mask, empty = blobs(0)[0], torch.zeros(6, 12, 12, dtype=torch.bool)
    assert hausdorff95(mask, mask, SPACING) == 0.0 and surface_dice(mask, mask, SPACING, 0.0) == 1.0
    for pair in ((mask, empty), (empty, mask), (empty, empty)):
        assert hausdorff95(*pair, SPACING) is None and surface_dice(*pair, SPACING, 1.0) is None


def test_bad_arguments_are_named() -> None:
    mask = torch.ones(2, 3, 3)
    with pytest.raises(ValueError, match=r"expected masks of one shape \(S, H, W\), got \(2, 3, 3\) and \(1, 3, 3\)"):
        hausdorff95(mask, mask[:1], SPACING)
    with pytest.raises(ValueError, match="tolerance: expected a number >= 0 mm, got -1"):
        surface_dice(mask, mask, SPACING, -1)
