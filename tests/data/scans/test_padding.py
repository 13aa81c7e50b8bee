"""Padding is what was not measured: stated by DICOM, or standing alone; it changes neither contrast nor masks."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from sslmed_dist.data.exams.abdominal import Abdominal
from sslmed_dist.data.exams.episodes import Episodes
from sslmed_dist.data.exams.exam_series import Preparation
from sslmed_dist.data.exams.exam_store import prepare_exam
from sslmed_dist.data.exams.one_series import read_image, read_one
from sslmed_dist.data.exams.series import read_examination
from sslmed_dist.data.exams.series_stack import read_stack
from sslmed_dist.data.phantom.abdomen import write_abdomen
from sslmed_dist.data.phantom.chaos import write_series
from sslmed_dist.data.scans.padding import fill_padding

AFFINE = np.diag([-1.5, -1.5, 4.0, 1.0])
DRAW = np.random.default_rng(0)
TISSUE = DRAW.normal(40, 60, 60000)
AIR = DRAW.normal(-950, 30, 30000)
ZEROS = np.zeros(30000)


@pytest.mark.parametrize(
    ("parts", "padding", "floor"),
    [
        ((ZEROS, np.abs(TISSUE)), [-2000.0] * 9000, 0.0),  # MR
        ((AIR, TISSUE), [-2000.0] * 20000, AIR.min()),  # CT, a round field of view
        ((AIR, TISSUE), [-3024.0] * 9000 + [-2000.0] * 9000, AIR.min()),
        ((ZEROS, np.abs(TISSUE)), [-32768.0], 0.0),  # a single voxel
        ((ZEROS, np.abs(TISSUE)), [np.nan] * 500, 0.0),  # stated
        ((ZEROS + 5, np.abs(TISSUE) + 5), [np.nan] * 500 + [-2000.0] * 500, 5.0),
        ((AIR, TISSUE), [], None),  # nothing to do from here on
        ((TISSUE,), [], None),
        ((ZEROS - 0.5, TISSUE / 60), [], None),  # standardised
        ((ZEROS, 300 + np.abs(TISSUE)), [], None),  # skull-stripped
        ((ZEROS,), [], None),
    ],
)
def test_what_stands_alone_below_all_others_is_padding(
    parts: tuple[NDArray[Any], ...], padding: list[float], floor: float | None
) -> None:
    clean = np.concatenate(parts)
    voxels = np.concatenate([padding, clean]).astype(np.float32)
    before = voxels.copy()
    lines = fill_padding(voxels)
    count = len(padding)
    assert np.array_equal(voxels[count:], before[count:]), "what was measured stays, bit for bit"
    assert (voxels[:count] == np.float32(0 if floor is None else floor)).all()
    assert len(lines) == len(set(np.isnan(padding))) and all(line.startswith("padding, ") for line in lines)


def test_nothing_but_padding_is_refused() -> None:
    with pytest.raises(ValueError, match="all of its voxels are padding"):
        fill_padding(np.full(8, np.nan, np.float32))


def padded_series(folder: Path, value: int, dtype: Any = np.int16, **tags: Any) -> NDArray[np.float32]:
    """A series whose first column holds the padding ``value``; the voxels as they should be read."""
    voxels = np.arange(100, 100 + 8 * 6 * 4).reshape(8, 6, 4).astype(dtype)
    voxels[0] = value
    write_series(folder, voxels, AFFINE, slope=2.0, intercept=-24.0, tags={"SeriesDescription": "t2"})
    for path in sorted(folder.iterdir()):
        header = pydicom.dcmread(path)
        for name, number in tags.items():
            header.add_new(name, "US" if number >= 2**15 or header.PixelRepresentation == 0 else "SS", number)
        header.save_as(path)
    expected = voxels.astype(np.float32) * 2 - 24
    expected[0] = expected[1:].min()
    return expected


STATED: dict[str, tuple[int, Any, dict[str, int]]] = {
    "signed": (-2000, np.int16, {"PixelPaddingValue": -2000}),
    "without its sign": (-2000, np.int16, {"PixelPaddingValue": 65536 - 2000}),
    "unsigned": (63536, np.uint16, {"PixelPaddingValue": 63536}),
    "a value among the others": (7, np.int16, {"PixelPaddingValue": 7}),
    "range": (9, np.int16, {"PixelPaddingValue": 5, "PixelPaddingRangeLimit": 12}),
    "range downwards": (9, np.int16, {"PixelPaddingValue": 12, "PixelPaddingRangeLimit": 5}),
    "not stated": (-2000, np.int16, {}),
}


@pytest.mark.parametrize("kind", STATED)
def test_padding_of_dicom_is_replaced_in_every_reader(kind: str, tmp_path: Path) -> None:
    value, dtype, tags = STATED[kind]
    expected = padded_series(tmp_path, value, dtype, **tags)
    scan, notices = read_image(tmp_path)
    assert np.array_equal(scan.voxels, expected)
    how = "padding, by values far below" if kind == "not stated" else "padding, as the files state it: 12 % of the"
    assert any(line.startswith(how) for line in notices)
    files = sorted(tmp_path.iterdir())
    assert read_stack(read_examination(files).series[0]).min() == expected.min()
    exam, _ = prepare_exam(("p", files, ""), Preparation({"axial": ""}, size=8, mm=1.5))
    assert exam.slots["axial"].facts["notices"][-1].startswith(how)


def pad(path: Path) -> None:
    image: Any = nibabel.load(path)
    voxels = np.asarray(image.dataobj).copy()
    for i in (slice(None, 6), slice(-6, None)):
        for j in (slice(None, 6), slice(-6, None)):
            voxels[i, j] = -2000
    nibabel.save(nibabel.Nifti1Image(voxels, image.affine, image.header), path)


def test_padding_of_nifti_changes_no_training_sample(tmp_path: Path) -> None:
    write_abdomen(tmp_path / "a", exams=2, sites=1, size=48, slices=8, seed=1)
    write_abdomen(tmp_path / "b", exams=2, sites=1, size=48, slices=8, seed=1)
    pad(tmp_path / "b" / "image_02.nii.gz")
    clean, padded = (Abdominal(tmp_path / name) for name in "ab")
    assert (clean.images - padded.images)[..., 6:-6].abs().max() < 0.02 and clean.notices == ()
    assert padded.notices == ("1 exam with padding: values far below all others, set to the lowest of these",)
    clean, padded = (Episodes(tmp_path / name, masks="organs", cache="") for name in "ab")
    assert (clean.images - padded.images)[..., 6:-6].abs().max() < 0.1 and padded.notices and not clean.notices


def test_labels_are_never_padding(tmp_path: Path) -> None:
    """A label map, read as it is: its values are names and no measures."""
    labels = np.zeros((6, 6, 4), np.int16)
    labels[2:4, 2:4] = [-2000, 1, 2, 300]
    nibabel.save(nibabel.Nifti1Image(labels, AFFINE), tmp_path / "mask.nii.gz")
    assert np.array_equal(read_one(tmp_path / "mask.nii.gz")[0].voxels, labels)


def philips(folder: Path, scales: list[float]) -> None:
    """Slices of equal tissue that were stored with other scales."""
    for path, scale in zip(sorted(folder.iterdir()), scales, strict=True):
        header = pydicom.dcmread(path)
        block = header.private_block(0x2005, "Philips MR Imaging DD 001", create=True)
        block.add_new(0x0E, "FL", scale / 2.0)  # x RescaleSlope 2 = scale
        block.add_new(0x0D, "FL", 0.0)
        header.save_as(path)


@pytest.mark.parametrize(
    ("scales", "line"),
    [
        ([4.0] * 4, "Philips' private scales are equal, and are not used"),
        ([4.0, 4.0, 8.0, 2.0], "Philips' private scales differ between its slices (2 to 8) and are used"),
    ],
)
def test_private_scales_are_used_where_slices_differ(scales: list[float], line: str, tmp_path: Path) -> None:
    voxels = np.arange(100, 100 + 8 * 6 * 4).reshape(8, 6, 4).astype(np.int16)
    write_series(tmp_path, voxels, AFFINE, slope=2.0, intercept=-24.0)
    philips(tmp_path, scales)
    scan, notices = read_image(tmp_path)
    factors = np.ones(4) if len(set(scales)) == 1 else np.array(scales)
    np.testing.assert_allclose(scan.voxels, (voxels * 2.0 - 24.0) / factors, rtol=1e-6)
    assert line in notices
