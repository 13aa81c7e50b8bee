"""Turning, resampling and cropping keep every voxel in its place: a volume of its own coordinates says so."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from sslmed_dist.data.prepare.abdomen_ct import BORDER, prepare_volume
from sslmed_dist.data.scans.regrid import (
    Affine,
    Volume,
    crop_or_pad,
    moved,
    positions_at,
    require_right_angles,
    resample,
    resample_labels,
    spacing,
    turn,
)
from tests.data.scans.test_dicom import DIRECTIONS, affine_of


def places(shape: tuple[int, ...], affine: Affine) -> NDArray[np.float64]:
    """(I, J, K, 3) mm of every voxel."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    result: NDArray[np.float64] = index @ affine[:3, :3].T + affine[:3, 3]
    return result


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_turned_resampled_and_cropped_voxels_hold_their_own_place(directions: str) -> None:
    affine = affine_of(DIRECTIONS[directions])
    volumes = [places((9, 12, 6), affine)[..., axis] for axis in range(3)]
    turned, parts = turn(affine, volumes, "LAS")
    if "oblique" not in directions:
        assert np.array_equal(np.sign(np.diag(turned)[:3]), [-1, 1, 1])
    where = [
        positions_at(n, old, new) for n, old, new in zip(parts[0].shape, spacing(turned), (2, 1.5, 3.0), strict=True)
    ]
    fine = moved(turned, where)
    np.testing.assert_allclose(spacing(fine), (2, 1.5, 3.0))
    for axis, part in enumerate(parts):
        voxels = resample(part.astype(np.float32), where, np.nan)
        cut, final = crop_or_pad(voxels, fine, (4, 40), np.nan)
        truth = places(cut.shape, final)[..., axis]
        # the last half voxel of the scan goes on with its end's value and the rest is nan
        whole = [int((w <= n - 1).sum()) for w, n in zip(where, part.shape, strict=True)]
        inner = np.full(voxels.shape, False)
        inner[: whole[0], : whole[1], : whole[2]] = True
        kept = crop_or_pad(inner, fine, (4, 40), False)[0].astype(bool)
        assert kept.sum() > 30
        np.testing.assert_allclose(cut[kept].astype(float), truth[kept], atol=2e-3)


def test_the_size_is_that_of_the_published_recipe() -> None:
    assert len(positions_at(320, 1.0, 1.25)) == 257  # int(320 / 1.25 + 1)
    assert len(positions_at(31, 7.7, 7.7)) == 32 and len(positions_at(30, 5.5, 7.7)) == 22
    assert positions_at(30, 5.5, 7.7)[1] == pytest.approx(1.4)


def test_values_are_those_of_scipy_and_the_outside_is_filled() -> None:
    volume = np.random.default_rng(0).random((6, 7, 5)).astype(np.float32)
    where = [np.arange(8) * 0.8, np.arange(5) * 1.5, np.arange(6) * 1.1]
    grid = np.stack(np.meshgrid(*where, indexing="ij"))
    expected = map_coordinates(volume, grid, order=1, mode="nearest")
    beyond = np.zeros(grid.shape[1:], bool)
    for axis, size in enumerate(volume.shape):
        beyond |= grid[axis] > size - 0.5
    assert beyond.any() and not beyond.all()
    ours = resample(volume, where, -7.0)
    np.testing.assert_allclose(ours[~beyond], expected[~beyond], atol=1e-6)
    assert (ours[beyond] == -7.0).all()
    assert np.array_equal(resample(volume, [np.arange(n, dtype=float) for n in volume.shape], 0.0), volume)


def test_labels_take_the_larger_share_and_half_counts() -> None:
    labels = np.array([0, 0, 2, 2, 3, 3, 3, 0], np.uint8).reshape(8, 1, 1)
    where = [np.arange(15) / 2, np.zeros(1), np.zeros(1)]
    ours = resample_labels(labels, where, 3)[:, 0, 0].tolist()
    assert ours == [0, 0, 0, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 0]


@pytest.mark.parametrize(("have", "want", "start"), [(257, 256, 0), (260, 256, 2), (8, 12, -2), (7, 12, -2), (5, 5, 0)])
def test_the_crop_is_centred_and_moves_the_origin(have: int, want: int, start: int) -> None:
    affine = affine_of(DIRECTIONS["oblique"])
    volume = np.arange(have, dtype=np.float32)[:, None, None] + np.zeros((1, 3, 2), np.float32)
    cut, final = crop_or_pad(volume, affine, (want, 3), -1.0)
    expected = [value if 0 <= value < have else -1 for value in range(start, start + want)]
    assert cut.shape == (want, 3, 2) and cut[:, 0, 0].tolist() == expected
    np.testing.assert_allclose(final[:3, 3], affine[:3, 3] + start * affine[:3, 0])
    assert np.array_equal(final[:3, :3], affine[:3, :3])


def test_a_sheared_or_flat_grid_is_refused() -> None:
    affine = affine_of(DIRECTIONS["oblique"])
    require_right_angles(affine, "x")
    with pytest.raises(ValueError, match="x: the axes are not at right angles"):
        require_right_angles(affine @ np.array([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "x")
    with pytest.raises(ValueError, match="x: voxel spacing must be above 0 mm, got 0"):
        require_right_angles(affine @ np.diag([0.0, 1, 1, 1]), "x")


def test_ct_voxels_hold_their_own_place() -> None:
    affine = affine_of(np.diag([-1.0, 1, 1]))
    shape = (448 + 2 * BORDER, 200 + 2 * BORDER, 3)
    labels = np.zeros(shape, np.uint8)
    for axis in range(2):
        truth = places(shape, affine)[..., axis]
        middle = float(truth.mean())
        image: Volume = ((truth - middle) * 0.2).astype(np.float32)  # within the window
        scan = prepare_volume(1, image, labels, affine)
        assert scan.image.shape == (256, 256, 3)
        found = (scan.image * (400 / 255) - 125) / 0.2 + middle
        np.testing.assert_allclose(found[:, :254], places(scan.image.shape, scan.affine)[:, :254, :, axis], atol=2e-2)
    np.testing.assert_allclose(spacing(scan.affine), (1.25 * 448 / 256, 0.8 * 200 / 256, 5.5))
