"""Volumes of any orientation into the model's slices and back into their own voxels."""

import itertools

import numpy as np
import pytest
import torch

from sslmed_dist.data.scans.grid import from_model, in_view, pixel_axis, place, restored, same_grid, to_model, upright
from sslmed_dist.data.scans.nifti import read_canonical

nibabel = pytest.importorskip("nibabel")
TURNS = [(p, s) for p in itertools.permutations(range(3)) for s in itertools.product((1, -1), repeat=3)]
MIDDLE = np.array([11.0, -7.0, 4.0])  # of every volume, in mm


def rotation(x, y, z):
    """Degrees about the three world axes."""
    made = np.eye(3)
    for axis, angle in enumerate(np.deg2rad([x, y, z])):
        i, j = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[[i, j], [i, j]] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        made = turn @ made
    return made


def turned(shape, spacing, permutation=(0, 1, 2), signs=(1, 1, 1), oblique=(0, 0, 0)):
    """(array shape, affine) of a volume whose array axis ``a`` runs along world axis ``permutation[a]``."""
    matrix = np.zeros((3, 3))
    for axis, world in enumerate(permutation):
        matrix[world, axis] = signs[axis] * spacing[world]
    matrix = rotation(*oblique) @ matrix
    own = tuple(shape[world] for world in permutation)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = matrix, MIDDLE - matrix @ ((np.array(own) - 1) / 2)
    return own, affine


def blob(shape, affine):
    """A smooth ellipsoid off the middle, 1 at its border, as a function of mm; above 1 inside."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    mm = index @ affine[:3, :3].T + affine[:3, 3] - MIDDLE
    return (2.0 - np.sqrt((((mm - [9.0, 5.0, -6.0]) / [26.0, 18.0, 21.0]) ** 2).sum(-1))).astype(np.float32)


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def came_back(shape, affine, pixel, size):
    """Dice of the blob, drawn in the volume, against the one thresholded in model space and brought back."""
    volume = blob(shape, affine)
    placement = place(shape, affine, pixel=pixel, size=size)
    stack = to_model(volume, placement)
    assert stack.shape == (placement.slices, 1, size, size) and stack.dtype == torch.float32
    back = from_model((stack[:, 0] > 1).float(), placement) > 0.5
    assert back.shape == shape and np.array_equal(placement.affine, affine)
    return dice(back, volume > 1)


@pytest.mark.parametrize("permutation, signs", TURNS)
def test_all_48_orders_are_the_same_volume(permutation, signs):
    """The slices do not depend on how the file is stored, and a map comes back into the stored order exactly."""
    shape, spacing = (14, 11, 5), (1.5, 2.0, 6.0)
    plain, _ = turned(shape, spacing)
    volume = np.random.default_rng(0).normal(size=plain).astype(np.float32)
    stored = volume.transpose(permutation)[tuple(slice(None, None, s) for s in signs)]
    own, affine = turned(shape, spacing, permutation, signs)
    placement = place(own, affine, pixel=1.7, size=12)
    first = to_model(volume, place(*turned(shape, spacing), pixel=1.7, size=12))
    assert stored.shape == own and torch.equal(to_model(stored, placement), first)
    assert placement.spacing == spacing and placement.slices == 5
    assert np.array_equal(restored(upright(stored, placement), placement), stored)
    maps = torch.rand(5, 12, 12)
    plain_back = from_model(maps, place(*turned(shape, spacing), pixel=1.7, size=12))
    expected = plain_back.transpose(permutation)[tuple(slice(None, None, s) for s in signs)]
    assert np.array_equal(from_model(maps, placement), expected)
    assert came_back(*turned((50, 44, 16), (1.6, 1.9, 5.0), permutation, signs), 1.5, 60) > 0.95


@pytest.mark.parametrize("oblique", [(0, 0, 0), (20, 0, 0), (0, -25, 0), (0, 0, 31), (12, 15, -20), (-40, 10, 5)])
@pytest.mark.parametrize("spacing", [(1.4, 1.4, 7.7), (0.7, 1.3, 5.0), (2.2, 0.9, 3.0), (1.5, 4.0, 1.5)])
def test_a_blob_comes_back_where_it_was(oblique, spacing):
    shape = tuple(round(110 / side) for side in spacing)
    for turn in (TURNS[0], TURNS[13], TURNS[38]):
        assert came_back(*turned(shape, spacing, *turn, oblique=oblique), 1.25, 90) > 0.95


@pytest.mark.parametrize("permutation, signs", TURNS[::5])
def test_one_grid_in_another_order_is_the_same_grid(permutation, signs):
    shape, spacing, oblique = (6, 7, 5), (1.5, 2.0, 6.0), (10, -5, 20)
    plain = place(*turned(shape, spacing, oblique=oblique), pixel=1.0, size=4)
    own, affine = turned(shape, spacing, permutation, signs, oblique)
    assert same_grid(plain, place(own, affine, pixel=1.0, size=4))
    moved = affine.copy()
    moved[1, 3] += 0.2
    assert not same_grid(plain, place(own, moved, pixel=1.0, size=4))
    assert not same_grid(plain, place((*own[:2], own[2] + 1), affine, pixel=1.0, size=4))
    assert not same_grid(plain, place(*turned(shape, (1.5, 2.2, 6.0), oblique=oblique), pixel=1.0, size=4))


def test_directions_in_the_plane():
    """Row 0 is anterior, column 0 is the patient's right, slice 0 is inferior; as ``Abdominal`` cuts them."""
    shape, affine = turned((6, 8, 4), (2.0, 2.0, 5.0), (1, 0, 2), (1, -1, 1))
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    placement = place(shape, affine, pixel=2.0, size=6)
    x, y, z = (to_model(world[..., a], placement)[:, 0] for a in range(3))
    assert x.shape == (4, 6, 6)
    assert (x.diff(dim=2) == -2).all() and (y.diff(dim=1) == -2).all() and (z.diff(dim=0) == 5).all()


