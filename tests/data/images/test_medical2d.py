import numpy as np
import pytest
import torch

from sslmed_dist.data import DATASETS
from tests.real_data import real_data


def write_medmnist(path, values, labels=None, **extra):
    """values: per split the grey level of each image; equal levels are equal images."""
    arrays = {}
    for split, levels in values.items():
        arrays[f"{split}_images"] = np.array(levels, np.uint8)[:, None, None] + np.eye(5, dtype=np.uint8)
        arrays[f"{split}_labels"] = np.array([[level % 2] for level in levels], np.uint8)
    np.savez(path, **(arrays | extra))
    return path


def test_duplicates_are_dropped_over_all_splits_and_ids_stay(tmp_path):
    values = {"train": [1, 2, 1, 3], "val": [4, 2, 4], "test": [3, 5]}
    path = write_medmnist(tmp_path / "toymnist.npz", values)
    whole = DATASETS["medmnist"](root=str(path), split="all")
    assert whole.ids.tolist() == [0, 1, 3, 4, 8]
    assert whole.dropped == {"train": 1, "val": 2, "test": 1}
    for split, ids in (("train", [0, 1, 3]), ("val", [4]), ("test", [8])):
        assert DATASETS["medmnist"](root=str(path), split=split).ids.tolist() == ids
    kept = DATASETS["medmnist"](root=str(path), split="val", deduplicate=False)
    assert kept.ids.tolist() == [4, 5, 6] and kept.dropped == {"train": 0, "val": 0, "test": 0}


def test_colour_multi_label_and_sites(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "multi.npz",
        train_images=rng.integers(0, 255, (4, 6, 6, 3), dtype=np.uint8),
        train_labels=np.array([[0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]]),
        train_sites=np.array([2, 0, 1, 1]),
    )
    data = DATASETS["medmnist"](root=str(tmp_path), classes=("x", "y", "z"))
    assert data.images.shape == (4, 3, 6, 6) and data.channels == 3
    assert data.task == "multi" and data.labels.dtype == torch.float32 and data.labels.shape == (4, 3)
    assert data.sites is not None and data.sites.tolist() == [2, 0, 1, 1]
    assert data.classes == ("x", "y", "z")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"train_images": np.zeros((2, 4, 4), np.float32)}, "train_images: expected uint8"),
        ({"train_images": np.zeros((2, 4, 4, 4), np.uint8)}, "train_images: expected uint8"),
        ({"train_labels": np.zeros((5, 1), np.uint8)}, "train_labels is uint8 .* expected integers for 2 images"),
        ({"train_labels": np.full((2, 1), -1)}, "train_labels runs from -1"),
        ({"train_labels": np.full((2, 2), 3)}, "train_labels runs from 0 to 3"),
        ({"train_sites": np.zeros(3)}, "train_sites is missing or does not have one number per image"),
    ],
)
def test_mistakes_name_the_array(tmp_path, extra, message):
    path = write_medmnist(tmp_path / "bad.npz", {"train": [1, 2]}, **extra)
    with pytest.raises(ValueError, match=message):
        DATASETS["medmnist"](root=str(path))


def test_other_archives_and_splits_are_refused(tmp_path):
    path = write_medmnist(tmp_path / "toy.npz", {"train": [1, 2]})
    with pytest.raises(ValueError, match="no split 'test'; allowed: train, all"):
        DATASETS["medmnist"](root=str(path), split="test")
    with pytest.raises(ValueError, match="classes names 3 classes, the labels have 2"):
        DATASETS["medmnist"](root=str(path), classes=("a", "b", "c"))
    np.savez(tmp_path / "other.npz", x=np.zeros(2))
    with pytest.raises(ValueError, match="not a MedMNIST archive"):
        DATASETS["medmnist"](root=str(tmp_path / "other.npz"))


def test_real_pneumoniamnist_repeats_and_leaks():
    path = str(real_data("pneumoniamnist.npz"))
    whole = DATASETS["medmnist"](root=path, split="all")
    assert whole.dropped == {"train": 18, "val": 8, "test": 3}
    assert len(whole) == 5856 - 29
    assert len(DATASETS["medmnist"](root=path, split="train")) == 4708 - 18
    assert len(DATASETS["medmnist"](root=path, split="val")) == 524 - 8
    assert len(DATASETS["medmnist"](root=path, split="test", deduplicate=False)) == 624
