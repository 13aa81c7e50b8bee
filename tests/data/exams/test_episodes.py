"""Folds, and episodes: what is sampled, what is left out, and what a fetch gives."""

import itertools
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from torch import Tensor

from sslmed_dist import registry
from sslmed_dist.data import DATASETS, Batches
from sslmed_dist.data.exams.episodes import choose_exams
from sslmed_dist.data.exams.folds import fold_exams
from sslmed_dist.data.phantom import write_abdomen
from sslmed_dist.data.scans.nifti import axial_slices, read_canonical
from tests.real_data import real_data

pytest.importorskip("skimage")
CHAOS = [1, 2, 3, 5, 8, 10, 13, 15, 19, 20, 21, 22, 31, 32, 33, 34, 36, 37, 38, 39]
FOLDS = [
    ([1, 2, 3, 5], 8),
    ([8, 10, 13, 15], 19),
    ([19, 20, 21, 22], 31),
    ([31, 32, 33, 34], 36),
    ([36, 37, 38, 39], 1),
]
AFFINE = np.diag([-1.5, 2.0, 7.0, 1.0])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_abdomen(tmp_path_factory.mktemp("abdomen") / "set", exams=7, size=64, slices=9)


def episodes(root: Path, **arguments: Any) -> Any:
    leaf = {"name": "episodes", "root": str(root), "min_size": 24, "workers": 1, "cache": "", **arguments}
    return registry.build(DATASETS, leaf, "data")


def fetch(data: Any, positions: list[int], seed: int = 0, epoch: int = 0, draw: int = 0) -> dict[str, Tensor]:
    chosen = torch.tensor(positions)
    return data.fetch(chosen, seed=seed, epoch=epoch, draw=torch.full_like(chosen, draw))  # type: ignore[no-any-return]


def write_exam(root: Path, number: int, shape: tuple[int, ...] = (30, 24, 4), mask: bool = False) -> np.ndarray:
    root.mkdir(exist_ok=True)
    voxels = np.random.default_rng(number).integers(100, 900, shape).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, AFFINE), root / f"image_{number:02d}.nii.gz")
    if mask:
        organ = np.zeros(shape, np.uint8)
        organ[:, :, 1] = 1
        organ[3, 3, 2] = 2
        nibabel.save(nibabel.Nifti1Image(organ, AFFINE), root / f"label_{number:02d}.nii.gz")
    return voxels


def test_folds_are_those_of_the_published_protocol() -> None:
    assert [fold_exams(CHAOS[::-1], fold) for fold in range(5)] == FOLDS
    assert [fold_exams(range(7), fold, 3) for fold in range(3)] == [([0, 1], 2), ([2, 3], 4), ([4, 5, 6], 0)]
    for exams, folds in itertools.product(range(5, 40), (2, 3, 5)):
        made = [fold_exams(range(exams), fold, folds) for fold in range(folds)]
        assert sorted(n for queries, _ in made for n in queries) == list(range(exams))
        assert all(support not in queries and len(queries) + 1 < exams for queries, support in made)


@pytest.mark.parametrize("numbers, fold, folds", [(range(4), 0, 5), (range(2), 0, 2), (CHAOS, 5, 5), (CHAOS, -1, 5)])
def test_folds_that_cannot_be(numbers: Any, fold: int, folds: int) -> None:
    with pytest.raises(ValueError, match="^fold: "):
        fold_exams(numbers, fold, folds)
    with pytest.raises(ValueError, match="numbers: exam numbers repeat"):
        fold_exams([1, 1, 2, 3, 4], 0)


