import numpy as np
import pytest
import torch

from sslmed_dist.data import DATASETS
from tests.real_data import real_data

nibabel = pytest.importorskip("nibabel")
AFFINE = np.diag([-1.5, 1.5, 7.0, 1.0])


def save(path, array, affine=AFFINE):
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def write_exams(root, numbers=(1, 2, 10), masks=True, side=24):
    rng = np.random.default_rng(0)
    root.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        image = rng.integers(1, 900, (side, side, 6 + number % 3)).astype(np.int16)
        image[:, :, -1] = 0
        mask = np.zeros(image.shape, np.uint8)
        mask[:4, :4, 1] = 1
        mask[:1, :2, 2] = 4
        save(root / f"image_{number:02d}.nii.gz", image)
        if masks:
            save(root / f"label_{number:02d}.nii.gz", mask)
    return root


def abdominal(root, **arguments):
    return DATASETS["abdominal"](root=str(root), **arguments)


def fetch(data, positions, epoch=0, draw=0, seed=0):
    positions = torch.tensor(positions)
    return data.fetch(positions, seed=seed, epoch=epoch, draw=torch.full_like(positions, draw))


def test_slices_have_stable_ids_patients_and_organs(tmp_path):
    data = abdominal(write_exams(tmp_path), unit="slice")
    assert len(data) == 6 + 7 + 6 and data.images.shape == (19, 1, 24, 24)
    assert data.ids[:3].tolist() == [4096, 4097, 4098] and data.groups.unique().tolist() == [1, 2, 10]
    assert data.labels[1].tolist() == [1, 0, 0, 0] and data.labels[2].tolist() == [0, 0, 0, 1]
    assert data.task == "multi" and data.value_range() == (0.0, 1.0)
    assert data.images.min() >= 0 and data.images.max() == 1
    assert data.exams()[2].tolist() == list(range(6, 13))
    assert abdominal(tmp_path, unit="slice", min_voxels=3).labels.sum(0).tolist() == [3, 0, 0, 0]


def test_exam_fetch_is_keyed_by_seed_epoch_id_and_draw(tmp_path):
    data, slices = abdominal(write_exams(tmp_path)), abdominal(tmp_path, unit="slice")
    assert data.ids.tolist() == [1, 2, 10] and data.labels.tolist() == [[1, 0, 0, 1]] * 3
    assert torch.equal(fetch(data, [0, 2])["images"][1], fetch(data, [2])["images"][0])
    drawn = set()
    for epoch in range(60):
        image = fetch(data, [1], epoch=epoch)["images"][0]
        drawn |= {int(i) for i in slices.exams()[2] if torch.equal(slices.images[i], image)}
    assert drawn == set(range(6, 13))  # every non-empty slice of exam 2 comes up, no slice of another
    differ = [not torch.equal(fetch(data, [1])["images"], fetch(data, [1], draw=d)["images"]) for d in range(1, 9)]
    assert any(differ)
    assert torch.equal(fetch(data, [1], seed=4, epoch=2, draw=3)["images"], fetch(data, [1], 2, 3, 4)["images"])


def test_orientation_does_not_depend_on_how_the_file_is_stored(tmp_path):
    image = np.random.default_rng(1).integers(0, 500, (8, 8, 5)).astype(np.int16)
    for name, array, affine in (
        ("one", image, AFFINE),
        ("two", image[::-1, ::-1].copy(), np.diag([1.5, -1.5, 7.0, 1.0])),
        ("three", image.transpose(2, 0, 1).copy(), AFFINE[:, [2, 0, 1, 3]]),
    ):
        (tmp_path / name).mkdir()
        save(tmp_path / name / "image_1.nii.gz", array, affine)
    first, *others = (abdominal(tmp_path / name, unit="slice").images for name in ("one", "two", "three"))
    assert all(torch.equal(first, other) for other in others)
    expected = image[:, ::-1, 0].T  # stored towards the left: column 0 is the patient's right; row 0 anterior
    assert np.corrcoef(first[0, 0].numpy().ravel(), expected.ravel())[0, 1] > 0.999


def test_resize_pads_to_a_square(tmp_path):
    save(tmp_path / "image_1.nii", np.random.default_rng(0).integers(1, 9, (20, 30, 3)).astype(np.float32))
    data = abdominal(tmp_path, unit="slice", size=15)
    assert data.images.shape == (3, 1, 15, 15)
    assert data.images[:, :, :, :2].max() == 0 and data.images[:, :, 7, 7].min() > 0
    save(tmp_path / "image_2.nii", np.random.default_rng(0).integers(1, 9, (20, 20, 3)).astype(np.float32))
    with pytest.raises(ValueError, match="slices of 2 sizes .* set size"):
        abdominal(tmp_path)


