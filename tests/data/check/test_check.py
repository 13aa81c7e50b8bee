import numpy as np
import pytest

from sslmed_dist.data.check import inspect
from tests.data.exams.test_mrnet import write_mrnet
from tests.data.images.test_folder import save
from tests.data.images.test_medical2d import write_medmnist
from tests.data.images.test_natural import write_cifar10, write_packed
from tests.real_data import real_data


def mentions(lines, *parts):
    return any(all(part in line for part in parts) for line in lines)


def test_cifar_folder(tmp_path):
    folder = write_cifar10(tmp_path, per_file=10)
    lines, problems = inspect(tmp_path)
    assert lines[0] == "layout: CIFAR-10 (torchvision)"
    assert mentions(lines, "train: 50 images, 3 x 32 x 32, 8 bit") and mentions(lines, "test: class 0 1, class 1 1")
    assert problems == []
    (folder / "test_batch").write_bytes(b"x")
    assert mentions(inspect(folder)[1], "test_batch: not a readable pickle")


def test_packed_jpeg(tmp_path):
    path = write_packed(tmp_path / "pack.npz", per_split=(6, 3), broken=4)
    lines, problems = inspect(tmp_path)
    assert lines[0] == "layout: packed JPEG .npz" and mentions(lines, "train: 5 images")
    assert mentions(problems, "train: 1 corrupt image: image 4")
    assert mentions(problems, "constant images")
    path.write_bytes(path.read_bytes()[:900])
    assert mentions(inspect(path)[1], "pack.npz: not a readable .npz")


def test_medmnist_repeats_leaks_and_empty_classes(tmp_path):
    values = {"train": [1, 2, 1, 4], "val": [4, 6, 8], "test": [1, 3, 3]}
    lines, problems = inspect(write_medmnist(tmp_path / "toy.npz", values))
    assert mentions(lines, "val: 3 images, 1 x 5 x 5, 8 bit")
    assert mentions(problems, "train: 1 image repeats an earlier one: image 2")
    assert mentions(problems, "val: 1 image also occurs in train: image 0")
    assert mentions(problems, "test: 1 image also occurs in train: image 0")
    assert mentions(problems, "test: 1 image repeats an earlier one: image 2")
    assert mentions(problems, "val: 1 class without a sample: 1")


def test_image_folder(tmp_path):
    for i in range(3):
        save(tmp_path / "train" / "a" / f"{i}.png", 10 * i, size=(10 + i, 8))
        save(tmp_path / "test" / "b" / f"{i}.png", 10 * i, size=(10 + i, 8))
    save(tmp_path / "train" / "b" / "deep.png", 900, mode="I;16")
    (tmp_path / "train" / "a" / "bad.jpg").write_text("nothing")
    (tmp_path / "notes.txt").write_text("x")
    lines, problems = inspect(tmp_path)
    assert mentions(lines, "train: a 4, b 1") and mentions(lines, "train: width 10 to 12, height 8 to 8")
    assert mentions(lines, "left aside: 1 .txt")
    assert mentions(problems, "test: 1 class without a sample: a")
    assert mentions(problems, "train/a/bad.jpg is corrupt or no image")
    assert mentions(problems, "train: 8-bit and 16-bit images are mixed")
    assert mentions(problems, "test: 3 images also occur in train: test/b/0.png")
    assert mentions(problems, "test: 3 constant images")


def test_unlabelled_images(tmp_path):
    save(tmp_path / "1.png", 5)
    assert mentions(inspect(tmp_path)[0], "all: 1 image without labels")


def test_mrnet(tmp_path):
    root = write_mrnet(tmp_path)
    lines, problems = inspect(root)
    assert lines[0] == "layout: MRNet" and mentions(lines, "valid/axial: 3 exams, 8 to 10 slices of 256 x 256, 8 bit")
    assert mentions(lines, "train-abnormal.csv: 2 of 5 positive")
    assert problems == []
    (root / "train" / "axial" / "0002.npy").unlink()
    (root / "valid" / "axial" / "0006.npy").write_bytes((root / "train" / "axial" / "0001.npy").read_bytes())
    (root / "train-acl.csv").write_text("0000,1\n")
    (root / "valid-acl.csv").unlink()
    np.save(root / "train" / "coronal" / "0000.npy", np.zeros((3, 256, 256), np.uint8))
    problems = inspect(root)[1]
    assert mentions(problems, "train/axial: 1 exam missing: 0002")
    assert mentions(problems, "val axial: 1 exam also occurs in train axial: 0006.npy")
    assert mentions(problems, "train-acl.csv: 4 exams without a label: 0001, 0002, 0003, 0004")
    assert mentions(problems, "valid-acl.csv: no such file")
    assert mentions(problems, "train/coronal: 1 constant exam: 0000.npy")


def test_nifti_exams(tmp_path):
    pytest.importorskip("nibabel")
    from tests.data.exams.test_abdominal import damage_mask_shape, damage_nan, save, write_exams

    root = write_exams(tmp_path)
    lines, problems = inspect(root)
    assert lines[:3] == ["layout: NIfTI exams", "exams: 3, 3 with a mask", "grid: 24 x 24 x 7-8"]
    assert mentions(lines, "spacing mm: 1.5 x 1.5 x 7") and mentions(lines, "axes: left, anterior, superior (3)")
    assert mentions(lines, "slices: 19 with content, 3 empty")
    assert problems == ["slices with organ: 2 classes without a sample: right kidney, left kidney"]
    damage_mask_shape(root)
    (root / "image_11.nii.gz").write_bytes((root / "image_10.nii.gz").read_bytes())
    save(root / "label_11.nii.gz", np.zeros((24, 24, 7), np.uint8))
    problems = inspect(root)[1]
    assert mentions(problems, "label_02.nii.gz: shape") and mentions(problems, "1 volume repeats", "image_11.nii.gz")
    assert mentions(problems, "masks: 1 exam whose mask is empty: image_11.nii.gz")
    damage_nan(root)
    (root / "label_01.nii.gz").unlink()
    problems = inspect(root)[1]
    assert mentions(problems, "NaN") and mentions(problems, "image_01.nii.gz: has no mask")


def test_header_text_is_never_reported(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(np.random.default_rng(0).integers(0, 9, (8, 8, 3)).astype(np.int16), np.eye(4))
    image.header["descrip"] = b"DOE JANE 1970-01-01"
    nibabel.save(image, tmp_path / "image_1.nii.gz")
    lines, problems = inspect(tmp_path)
    assert lines and not mentions([*lines, *problems], "DOE")


def test_what_cannot_be_recognised_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such file or folder"):
        inspect(tmp_path / "absent")
    (tmp_path / "notes.txt").write_text("x")
    for place in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(ValueError, match="not a layout that can be read; allowed: packed set, CIFAR-10"):
            inspect(place)


def test_real_pneumoniamnist():
    problems = inspect(real_data("pneumoniamnist.npz"))[1]
    assert mentions(problems, "train: 18 images repeat") and mentions(problems, "val: 8 images also occur in train")
