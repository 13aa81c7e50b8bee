"""``data prepare abdomen-ct``: window, crop, labels and places of a CT in the layout of BTCV."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from sslmed_dist.data.exams.abdominal import Abdominal
from sslmed_dist.data.phantom.chaos import write_btcv
from sslmed_dist.data.prepare import PREPARATIONS
from sslmed_dist.data.prepare.abdomen_ct import prepare_ct

Array = NDArray[Any]


@pytest.fixture(scope="module")
def drawing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_btcv(tmp_path_factory.mktemp("drawn") / "src", exams=2, size=320, slices=8)


@pytest.fixture
def source(drawing: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(drawing, tmp_path / "src"))


def load(path: Path) -> tuple[Array, Array]:
    image = nibabel.load(path)
    return np.asarray(image.dataobj), image.affine


def rewrite(path: Path, change: Callable[[Array, Array], tuple[Array, Array]]) -> None:
    voxels, affine = change(*load(path))
    nibabel.Nifti1Image(voxels, affine).to_filename(path)


def image(source: Path) -> Path:
    return source / "imagesTr" / "img0002.nii.gz"


def mask(source: Path) -> Path:
    return source / "labelsTr" / "label0002.nii.gz"


@pytest.mark.parametrize("axes", ["LAS", "RPI", "LPS", "SLA"])
def test_at_its_own_spacing_every_voxel_comes_back_in_its_place(axes: str, source: Path, tmp_path: Path) -> None:
    """256 pixels within the border: nothing is interpolated, whatever the order of the stored axes."""
    raw, place = load(image(source))
    drawn, _ = load(mask(source))
    for path in (image(source), mask(source)):
        stored = nibabel.load(path)
        target = nibabel.orientations.axcodes2ornt(tuple(axes))
        moves = nibabel.orientations.ornt_transform(nibabel.io_orientation(stored.affine), target)
        stored.as_reoriented(moves).to_filename(path)
    drawn[40:44, 40:44, :] = 9  # an organ nobody asked for
    (source / "other").mkdir()
    out = prepare_ct(source, tmp_path / "out")
    voxels, affine = load(out / "image_02.nii.gz")
    labels, same = load(out / "label_02.nii.gz")
    inner = np.s_[32:-32, 32:-32]
    np.testing.assert_allclose(affine[:3, :3], place[:3, :3], atol=1e-4)
    np.testing.assert_allclose(affine[:3, 3], place[:3, :3] @ (32, 32, 0) + place[:3, 3], atol=1e-3)
    assert np.array_equal(affine, same) and voxels.shape == (256, 256, 8) and voxels.dtype == np.int16
    grey = (np.clip(raw[inner].astype(float), -125, 275) + 125) * 255 / 400
    assert np.abs(voxels - grey).max() <= 0.5001 and voxels.max() > 200
    expected = np.zeros_like(labels)
    for theirs, ours in ((6, 1), (2, 2), (3, 3), (1, 4)):
        expected[drawn[inner] == theirs] = ours
    assert np.array_equal(labels, expected)


def test_the_set_is_read_by_abdominal_and_other_names_of_the_folders_do_too(source: Path, tmp_path: Path) -> None:
    rewrite(mask(source), lambda v, a: (np.where(v == 0, 13 * (np.arange(v.shape[2]) == 1), v).astype(np.uint8), a))
    lines: list[str] = []
    out = PREPARATIONS["abdomen-ct"](source, tmp_path / "out", note=lines.append)
    assert Abdominal(out).ids.tolist() == [1, 2] and len(lines) == 2
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["recipe"] == "abdomen-ct" and manifest["masks"] == 2
    assert "img0" not in json.dumps(manifest) and (out / "pictures" / "02.png").is_file()
    moved = tmp_path / "kaggle" / "RawData" / "Training"
    moved.mkdir(parents=True)
    (source / "imagesTr").rename(moved / "img")
    (source / "labelsTr").rename(moved / "label")
    again = prepare_ct(tmp_path / "kaggle", tmp_path / "again")
    assert (again / "image_02.nii.gz").read_bytes() == (out / "image_02.nii.gz").read_bytes()


def unknown(path: Path) -> None:
    stored = nibabel.load(path)
    stored.set_sform(None, 0)
    stored.set_qform(None, 0)
    stored.to_filename(path)


def flat(path: Path) -> None:
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[76 + 4 : 76 + 8] = bytes(4)  # pixdim[1]
    content[252:256] = bytes(4)  # qform_code, sform_code: only the spacing is left
    content[252] = 1
    path.write_bytes(gzip.compress(bytes(content)))


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "flipped mask": (lambda s: rewrite(mask(s), lambda v, a: (v[::-1], a)), "exam 02: .* with columns reversed"),
    "upside down": (lambda s: rewrite(mask(s), lambda v, a: (v[:, :, ::-1], a)), "exam 02: .* with slices reversed"),
    "moved mask": (
        lambda s: rewrite(mask(s), lambda v, a: (v, a + np.array([[0, 0, 0, 9], *[[0] * 4] * 3]))),
        "label0002.nii.gz: .*position differs from its image",
    ),
    "other shape": (lambda s: rewrite(mask(s), lambda v, a: (v[:, :, 1:], a)), "differs from its image"),
    "no mask": (lambda s: mask(s).unlink(), "img0002.nii.gz: has no label0002.nii.gz in labelsTr"),
    "no image": (lambda s: image(s).unlink(), "label0002.nii.gz: has no img0002.nii.gz in imagesTr"),
    "label 14": (lambda s: rewrite(mask(s), lambda v, a: (v + np.uint8(13), a)), "from 0 to 13"),
    "nan": (lambda s: rewrite(image(s), lambda v, a: (v * np.float32(np.nan), a)), "NaN or infinite"),
    "4-D": (lambda s: rewrite(image(s), lambda v, a: (np.stack([v, v], -1), a)), "expected a 3-D volume"),
    "one slice": (lambda s: rewrite(image(s), lambda v, a: (v[:, :, :1], a)), "a 3-D volume of 2 slices or more"),
    "small": (
        lambda s: [rewrite(p, lambda v, a: (v[:60], a)) for p in (image(s), mask(s))],
        r"\(60, 320\) pixels; more than 64 are needed",
    ),
    "truncated": (lambda s: image(s).write_bytes(image(s).read_bytes()[:4000]), "img0002.nii.gz: cannot be read"),
    "unknown": (lambda s: unknown(image(s)), "has neither a qform nor an sform, so the orientation is unknown"),
    "flat": (lambda s: flat(image(s)), "img0002.nii.gz: voxel sizes .0.0, .* must be above 0"),
    "empty": (lambda s: [shutil.rmtree(s / n) for n in ("imagesTr", "labelsTr")], "expected the folders imagesTr and"),
    "no files": (lambda s: [p.unlink() for p in s.rglob("*.nii.gz")], "no image in it; expected img0001.nii.gz"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_wrong_is_one_line_and_nothing_is_written(kind: str, source: Path, tmp_path: Path) -> None:
    harm, message = BROKEN[kind]
    for path in source.rglob("*0001.nii.gz"):
        if kind != "no image":  # one that is left says that it is the mask that is alone
            path.unlink()
    harm(source)
    with pytest.raises(ValueError, match=message) as caught:
        prepare_ct(source, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"src"}
