"""``data prepare``: what comes out lies where it lay, is what it was, and is there as a whole or not at all."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from torchvision.io import read_image, write_png

from sslmed_dist.data.exams.abdominal import ORGANS, Abdominal
from sslmed_dist.data.phantom.abdomen import abdomen_volume
from sslmed_dist.data.phantom.chaos import centred, write_chaos, write_patient
from sslmed_dist.data.phantom.scanner import scanner
from sslmed_dist.data.prepare import PREPARATIONS
from sslmed_dist.data.prepare.abdomen_ct import prepare_ct
from sslmed_dist.data.prepare.chaos import prepare_chaos
from sslmed_dist.randomness import key
from tests.data.scans.test_dicom import turned
from tests.real_data import real_data

Array = NDArray[Any]


def drawn(size: int = 64, slices: int = 12) -> tuple[Array, Array]:
    return abdomen_volume(key(0, "abdomen", 1), scanner(0, 0), size=size, slices=slices)


@pytest.fixture(scope="module")
def drawing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chaos(tmp_path_factory.mktemp("drawn") / "src", exams=2, size=64, slices=12, prepared=True)


@pytest.fixture
def source(drawing: Path, tmp_path: Path) -> Path:
    """Two patients of one's own to spoil."""
    return Path(shutil.copytree(drawing, tmp_path / "src"))


def load(path: Path) -> tuple[Array, Array]:
    image = nibabel.load(path)
    return np.asarray(image.dataobj), image.affine


def at_places(volume: Array, place: Array, source: Array, affine: Array, order: int) -> Array:
    """``volume`` with affine ``place``, read where the voxels of ``source`` with ``affine`` lie."""
    index = np.stack(np.meshgrid(*map(np.arange, source.shape), indexing="ij"), -1) @ affine[:3, :3].T + affine[:3, 3]
    found = (index - place[:3, 3]) @ np.linalg.inv(place[:3, :3]).T
    result: Array = map_coordinates(volume.astype(float), np.moveaxis(found, -1, 0), order=order, mode="nearest")
    return result


def dice(one: Array, other: Array) -> list[float]:
    return [2 * float(((one == k) & (other == k)).sum() / ((one == k).sum() + (other == k).sum())) for k in range(1, 5)]


@pytest.mark.parametrize("angles", [(0.0, 0.0, 0.0), (8.0, -11.0, 17.0)])
@pytest.mark.parametrize("upwards", [True, False])
def test_at_its_own_spacing_every_voxel_comes_back_in_its_place(
    angles: tuple[float, float, float], upwards: bool, tmp_path: Path
) -> None:
    image, mask = drawn(96)
    affine = centred(image.shape, (1.25, 1.25, 7.7))
    affine[:3, :3] = turned(angles) @ affine[:3, :3]
    affine[:3, 3] += (31.4, -27.1, 411.0)
    write_patient(tmp_path / "MR" / "5", image, mask, affine, upwards=upwards)
    out = prepare_chaos(tmp_path, tmp_path / "out")
    voxels, place = load(out / "image_05.nii.gz")
    labels, same = load(out / "label_05.nii.gz")
    assert voxels.shape == (256, 256, 13) and voxels.dtype == np.int16 and labels.dtype == np.uint8
    assert np.array_equal(place, same)
    assert np.array_equal(at_places(labels, place, mask, affine, 0), mask)
    expected = np.minimum(image, np.percentile(image, 99.5))
    np.testing.assert_allclose(at_places(voxels, place, image, affine, 0), expected, atol=0.51)
    assert (voxels[:, :, -1] == image.min()).all(), "the recipe's size goes one slice beyond the scan"


def test_at_another_spacing_the_masks_stay_on_the_organs(tmp_path: Path) -> None:
    image, mask = drawn(200, 30)
    affine = centred(image.shape, (1.6, 1.6, 8.1))
    write_patient(tmp_path / "1", image, mask, affine, upwards=True)
    out = prepare_chaos(tmp_path, tmp_path / "out")
    labels, place = load(out / "label_01.nii.gz")
    assert labels.shape == (256, 256, 32)
    # across 8 mm a mask of one value per voxel is coarse; read back linearly the scores of both grids are comparable
    values = np.stack([at_places(labels == k, place, mask, affine, 1) for k in range(5)])
    assert min(dice(values.argmax(0), mask)) > 0.99
    manifest = json.loads((out / "manifest.json").read_text())["entries"][0]
    for organ, k in zip(ORGANS, range(1, 5), strict=True):
        assert manifest["organs"][organ]["ml"] == pytest.approx((mask == k).sum() * 1.6 * 1.6 * 8.1e-3, rel=0.05)


