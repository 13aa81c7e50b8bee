"""Masks as NIfTI: label maps that rounding has touched, a mask per channel, a file per label."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from sslmed_dist.data.exams.mask_files import read_masks
from sslmed_dist.data.scans.scan import StoredScan

SHAPE, AFFINE = (7, 6, 5), np.diag([-2.0, -2.0, 3.0, 1.0])
SCAN = StoredScan(Path("scan.nii"), np.zeros(SHAPE, np.float32), AFFINE, oriented=True)


def save(path: Path, voxels: NDArray[Any], affine: NDArray[Any] = AFFINE) -> Path:
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return path


def label_map() -> NDArray[np.uint16]:
    values = np.zeros(SHAPE, np.uint16)
    values[1:3, 2:4, 1:4], values[4:6, 0:2, 0:2] = 3, 700
    return values


@pytest.mark.parametrize("shape", [SHAPE, (*SHAPE, 1)])
@pytest.mark.parametrize("off", [0.0, 9e-4, -9e-4])
def test_label_maps(tmp_path: Path, shape: tuple[int, ...], off: float) -> None:
    values = label_map()
    masks = read_masks(
        save(tmp_path / "m.nii.gz", (values + off * (values > 0)).astype(np.float32).reshape(shape)), SCAN
    )
    assert masks.names == {3: "label 3", 700: "label 700"} and masks.shape == SHAPE
    for label in masks.names:
        assert np.array_equal(masks.read(label), values == label)


@pytest.mark.parametrize("value", [1.01, -1.0, 65536.0, 0.5])
@pytest.mark.parametrize("shape", [SHAPE, (*SHAPE, 1)])
def test_values_that_are_no_ids(tmp_path: Path, value: float, shape: tuple[int, ...]) -> None:
    values = np.zeros(SHAPE, np.float32)
    values[1, 1, 1] = value
    path = save(tmp_path / "m.nii.gz", values.reshape(shape))
    with pytest.raises(ValueError, match=f"^{path}: holds values that are no label ids; allowed: whole numbers from 0"):
        read_masks(path, SCAN)


def overlapping() -> NDArray[np.float32]:
    """(I, J, K, 3): the second is empty, the other two overlap."""
    masks = np.zeros((*SHAPE, 3), np.float32)
    masks[1:5, 1:5, 1:4, 0], masks[3:7, 2:6, 2:5, 2] = 1.0, 1.0004
    return masks


def test_a_mask_per_channel(tmp_path: Path) -> None:
    stored = overlapping()
    masks = read_masks(save(tmp_path / "m.nii.gz", stored), SCAN)
    assert masks.names == {1: "label 1", 3: "label 3"} and masks.notices == ("masks overlap; each is used as it is",)
    for label in (1, 3):
        assert np.array_equal(masks.read(label), stored[..., label - 1] > 0.5)


def test_a_background_channel(tmp_path: Path) -> None:
    values = np.searchsorted([0, 3, 700], label_map())
    masks = read_masks(save(tmp_path / "m.nii.gz", np.eye(3, dtype=np.uint8)[values]), SCAN)
    assert list(masks.names) == [1, 2] and masks.notices[0].endswith("the first is taken for the background")
    assert np.array_equal(masks.read(2), label_map() == 700)


def test_channels_that_are_no_masks(tmp_path: Path) -> None:
    path = save(tmp_path / "m.nii.gz", 2 * overlapping())
    with pytest.raises(ValueError, match=f"^{path}: holds values other than 0 and 1 in mask 1 of its fourth axis"):
        read_masks(path, SCAN)


def test_a_file_per_label(tmp_path: Path) -> None:
    stored = overlapping()
    for name, channel in (("liver", 0), ("aorta", 2), ("spleen", 1)):
        save(tmp_path / f"{name}.nii.gz", stored[..., channel])
    masks = read_masks(tmp_path, SCAN)
    assert masks.names == {1: "aorta", 2: "liver"} and masks.notices == ("empty masks: spleen",)
    assert np.array_equal(masks.read(2), stored[..., 0] > 0.5)
    (tmp_path / "._liver.nii.gz").write_bytes(b"what another system leaves")
    assert read_masks(tmp_path, SCAN).names == masks.names
    path = save(tmp_path / "liver.nii", stored[..., 0])
    with pytest.raises(ValueError, match=f"^{path}.*: a second mask called liver"):
        read_masks(tmp_path, SCAN)
    path.unlink()
    path = save(tmp_path / "z.nii.gz", stored[..., :2])
    with pytest.raises(ValueError, match=f"^{path}: expected one mask"):
        read_masks(tmp_path, SCAN)
    path = save(tmp_path / "z.nii.gz", stored[..., 0], np.diag([2.0, 2.0, 3.0, 1.0]))
    with pytest.raises(ValueError, match=f"^{path}: another grid than aorta.nii.gz"):
        read_masks(tmp_path, SCAN)


def test_no_masks(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("nothing")
    for path, message in ((tmp_path / "gone", "no such file"), (text, "no masks in it; allowed: a NIfTI file, ")):
        with pytest.raises(ValueError, match=f"^{path}: {message}"):
            read_masks(path, SCAN)