def test_equal_grids_are_copied_exactly(tmp_path):
    """No resampling where the pixels agree: the slices hold the file's own values, and a map comes back bit for bit."""
    affine = np.diag([-1.25, 1.25, 7.7, 1.0])
    volume = np.random.default_rng(1).integers(0, 900, (32, 32, 6)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(volume, affine), tmp_path / "image.nii.gz")
    placement = place(volume.shape, affine, pixel=1.25, size=32)
    canonical = read_canonical(tmp_path / "image.nii.gz").voxels
    assert np.array_equal(to_model(volume, placement)[:, 0].numpy(), canonical[::-1, ::-1].transpose(2, 1, 0))
    maps = torch.rand(6, 32, 32)
    assert torch.equal(to_model(from_model(maps, placement), placement)[:, 0], maps)
    nearly = place(volume.shape, np.diag([-1.24998581, 1.25, 7.6999, 1.0]), pixel=1.25, size=32)
    assert nearly.columns == placement.columns, "a header's last digits resample nothing"


def test_crop_and_padding():
    affine = np.diag([1.0, 1.0, 4.0, 1.0])
    volume = np.random.default_rng(2).normal(size=(9, 12, 3)).astype(np.float32)
    placement = place(volume.shape, affine, pixel=1.0, size=10)
    stack = to_model(volume, placement)[:, 0]
    assert torch.equal(stack[..., 9], torch.full((3, 10), float(volume.min()))), "padding holds the minimum"
    assert torch.equal(stack[..., :9], torch.from_numpy(volume[::-1, ::-1][:, 1:11].transpose(2, 1, 0).copy()))
    back = from_model(torch.ones(3, 10, 10), placement, outside=-7.0)
    assert back.shape == (9, 12, 3) and (back[:, [0, 11]] == -7).all() and (back[:, 1:11] == 1).all()
    starts = [pixel_axis(count, 1.0, 256).start for count in (257, 255, 320)]
    assert starts == [0, 0, 32]


def test_shrinking_averages():
    """Stripes of one pixel become grey, not a random choice of stripes."""
    volume = np.zeros((64, 64, 2), np.float32)
    volume[::2] = 1.0
    stack = to_model(volume, place(volume.shape, np.diag([1.0, 1.0, 4.0, 1.0]), pixel=4.0, size=16))
    assert (stack[..., 1:-1] - 0.5).abs().max() < 0.02


@pytest.mark.parametrize(
    "shape, affine, pixel, size, message",
    [
        ((4, 4), np.eye(4), 1.0, 4, r"^shape: expected \(I, J, K\), got \(4, 4\)$"),
        ((4, 4, 4), np.eye(4), 0.0, 4, "^pixel, size: expected a pixel size above 0 mm"),
        ((4, 4, 4), np.eye(4), 1.0, 0, "^pixel, size: expected a pixel size above 0 mm"),
        ((4, 4, 4), np.diag([1.0, 0.0, 1.0, 1.0]), 1.0, 4, "^affine: voxel sizes .* each must be above 0$"),
        ((4, 4, 4), np.ones((4, 4)), 1.0, 4, "^affine: its affine is singular"),
        ((4, 4, 4), np.diag([1.0, np.nan, 1.0, 1.0]), 1.0, 4, "^affine: its affine is not a finite 4 x 4 matrix$"),
    ],
)
def test_what_has_no_geometry_is_refused(shape, affine, pixel, size, message):
    with pytest.raises(ValueError, match=message):
        place(shape, affine, pixel=pixel, size=size)


def test_other_shapes_are_refused():
    placement = place((4, 5, 6), np.eye(4), pixel=1.0, size=4)
    with pytest.raises(ValueError, match=r"^volume: expected the shape \(4, 5, 6\) of its placement, got \(4, 5, 7\)$"):
        to_model(np.zeros((4, 5, 7), np.float32), placement)
    with pytest.raises(ValueError, match=r"^maps: expected \(6, 4, 4\), got \(6, 4, 5\)$"):
        from_model(torch.zeros(6, 4, 5), placement)


@pytest.mark.parametrize(("shape", "spacing"), [((20, 30, 3), 1.0), ((20, 90, 3), 1.0), ((41, 30, 3), 0.7)])
def test_what_lies_in_view_is_no_padding(shape, spacing):
    placement = place(shape, np.diag([spacing, spacing, 3.0, 1.0]), pixel=1.0, size=48)
    filled = to_model(np.ones(shape, np.float32), placement, outside=0.0)[0, 0]
    torch.testing.assert_close(in_view(placement), filled > 0.5)
    height, width = min(round(shape[1] * spacing), 48), min(round(shape[0] * spacing), 48)
    assert abs(int(in_view(placement).sum()) - height * width) <= height + width