def test_without_masks_the_set_is_unlabelled(tmp_path):
    data = abdominal(write_exams(tmp_path, masks=False))
    assert data.labels.tolist() == [-1, -1, -1] and data.classes == () and data.task == "single"


def test_sites_and_split_by_patient(tmp_path):
    root = write_exams(tmp_path, numbers=range(1, 11))
    (root / "sites.csv").write_text("id,site\n" + "".join(f"{n:02d},{'ab'[n % 2]}\n" for n in range(1, 11)))
    parts = [abdominal(root, split=s, val_fraction=0.2, test_fraction=0.3) for s in ("train", "val", "test")]
    assert [len(part) for part in parts] == [5, 2, 3]
    assert sorted(i for part in parts for i in part.ids.tolist()) == list(range(1, 11))
    assert all(part.sites is not None and torch.equal(part.sites, part.ids % 2) for part in parts)
    with pytest.raises(ValueError, match="no split 'val'; allowed: train, all"):
        abdominal(root, split="val")
    with pytest.raises(ValueError, match="leave at least one exam to train on"):
        abdominal(root, val_fraction=0.5, test_fraction=0.5)
    (root / "sites.csv").write_text("1,0\n")
    with pytest.raises(ValueError, match="sites.csv: no site for exam 2"):
        abdominal(root)


def damage_missing_mask(root):
    (root / "label_02.nii.gz").unlink()


def damage_missing_image(root):
    (root / "image_02.nii.gz").unlink()


def damage_mask_shape(root):
    save(root / "label_02.nii.gz", np.zeros((24, 24, 5), np.uint8))


def damage_mask_grid(root):
    save(root / "label_02.nii.gz", np.zeros((24, 24, 8), np.uint8), np.diag([-1.5, 1.5, 5.0, 1.0]))


def damage_mask_value(root):
    save(root / "label_02.nii.gz", np.full((24, 24, 8), 5, np.uint8))


def damage_nan(root):
    array = np.ones((24, 24, 8), np.float32)
    array[0, 0, 0] = np.nan
    save(root / "image_02.nii.gz", array)


def damage_dimensions(root):
    save(root / "image_02.nii.gz", np.ones((24, 24, 8, 2), np.float32))


def damage_constant(root):
    save(root / "image_02.nii.gz", np.ones((24, 24, 8), np.float32))


def damage_truncated(root):
    path = root / "image_02.nii.gz"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_content(root):
    (root / "image_02.nii.gz").write_text("nothing")


def damage_second(root):
    save(root / "image_2.nii", np.ones((24, 24, 8), np.float32))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_missing_mask, "image_02.nii.gz: has no mask label_"),
        (damage_missing_image, "label_02.nii.gz: has no image_"),
        (damage_mask_shape, r"label_02.nii.gz: shape \(24, 24, 5\) or position differs"),
        (damage_mask_grid, "label_02.nii.gz: shape .* or position differs"),
        (damage_mask_value, "label_02.nii.gz: holds a value outside 0 to 4"),
        (damage_nan, "image_02.nii.gz: 1 voxels are NaN or infinite"),
        (damage_dimensions, r"image_02.nii.gz: expected a 3-D volume, got shape \(24, 24, 8, 2\)"),
        (damage_constant, "image_02.nii.gz: the volume is constant"),
        (damage_truncated, "image_02.nii.gz: cannot be read, truncated or not NIfTI"),
        (damage_content, "image_02.nii.gz: cannot be read, truncated or not NIfTI"),
        (damage_second, "image_2.nii: a second image of exam 2"),
    ],
)
def test_damage_is_named(tmp_path, damage, message):
    root = write_exams(tmp_path)
    damage(root)
    with pytest.raises(ValueError, match=message):
        abdominal(root)


def test_wrong_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        abdominal(tmp_path / "absent")
    with pytest.raises(ValueError, match="no exam in it; expected image_01.nii.gz"):
        abdominal(tmp_path)


def test_real_chaos_exams(tmp_path):
    for name in ("image_01", "label_01", "image_39", "label_39"):
        (tmp_path / f"{name}.nii.gz").symlink_to(real_data(f"chaos-t2spir/{name}.nii.gz"))
    data = abdominal(tmp_path, unit="slice", size=96)
    assert data.images.shape[1:] == (1, 96, 96) and data.groups.unique().tolist() == [1, 39]
    assert data.labels.sum(0).min() > 0 and data.classes == ("liver", "right kidney", "left kidney", "spleen")
    liver, spleen = (data.images[data.labels[:, k] > 0].mean(0)[0] for k in (0, 3))
    assert liver.shape == spleen.shape == (96, 96)
    assert data.records[0]["spacing_mm"] == pytest.approx((1.25, 1.25, 7.7), abs=0.01)