def test_samples_are_slices_with_superpixels(root: Path) -> None:
    data = episodes(root)
    assert data.images.shape == (63, 1, 64, 64) and data.images.dtype is torch.float32
    assert data.ids[:10].tolist() == [4096 + i for i in range(9)] + [2 * 4096]
    assert data.groups.unique().tolist() == list(range(1, 8)) and data.classes == () and data.task == "single"
    assert data.labels.dtype is torch.int64 and data.labels.eq(-1).all() and data.counts.min() >= 1
    assert data.value_range() == (0.0, 1.0) and data.exams()[2].tolist() == list(range(9, 18))
    sites = DATASETS["abdominal"](str(root), unit="slice").sites
    assert data.sites is not None and sites is not None and data.sites.unique().tolist() == sites.unique().tolist()
    assert data.records[10] == data.records[1] | {"file": "image_02.nii.gz"}
    assert data.records[1]["spacing_mm"] == pytest.approx((1.25, 1.25, 7.7)) and data.records[1]["oriented"]
    voxels = read_canonical(root / "image_03.nii.gz").voxels
    raw = axial_slices(voxels).astype(np.float64)
    expected = (raw - raw.mean()) / raw.std()
    np.testing.assert_allclose(data.images[data.exams()[3], 0].numpy(), expected, atol=1e-5)


def test_every_drawn_mask_is_one_superpixel_and_none_is_empty(root: Path) -> None:
    data = episodes(root, split="train", fold=0)
    assert data.maps.dtype is torch.uint8
    seen: list[set[bytes]] = [set() for _ in range(3)]
    for epoch in range(400):
        batch = fetch(data, [0, 7, 20], epoch=epoch)
        assert batch["mask"].dtype is torch.uint8 and batch["mask"].shape == (3, 64, 64)
        for row, (mask, position) in enumerate(zip(batch["mask"], [0, 7, 20], strict=True)):
            assert len(data.maps[position][mask > 0].unique()) == 1
            seen[row].add(mask.numpy().tobytes())
    assert [len(found) for found in seen] == data.counts[torch.tensor([0, 7, 20])].tolist()  # all come up
    every = fetch(data, list(range(len(data))))
    assert every["mask"].flatten(1).sum(1).min() >= 24 // 4 and int(every["mask"].max()) == 1
    assert torch.equal(every["images"], data.images) and torch.equal(every["index"], data.ids)


def test_fetch_is_a_function_of_its_keys(root: Path) -> None:
    data, half = episodes(root), episodes(root, split="test", test_fraction=0.5)
    first = fetch(data, list(range(30)))["mask"]
    assert torch.equal(fetch(data, [29, 4])["mask"], first[[29, 4]])
    for change in ({"seed": 1}, {"epoch": 1}, {"draw": 1}):
        assert not torch.equal(fetch(data, list(range(30)), **change)["mask"], first)
    position = data.ids.tolist().index(int(half.ids[3]))
    assert torch.equal(fetch(half, [3])["mask"], fetch(data, [position])["mask"])
    batches = Batches(data, global_batch=8, seed=0, workers=2)
    batch = next(iter(batches.epoch(0)))
    assert batch["mask"].flatten(1).any(1).all() and data.to("cpu").fetch is not data.fetch


def test_excluded_organs_are_in_no_training_slice(root: Path) -> None:
    whole = episodes(root, masks="organs")
    for names in (("liver", "spleen"), ("right kidney", "left kidney")):
        data = episodes(root, exclude=names)
        values = torch.tensor([whole.classes.index(name) + 1 for name in names])
        holds = torch.isin(whole.maps, values).flatten(1).any(1)
        assert 0 < int(holds.sum()) < len(whole)
        assert data.ids.tolist() == whole.ids[~holds].tolist()  # every slice of a phantom has superpixels
        assert len(data.records) == len(data) and data.records[0]["slice"] == int(data.ids[0]) % 4096


