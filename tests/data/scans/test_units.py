"""The units of NIfTI files, sizes that no scanner makes, and sides that cannot be known."""

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from sslmed_dist.data.check import inspect
from sslmed_dist.data.exams.one_series import read_one
from sslmed_dist.data.exams.series import read_examination
from sslmed_dist.data.phantom.chaos import write_series
from sslmed_dist.data.scans.dicom import read_series
from sslmed_dist.data.scans.nifti import read_canonical, require_stated_orientation

VOXELS = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4)
AFFINE = np.array([[-1.5, 0, 0, 40.0], [0, 2.0, 0, -30.0], [0, 0, 5.0, 7.0], [0, 0, 0, 1]])
READERS = {
    "scan": lambda path: read_one(path)[0].affine,
    "canonical": lambda path: read_canonical(path).affine @ np.diag([-1, 1, 1, 1]),  # turned to the right
    "exam": lambda path: np.diag([*read_examination([path]).series[0].spacing_mm[::-1], 1]),
}


def save(path: Path, *, unit: int = 2, scale: float = 1.0, voxels: NDArray[Any] = VOXELS, **codes: int) -> Path:
    affine = AFFINE.copy()
    affine[:3] *= scale
    image = nibabel.Nifti1Image(voxels, affine)
    image.set_qform(affine, codes.get("qform", 1))
    image.set_sform(affine, codes.get("sform", 1))
    image.header["xyzt_units"] = unit
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("unit", "scale"), [(0, 1.0), (2, 1.0), (1, 0.001), (3, 1000.0), (2 + 8, 1.0), (1 + 16, 0.001)]
)
def test_stated_units_become_millimetres(unit: int, scale: float, reader: str, tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", unit=unit, scale=scale)
    sides = np.linalg.norm(READERS[reader](path)[:3, :3], axis=0)
    np.testing.assert_allclose(sorted(sides), [1.5, 2.0, 5.0], rtol=1e-5)
    scan, notices = read_one(path)
    np.testing.assert_allclose(scan.affine, AFFINE, rtol=1e-5)
    name = {1: "metre", 3: "micron"}.get(unit & 7)
    assert notices == ([f"its unit is the {name}: converted to mm"] if name else [])


@pytest.mark.parametrize(
    ("unit", "scale", "message"),
    [
        (2, 1000.0, "an implausible size: voxels of 1500 x 2000 x 5000 mm, a field of view of 9000 x"),
        (2, 0.001, "an implausible size: voxels of 0.0015 x 0.002 x 0.005 mm"),
        (1, 1.0, "an implausible size: voxels of 1500 x"),
        (3, 1.0, "an implausible size: voxels of 0.0015 x"),
        (5, 1.0, "xyzt_units 5 is no unit of length; allowed: 0, 1, 2, 3"),
    ],
)
def test_sizes_that_no_scanner_makes_are_refused(unit: int, scale: float, message: str, tmp_path: Path) -> None:
    path = save(tmp_path / "image_01.nii.gz", unit=unit, scale=scale)
    for read in (read_one, read_canonical):
        with pytest.raises(ValueError, match=f"^{path}: .*{message}"):
            read(path)
    assert any(message in problem for problem in inspect(tmp_path)[1])
    path.rename(tmp_path / "a.nii.gz")
    report = inspect(tmp_path)
    assert any(message in line for part in report for line in part)


def test_a_series_of_voxels_of_metres_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path, VOXELS, np.diag([1500.0, 1500.0, 5000.0, 1.0]), tags={"SeriesDescription": "t2"})
    for read in (read_series, read_one):
        with pytest.raises(ValueError, match=f"^{tmp_path}.*: an implausible size: voxels of 1500 x 1500 x 5000 mm"):
            read(tmp_path)
    assert any("an implausible size" in problem for problem in inspect(tmp_path)[1])


@pytest.mark.parametrize(
    ("mirrored", "codes", "doubt"),
    [
        (False, {"qform": 1, "sform": 1}, ""),
        (False, {"qform": 0, "sform": 2}, ""),
        (True, {"qform": 0, "sform": 1}, ""),
        (True, {"qform": 1, "sform": 1}, "has a qform and an sform of which one is mirrored"),
        (False, {"qform": 0, "sform": 0}, "has neither a qform nor an sform"),
    ],
)
def test_sides_that_cannot_be_known_are_said(mirrored: bool, codes: Any, doubt: str, tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", **codes)
    if mirrored:
        image: Any = nibabel.load(path)
        other = AFFINE @ np.diag([-1, 1, 1, 1])
        image.set_sform(other, codes["sform"])
        nibabel.save(image, path)
    scan, notices = read_one(path)
    assert (scan.oriented, scan.doubt) == (not doubt, doubt)
    assert notices == ([f"{doubt}: where left and right are is a guess"] if doubt else [])
    if doubt:
        with pytest.raises(ValueError, match=f"^{path}: {doubt}, so the orientation is unknown"):
            require_stated_orientation(path)


def test_a_trailing_dimension_of_one_is_left_away(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", voxels=VOXELS[..., None])
    require_stated_orientation(path)
    assert np.array_equal(read_one(path)[0].voxels, VOXELS)
    assert np.array_equal(read_canonical(path).voxels, VOXELS[::-1])
    assert read_examination([path]).series[0].shape == (4, 5, 6)
    save(path, voxels=np.stack([VOXELS] * 2, -1))
    with pytest.raises(ValueError, match=r"expected a 3-D volume, got shape \(6, 5, 4, 2\)"):
        read_one(path)


@pytest.mark.parametrize("kind", ["rgb", "rgba", "c8", "c16"])
def test_voxels_that_are_no_numbers_are_one_line(kind: str, tmp_path: Path) -> None:
    colours = [(name, "u1") for name in kind.upper()]
    dtype = np.dtype(colours) if kind.startswith("rgb") else np.dtype(kind)
    path = save(tmp_path / "image_01.nii.gz", voxels=np.zeros((6, 5, 4), dtype))
    for read in (read_one, read_canonical, require_stated_orientation):
        with pytest.raises(ValueError, match=f"^{path}: voxels of type .*; allowed: whole or real numbers") as caught:
            read(path)
        assert "\n" not in str(caught.value)
    assert any("allowed: whole or real numbers" in problem for problem in inspect(tmp_path)[1])


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_header_that_claims_fewer_slices_than_the_file_holds_is_refused(name: str, tmp_path: Path) -> None:
    path = save(tmp_path / name)
    content = gzip.decompress(path.read_bytes()) if name.endswith("gz") else path.read_bytes()
    shorter = content[:46] + (3).to_bytes(2, "little") + content[48:]  # dim[3]: 3 slices and not 4
    path.write_bytes(gzip.compress(shorter) if name.endswith("gz") else shorter)
    with pytest.raises(
        ValueError, match=f"^{path}: 60 bytes or more behind its voxels in shape .6, 5, 3.: a damaged header"
    ):
        read_one(path)