def test_the_set_is_read_by_abdominal_and_says_what_it_is(source: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    out = PREPARATIONS["chaos"](source, tmp_path / "out", note=lines.append)
    data = Abdominal(out)
    assert data.ids.tolist() == [1, 2] and data.images.shape[1:] == (1, 256, 256)
    assert len(lines) == 2 and lines[0].startswith("exam 01: 256 x 256 x ") and "liver" in lines[0]
    manifest = json.loads((out / "manifest.json").read_text())
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    named = [entry[what] for entry in manifest["entries"] for what in ("image", "label", "picture")]
    assert files == {item["file"] for item in named} | {"manifest.json", "phantom.json"} and len(named) == 6
    for item in named:
        assert hashlib.sha256((out / item["file"]).read_bytes()).hexdigest() == item["sha256"]
    for entry in manifest["entries"]:
        labels, affine = load(out / entry["label"]["file"])
        np.testing.assert_allclose(affine, entry["affine"], atol=1e-4)
        assert entry["spacing_mm"] == [1.25, 1.25, 7.7] and entry["shape"] == list(labels.shape)
        assert entry["orientation"]["margin"] > 1.5 and entry["orientation"]["anatomy"] == []
        assert entry["organs"]["liver"]["voxels"] == int((labels == 1).sum())
        assert entry["organs"]["liver"]["ml"] == pytest.approx((labels == 1).sum() * 1.25 * 1.25 * 7.7e-3, abs=0.01)
    whole = b"".join(path.read_bytes() for path in out.rglob("*.json")).decode()
    assert not any(word in whole for word in ("IMG-", "PHANTOM", "2.25", str(tmp_path)))
    picture = read_image(str(out / "pictures" / "01.png"))
    assert picture.shape == (3, 512, 1024)
    reds = torch.nonzero((picture[0] == 255) & (picture[1] == 64) & (picture[2] == 64))
    blues = torch.nonzero((picture[0] == 64) & (picture[1] == 160) & (picture[2] == 255))
    assert (reds[:, 1] % 256).float().mean() < 128 < (blues[:, 1] % 256).float().mean(), "the right is on the left"
    again = prepare_chaos(source, tmp_path / "again")
    for name in files:
        assert (again / name).read_bytes() == (out / name).read_bytes()


def test_without_masks_images_alone_are_prepared(source: Path, tmp_path: Path) -> None:
    shutil.rmtree(source / "1" / "T2SPIR" / "Ground")
    with pytest.raises(ValueError, match=r"1/T2SPIR/Ground: no such folder, other patients have masks"):
        prepare_chaos(source, tmp_path / "out")
    shutil.rmtree(source / "2" / "T2SPIR" / "Ground")
    out = prepare_chaos(source, tmp_path / "out")
    assert len(list(out.glob("image_*"))) == 2 and not list(out.glob("label_*"))
    assert Abdominal(out).classes == ()


def masks(source: Path, patient: int = 2) -> list[Path]:
    return sorted((source / str(patient) / "T2SPIR" / "Ground").iterdir())


def repaint(path: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    write_png(change(read_image(str(path))).contiguous(), str(path))


def flip_all(source: Path, *axes: int) -> None:
    for path in masks(source):
        repaint(path, lambda picture: picture.flip(axes))


def swap_order(source: Path) -> None:
    files = masks(source)
    pictures = [path.read_bytes() for path in files]
    for path, content in zip(files, reversed(pictures), strict=True):
        path.write_bytes(content)


def mirror(source: Path) -> None:
    """Image and mask still fit, and the patient's sides are changed."""
    for path in (source / "2" / "T2SPIR" / "DICOM_anon").iterdir():
        header = pydicom.dcmread(path)
        header.PixelData = np.ascontiguousarray(header.pixel_array[:, ::-1]).tobytes()
        header.save_as(path)
    flip_all(source, 2)


def coronal(source: Path) -> None:
    for path in (source / "2" / "T2SPIR" / "DICOM_anon").iterdir():
        header = pydicom.dcmread(path)
        x, y, z = header.ImagePositionPatient
        header.ImageOrientationPatient, header.ImagePositionPatient = [1, 0, 0, 0, 0, -1], [x, z, y]
        header.save_as(path)


def grey(value: int) -> Callable[[Path], None]:
    return lambda source: repaint(masks(source)[3], lambda picture: picture.fill_(value))


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "columns": (lambda s: flip_all(s, 2), "exam 02: the mask fits .* with columns reversed"),
    "rows": (lambda s: flip_all(s, 1), "exam 02: the mask fits .* with rows reversed"),
    "both": (lambda s: flip_all(s, 1, 2), "exam 02: the mask fits .* with columns and rows reversed"),
    "slices": (swap_order, "exam 02: the mask fits .* with slices reversed"),
    "all": (lambda s: (flip_all(s, 1, 2), swap_order(s)), "with columns and rows and slices reversed"),
    "mirrored": (mirror, "exam 02: the liver lies to the left of the spleen.* mirrored together"),
    "coronal": (coronal, "2: slices are not axial"),
    "grey": (grey(90), "IMG-0004-00004.png: grey value 90; allowed: 0, 55-70 liver, 110-135 right kidney"),
    "missing": (lambda s: masks(s)[3].unlink(), r"no mask for the slice IMG-0004-00004.dcm \(11 masks, 12 slices\)"),
    "extra": (
        lambda s: shutil.copy(masks(s)[3], masks(s)[3].with_name("IMG-0004-00099.png")),
        "no slice with number 99",
    ),
    "twice": (lambda s: shutil.copy(masks(s)[3], masks(s)[3].with_name("B-00004.png")), "a second one of number 4"),
    "size": (lambda s: repaint(masks(s)[3], lambda p: p[:, :, 2:]), "00004.png: 64 rows x 62, its slice has 64 x 64"),
    "colour": (lambda s: repaint(masks(s)[3], lambda p: p.expand(3, -1, -1)), "00004.png: expected 8-bit grey, got 3"),
    "corrupt": (lambda s: masks(s)[3].write_bytes(b"\x89PNG"), "00004.png: corrupt or no PNG"),
    "empty mask": (lambda s: [repaint(p, lambda q: q.fill_(0)) for p in masks(s)], "exam 02: the mask is empty"),
    "no series": (lambda s: shutil.rmtree(s / "2" / "T2SPIR" / "DICOM_anon"), "DICOM_anon: no such folder"),
    "two numbers": (lambda s: shutil.copytree(s / "2", s / "02"), "a second one of number 2"),
    "no patient": (lambda s: [shutil.rmtree(s / n) for n in "12"], "no patient of CHAOS MR in it"),
    "prepared": (lambda s: (s / "image_01.nii.gz").write_bytes(b""), "a prepared set; preparing it again would clip"),
    "gone": (shutil.rmtree, "no such folder"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_wrong_is_one_line_and_nothing_is_written(kind: str, source: Path, tmp_path: Path) -> None:
    harm, message = BROKEN[kind]
    harm(source)
    with pytest.raises(ValueError, match=message) as caught:
        prepare_chaos(source, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} <= {"src"}


def test_nothing_is_overwritten(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(ValueError, match="nothing is overwritten"):
        prepare_chaos(source, tmp_path / "out")
    (tmp_path / "out" / "mine").unlink()
    assert (prepare_chaos(source, tmp_path / "out") / "image_02.nii.gz").is_file()
    with pytest.raises(ValueError, match="nothing is overwritten"):
        prepare_chaos(source, tmp_path / "out")
    with pytest.raises(ValueError, match="a prepared set"):
        prepare_ct(tmp_path / "out", tmp_path / "twice")


def test_real_scans_written_as_dicom_come_back(tmp_path: Path) -> None:
    root = real_data("chaos-t2spir")
    for number in ("01", "36"):
        (image, affine), (mask, _) = (load(root / f"{what}_{number}.nii.gz") for what in ("image", "label"))
        write_patient(tmp_path / "src" / number, image, mask, affine, upwards=number == "01")
    out = prepare_chaos(tmp_path / "src", tmp_path / "out")
    for number in ("01", "36"):
        (image, affine), (mask, _) = (load(root / f"{what}_{number}.nii.gz") for what in ("image", "label"))
        voxels, place = load(out / f"image_{number}.nii.gz")
        labels, _ = load(out / f"label_{number}.nii.gz")
        np.testing.assert_allclose(place, affine, atol=1e-3)
        count = image.shape[2]
        assert np.array_equal(labels[:, :, :count], mask)
        assert np.abs(voxels[:, :, :count] - np.minimum(image, np.percentile(image, 99.5))).max() <= 0.51