def test_organs_are_whole_scans_in_the_order_of_the_split(root: Path) -> None:
    data = episodes(root, masks="organs", split="test", fold=4, exclude=("liver",))
    assert data.groups.unique_consecutive().tolist() == [6, 7, 1]  # fold 4: 6, 7 and, wrapped round, the first
    assert len(data) == 27 and data.ids[:9].tolist() == [6 * 4096 + i for i in range(9)]
    batch = fetch(data, [25, 4])
    assert set(batch) == {"images", "organs", "labels", "index", "draw"} and batch["organs"].dtype is torch.uint8
    stored = axial_slices(read_canonical(root / "label_01.nii.gz").voxels)
    assert np.array_equal(batch["organs"][0].numpy(), stored[7])
    assert data.task == "multi" and data.classes == ("liver", "right kidney", "left kidney", "spleen")
    for k in range(4):
        assert torch.equal(data.labels[:, k] > 0, (data.maps == k + 1).flatten(1).any(1))
    parts = {split: episodes(root, split=split, fold=4).groups.unique().tolist() for split in ("train", "test", "all")}
    assert parts == {"train": [2, 3, 4, 5], "test": [1, 6, 7], "all": list(range(1, 8))}


@pytest.mark.parametrize("fold", range(5))
def test_inner_folds_divide_the_training_exams_of_a_fold_alone(fold: int) -> None:
    def chosen(split: str, inner: int | None) -> list[int]:
        return choose_exams(CHAOS, split, (fold, inner), (0.0, 0.0), 0, "set")

    training = chosen("train", None)
    assert len(training) == 15 and not set(training) & {*FOLDS[fold][0], FOLDS[fold][1]}
    for inner in range(5):
        queries, support = fold_exams(training, inner)
        assert chosen("test", inner) == [*queries, support] and chosen("all", inner) == training
        assert sorted(chosen("train", inner) + chosen("test", inner)) == training


def test_resizing_pads_and_keeps_labels_whole(tmp_path: Path) -> None:
    write_exam(tmp_path, 1, (40, 20, 3), mask=True)
    data = episodes(tmp_path, size=20, organs=("a", "b"))
    whole = episodes(tmp_path, masks="organs", size=80, organs=("a", "b"))
    assert data.images.shape == (3, 1, 20, 20) and data.records[0]["spacing_mm"] == (4.0, 3.0, 7.0)
    assert whole.images.shape == (3, 1, 80, 80) and whole.records[0]["spacing_mm"] == (1.0, 0.75, 7.0)
    assert data.images[:, :, :4].std() < 1e-6 and data.images[:, :, 5:15].std() > 0.3  # padded above
    assert data.images[0, 0, 0, 0] == data.images.min()
    for one, count in zip(data.maps, data.counts.tolist(), strict=True):
        assert one.unique().tolist() == list(range(count + 1)) and not one[:5].any()
        assert one[one > 0].long().bincount()[1:].min() >= 24 // 4 // 4  # sides are halved
    assert whole.maps[1].flatten().bincount().tolist() == [80 * 40, 80 * 40]
    assert whole.maps[2].flatten().bincount().tolist() == [80 * 80 - 4, 0, 4] and whole.labels.tolist()[2] == [0, 1]
    write_exam(tmp_path, 2, (20, 20, 3), mask=True)
    with pytest.raises(ValueError, match="slices of 2 sizes .* set size"):
        episodes(tmp_path)
    assert len(episodes(tmp_path, size=16)) == 6


def test_training_needs_no_label_files(tmp_path: Path) -> None:
    write_exam(tmp_path, 1)
    write_exam(tmp_path, 2, mask=True)  # one annotated scan among others
    assert len(episodes(tmp_path)) == 8
    (tmp_path / "label_02.nii.gz").unlink()
    (tmp_path / "sites.csv").write_text("1,5\n2,9\n")
    assert episodes(tmp_path).sites.tolist() == [5] * 4 + [9] * 4
    with pytest.raises(ValueError, match="masks: organs: needs organ masks label_"):
        episodes(tmp_path, masks="organs")
    with pytest.raises(ValueError, match="exclude: liver: needs organ masks label_"):
        episodes(tmp_path, exclude=["liver"])


def test_an_unknown_orientation_and_one_slice(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.random.default_rng(0).integers(100, 900, (24, 24, 1)).astype(np.int16), None)
    image.header["sform_code"], image.header["qform_code"] = 0, 0
    nibabel.save(image, tmp_path / "image_01.nii")
    data = episodes(tmp_path)
    assert len(data) == 1 and data.records[0]["oriented"] is False


