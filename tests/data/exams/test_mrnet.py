import numpy as np
import pytest
import torch

from sslmed_dist.data import DATASETS, Subset
from sslmed_dist.training.build import moments

LABELS = ("abnormal", "acl", "meniscus")


def write_mrnet(root, train=5, valid=3, labels=True):
    number = 0
    for folder, count in (("train", train), ("valid", valid)):
        for plane in ("axial", "coronal", "sagittal"):
            place = root / folder / plane
            place.mkdir(parents=True)
            for i in range(number, number + count):
                stack = np.zeros((3 + i, 256, 256), np.uint8) + np.arange(3 + i, dtype=np.uint8)[:, None, None]
                stack[:, 0, 0] = 200 + i
                np.save(place / f"{i:04d}.npy", stack)
        for k, name in enumerate(LABELS if labels else ()):
            text = "".join(f"{i:04d},{(i >> k) & 1}\n" for i in range(number, number + count))
            (root / f"{folder}-{name}.csv").write_text(text)
        number += count
    return root


def mrnet(root, **arguments):
    return DATASETS["mrnet"](root=str(root), **arguments)


def test_exams_labels_and_keyed_slices(tmp_path):
    root = write_mrnet(tmp_path)
    train, val = mrnet(root), mrnet(root, split="val", plane="axial")
    assert train.ids.tolist() == [0, 1, 2, 3, 4] and val.ids.tolist() == [5, 6, 7]
    assert val.labels.tolist() == [[1, 0, 1], [0, 1, 1], [1, 1, 1]] and val.classes == LABELS
    assert mrnet(root, split="all").ids.tolist() == list(range(8))
    positions = torch.tensor([2, 0])
    seen = set()
    for epoch in range(40):
        batch = val.fetch(positions, seed=1, epoch=epoch, draw=torch.zeros(2, dtype=torch.int64))
        assert batch["images"].shape == (2, 1, 256, 256) and batch["images"].dtype == torch.uint8
        assert batch["images"][:, 0, 0, 0].tolist() == [207, 205]
        alone = val.fetch(positions[1:], seed=1, epoch=epoch, draw=torch.zeros(1, dtype=torch.int64))
        assert torch.equal(alone["images"][0], batch["images"][1])
        seen.add(int(batch["images"][1, 0, 5, 5]))
    assert seen == set(range(8))


def test_without_label_files_the_set_is_unlabelled(tmp_path):
    data = mrnet(write_mrnet(tmp_path, labels=False))
    assert data.labels.tolist() == [-1] * 5 and data.classes == ()


def test_sites(tmp_path):
    write_mrnet(tmp_path)
    (tmp_path / "sites.csv").write_text("".join(f"{i},{i % 2}\n" for i in range(8)))
    data = mrnet(tmp_path, split="val")
    assert data.sites is not None and data.sites.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "train-acl.csv").unlink(), "train-acl.csv: no such file"),
        (lambda root: (root / "train-acl.csv").write_text("0000,1\n"), "train-acl.csv: no label for exam 0001"),
        (lambda root: (root / "train-acl.csv").write_text("id,acl\n"), "train-acl.csv: line 1 is 'id,acl'"),
        (lambda root: np.save(root / "train/sagittal/0002.npy", np.zeros((3, 256, 256))), "0002.npy: expected uint8"),
        (lambda root: (root / "train/sagittal/0002.npy").write_bytes(b"x"), "0002.npy: cannot be read"),
        (
            lambda root: (root / "train/sagittal/0002.npy").write_bytes(
                (root / "train/sagittal/0002.npy").read_bytes()[:9000]
            ),
            "0002.npy: cannot be read, truncated",
        ),
        (
            lambda root: (root / "valid/sagittal/0005.npy").rename(root / "valid/sagittal/0001.npy"),
            "exam 0001 is in train and in valid",
        ),
        (
            lambda root: (root / "train/sagittal/0002.npy").rename(root / "train/sagittal/knee.npy"),
            "knee.npy: the file name is not an exam number",
        ),
    ],
)
def test_damage_is_named(tmp_path, spoil, message):
    root = write_mrnet(tmp_path)
    spoil(root)
    with pytest.raises(ValueError, match=message):
        mrnet(root)


def test_wrong_folder_and_split_are_named(tmp_path):
    with pytest.raises(ValueError, match="this is not the MRNet layout"):
        mrnet(tmp_path)
    with pytest.raises(ValueError, match="no split 'test'; allowed: train, val, all"):
        mrnet(write_mrnet(tmp_path), split="test")


def test_a_clip_is_sorted_different_slices_keyed_by_exam_and_padded(tmp_path):
    root = write_mrnet(tmp_path)
    data = mrnet(root, split="all", clip=5)
    positions = torch.tensor([6, 0])
    seen = set()
    for epoch in range(60):
        batch = data.fetch(positions, seed=1, epoch=epoch, draw=torch.zeros(2, dtype=torch.int64))
        assert batch["images"].shape == (2, 5, 1, 256, 256) and batch["length"].tolist() == [5, 3]
        alone = data.fetch(positions[:1], seed=1, epoch=epoch, draw=torch.zeros(1, dtype=torch.int64))
        assert torch.equal(alone["images"][0], batch["images"][0])
        numbers = batch["images"][0, :, 0, 5, 5].tolist()  # a slice holds its own number
        assert numbers == sorted(set(numbers)) and len(numbers) == 5
        seen |= set(numbers)
        assert batch["images"][1, :, 0, 5, 5].tolist() == [0, 1, 2, 0, 0] and not batch["images"][1, 3:].any()
    assert seen == set(range(9))


def test_a_clip_of_no_slice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="data.clip: expected a number of slices"):
        mrnet(write_mrnet(tmp_path), clip=0)


def test_moments_of_clips_leave_out_what_pads_them(tmp_path):
    data = mrnet(write_mrnet(tmp_path), clip=5)  # exam i has 3 + i slices, a slice is full of its own number
    images = torch.cat([data.slices(i, torch.arange(min(5, 3 + i))) for i in range(3)]).double() / 255
    short = Subset(data, torch.arange(3))  # of at most five slices, so a clip holds all of them
    assert moments(short, seed=0) == ([round(float(images.mean()), 4)], [round(float(images.std()), 4)])