def test_stacks_are_exams_of_a_few_slices(tmp_path):
    whole, slices = abdominal(write_exams(tmp_path)), abdominal(tmp_path, unit="slice")
    stacks = abdominal(tmp_path, unit="stack", stack=2, clip=3)
    per_exam = [-(-int(count) // 2) for count in whole.counts]
    assert len(stacks) == sum(per_exam) and stacks.counts.sum() == len(slices) and int(stacks.counts.max()) == 2
    assert stacks.groups.tolist() == whole.ids.repeat_interleave(torch.tensor(per_exam)).tolist()
    first = 0
    for position, count in enumerate(stacks.counts.tolist()):
        rows = range(first, first + count)
        assert int(stacks.ids[position]) == int(slices.ids[first])
        assert torch.equal(stacks.labels[position], slices.labels[rows.start : rows.stop].amax(0))
        assert torch.equal(stacks.slices(position, torch.arange(count)), slices.images[rows.start : rows.stop])
        first += count
    batch = stacks.fetch(torch.arange(len(stacks)), seed=0, epoch=0, draw=torch.zeros(len(stacks), dtype=torch.int64))
    assert batch["images"].shape[:2] == (len(stacks), 3) and torch.equal(batch["length"], stacks.counts)
    with pytest.raises(ValueError, match="data.clip: a sample of unit slice is one slice"):
        abdominal(tmp_path, unit="slice", clip=2)
    with pytest.raises(ValueError, match="data.stack: expected a number of slices"):
        abdominal(tmp_path, unit="stack", stack=0)


def test_folds_test_every_exam_once_and_share_no_patient(tmp_path):
    write_exams(tmp_path, numbers=range(1, 8))
    tested = []
    for fold in range(3):
        groups = {
            part: set(abdominal(tmp_path, unit="slice", fold=fold, folds=3, split=part).groups.tolist())
            for part in ("train", "val", "test")
        }
        assert sum(map(len, groups.values())) == 7 and set.union(*groups.values()) == set(range(1, 8))
        assert groups["val"] == set(abdominal(tmp_path, fold=(fold + 1) % 3, folds=3, split="test").groups.tolist())
        tested += groups["test"]
    assert sorted(tested) == list(range(1, 8))
    other = [abdominal(tmp_path, fold=0, folds=3, split="test", seed=seed).ids.tolist() for seed in range(9)]
    assert len(set(map(tuple, other))) > 1


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"fold": 5}, "data.fold: expected 0 to 4, got 5"),
        ({"fold": -1}, "data.fold: expected 0 to 4, got -1"),
        ({"fold": 0, "folds": 2}, "data.folds: expected 3 .*to 5 .*got 2"),
        ({"fold": 0, "folds": 6}, "data.folds: expected 3 .*to 5 .*got 6"),
        ({"fold": 0, "val_fraction": 0.2}, "data.fold: the fold decides the splits"),
    ],
)
def test_folds_that_are_not_there_are_named(tmp_path, asked, message):
    with pytest.raises(ValueError, match=message):
        abdominal(write_exams(tmp_path, numbers=range(1, 6)), **asked)


def test_a_position_is_drawn_in_place_of_the_pixels(tmp_path):
    write_exams(tmp_path, numbers=(1, 2))
    pixels, places = (abdominal(tmp_path, unit="slice", size=33, show=show) for show in ("pixels", "position"))
    assert torch.equal(pixels.ids, places.ids) and torch.equal(pixels.labels, places.labels)
    assert pixels.images.shape == places.images.shape and not torch.equal(pixels.images, places.images)
    for position, record in enumerate(places.records):
        image, where = places.images[position, 0], record["slice"] / (record["shape"][2] - 1)
        assert torch.equal(image, image[:, :1].expand(33, 33))  # nothing of the slice
        assert abs(int(image[:, 0].argmax()) / 32 - where) <= 0.5 / 32 and 0 <= image.min() < 1e-4
    # the masks and the intensities of an exam make no difference to its drawings
    (tmp_path / "other").mkdir()
    again = abdominal(write_exams(tmp_path / "other", numbers=(2, 1)), unit="slice", size=33, show="position")
    assert torch.equal(again.images, places.images)