def test_the_cache_is_the_users_unless_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written beside the data, which may be mounted read-only."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    write_exam(tmp_path / "set", 1)
    files = sorted((tmp_path / "set").iterdir())
    first = episodes(tmp_path / "set", cache=None)
    assert len(list((tmp_path / "home" / "sslmed" / "superpixels").iterdir())) == 1
    episodes(tmp_path / "set", cache=str(tmp_path / "other"))
    assert len(list((tmp_path / "other").iterdir())) == 1
    assert torch.equal(episodes(tmp_path / "set").maps, first.maps)
    assert sorted((tmp_path / "set").iterdir()) == files


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"masks": "boxes"}, "data.masks: expected one of 'superpixels', 'labelled', 'organs'"),
        ({"exclude": ["heart"]}, "exclude: no organ 'heart'; allowed: liver, right kidney"),
        ({"size": 0}, "size: expected at least 1 pixel, got 0"),
        ({"min_size": 0}, "min_size: expected at least 1"),
        ({"workers": 0}, "data.workers: expected at least 1"),
        ({"fold": 5}, "fold: expected 0 to folds - 1"),
        ({"fold": 0, "split": "val"}, "no split 'val' in a fold; allowed: train, test, all"),
        ({"fold": 0, "val_fraction": 0.2}, "fold: gives the split already; val_fraction 0.2"),
        ({"inner": 0}, "inner: is a fold of the training exams of a fold; set fold, or leave inner out"),
        ({"fold": 0, "inner": 5}, r"inner\.fold: expected 0 to folds - 1"),
        ({"split": "val"}, "no split 'val'; allowed: train, all"),
        ({"body_threshold": 5000.0}, "image_01.nii.gz: no superpixel in it.* data.body_threshold"),
    ],
)
def test_wrong_arguments_are_named(root: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        episodes(root, **arguments)


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        episodes(tmp_path / "gone")
    write_exam(tmp_path, 1, mask=True)
    nibabel.save(nibabel.Nifti1Image(np.ones((30, 24, 4), np.uint8), AFFINE), tmp_path / "label_01.nii.gz")
    with pytest.raises(
        ValueError, match="no slice is left: every one has no superpixel or holds one of exclude: liver"
    ):
        episodes(tmp_path, exclude=["liver"])
    nibabel.save(nibabel.Nifti1Image(np.ones((30, 24, 5), np.uint8), AFFINE), tmp_path / "label_01.nii.gz")
    with pytest.raises(ValueError, match="label_01.nii.gz: shape .* or position differs"):
        episodes(tmp_path, masks="organs")
    nibabel.save(nibabel.Nifti1Image(np.full((30, 24, 4), 90, np.int16), AFFINE), tmp_path / "image_01.nii.gz")
    with pytest.raises(ValueError, match="image_01.nii.gz: the volume is constant .90."):
        episodes(tmp_path)


def test_real_chaos_exam(tmp_path: Path) -> None:
    for name in ("image_39", "label_39"):
        (tmp_path / f"{name}.nii.gz").symlink_to(real_data(f"chaos-t2spir/{name}.nii.gz"))
    data = episodes(tmp_path, min_size=400, size=128, exclude=["right kidney", "left kidney"])
    whole = episodes(tmp_path, masks="organs", size=128)
    assert 0 < len(data) < len(whole) and data.images.shape[1:] == (1, 128, 128)
    assert 10 < data.counts.float().mean() < 40 and whole.labels.sum(0).min() > 0
    kept = torch.isin(whole.ids, data.ids)
    assert not torch.isin(whole.maps[kept], torch.tensor([2, 3])).any()
    assert whole.images.mean().abs() < 0.05 and abs(whole.images.std() - 1) < 0.1
    assert whole.records[0]["spacing_mm"] == pytest.approx((2.5, 2.5, 7.7), abs=0.02)
