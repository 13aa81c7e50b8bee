"""What ``sslmed segment`` is not given right is one line that names the file, and nothing is written."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from sslmed_dist.data.phantom.chaos import write_series
from sslmed_dist.verbs.segment import tool
from sslmed_dist.verbs.segment.tool import segment
from tests.verbs.segment.test_tool import load, save, write_run

AFFINE = np.diag([-4.0, 4.0, 7.0, 1.0])


def volume(seed: int) -> NDArray[np.int16]:
    return np.random.default_rng(seed).integers(0, 900, (60, 60, 6)).astype(np.int16)


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Any]:
    mask = np.zeros((60, 60, 6), np.uint8)
    mask[20:35, 20:35, 1:5], mask[0, 0, 0] = 2, 9
    return {
        "run": write_run(tmp_path / "run"),
        "support": save(tmp_path / "support.nii.gz", volume(0), AFFINE),
        "support_mask": save(tmp_path / "mask.nii.gz", mask, AFFINE),
        "query": save(tmp_path / "query.nii.gz", volume(1), AFFINE),
        "labels": [2],
        "out": tmp_path / "out",
    }


def patch(path: Path, field: str, value: Any, index: Any = slice(None)) -> None:
    """Change a header's field behind nibabel's back, which would mend it."""
    image: Any = nibabel.load(path)
    header = image.header.copy()
    header[field][index] = value
    content = nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header).to_bytes()
    path.with_suffix("").write_bytes(header.binaryblock + content[len(header.binaryblock) :])
    path.unlink()
    path.with_suffix("").rename(path.with_name(path.name.removesuffix(".gz")))


def nan(path: Path) -> None:
    voxels = volume(1).astype(np.float32)
    voxels[3, 4, 2] = np.nan
    save(path, voxels, AFFINE)


VOLUMES: dict[str, tuple[Callable[[Path], object], str]] = {
    "4-D": (lambda path: save(path, np.ones((6, 6, 6, 2), np.int16), AFFINE), r"expected a 3-D volume, got shape "),
    "NaN": (nan, "1 voxels are NaN or infinite"),
    "one slice": (lambda path: save(path, volume(1)[:, :, :1], AFFINE), r"1 axial slice \(shape \(60, 60, 1\)\)"),
    "constant": (lambda path: save(path, np.full((60, 60, 6), 7, np.int16), AFFINE), r"the volume is constant \(7\)"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:3000]), "cannot be read, truncated or not NIfTI"),
    "text": (lambda path: path.write_text("nothing"), "cannot be read, truncated or not NIfTI"),
    "gone": (lambda path: path.unlink(), "no such file"),
}


@pytest.mark.parametrize("damage", VOLUMES)
@pytest.mark.parametrize("which", ["support", "query"])
def test_volumes(given: dict[str, Any], which: str, damage: str) -> None:
    spoil, message = VOLUMES[damage]
    spoil(given[which])
    with pytest.raises(ValueError, match=f"^{given[which]}: {message}") as caught:
        segment(**given)
    assert "\n" not in str(caught.value) and not given["out"].exists()


@pytest.mark.parametrize("which", ["support", "support_mask", "query"])
def test_zero_spacing_and_singular_affines(given: dict[str, Any], which: str, capfd: Any) -> None:
    for field, value, index, message in (
        ("pixdim", 0.0, 2, r"voxel sizes \[4.0, 0.0, 7.0\] mm; each must be above 0"),
        ("srow_y", 0.0, slice(None), r"voxel sizes \[4.0, 0.0, 7.0\] mm; each must be above 0"),
        ("srow_y", [4.0, 0.0, 0.0, 0.0], slice(None), "voxel sizes|its affine is singular"),
    ):
        path = save(given["out"].parent / f"bad_{field}.nii.gz", load(given[which])[0], AFFINE)
        patch(path, field, value, index)
        with pytest.raises(ValueError, match=f"^{str(path).removesuffix('.gz')}: ({message})"):
            segment(**{**given, which: path.with_name(path.name.removesuffix(".gz"))})
    said = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("note: Reliability of ")]
    assert not given["out"].exists() and said == [], "nibabel's own report stays away"


def test_masks(given: dict[str, Any]) -> None:
    mask = load(given["support_mask"])[0]
    moved = AFFINE.copy()
    moved[2, 3] = 3.0
    for voxels, affine, labels, message in (
        (mask, AFFINE, [3], "holds no label 3; allowed: 2, 9"),
        (0 * mask, AFFINE, [], "the mask is empty"),
        (mask.astype(np.float32) / 4, AFFINE, [], "holds values that are no label ids"),
        (mask[:, :, :5], AFFINE, [2], r"shape \(60, 60, 5\) or position differs from its image .*support.nii.gz"),
        (mask, moved, [2], r"shape \(60, 60, 6\) or position differs from its image "),
        (
            mask[..., None, None],
            AFFINE,
            [2],
            r"expected \(I, J, K\) or \(I, J, K, masks\), got shape \(60, 60, 6, 1, 1\)",
        ),
        (mask, AFFINE, [9], "label 9 fills no pixel of the 64 x 64 slices of 2 mm"),
    ):
        save(given["support_mask"], voxels, affine)
        with pytest.raises(ValueError, match=f"^{given['support_mask']}: {message}"):
            segment(**{**given, "labels": labels}, pixel_mm=2.0)  # the corner lies outside of 128 mm
    assert not given["out"].exists()


def test_queries(given: dict[str, Any], tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("nothing")
    picture = tmp_path / "a.png"
    picture.write_text("nothing")
    twice = tmp_path / "twice"
    for name in ("a.nii", "a.nii.gz"):
        save(twice / name, volume(2), AFFINE)
    for query, message in (
        (empty, "no scan in it; allowed: NIfTI files"),
        (picture, "not a scan; allowed: a NIfTI file"),
        (tmp_path / "gone", "no such file or folder"),
        (twice, "named like a.nii"),
    ):
        with pytest.raises(ValueError, match=f"^{query}(/a.nii.gz)?: {message}"):
            segment(**{**given, "query": query})
    assert not given["out"].exists()


def test_a_torn_dicom_file_is_named(given: dict[str, Any], tmp_path: Path) -> None:
    files = write_series(tmp_path / "exam", volume(1), AFFINE)
    files[2].write_bytes(files[2].read_bytes()[:900])
    with pytest.raises(ValueError, match=str(files[2])):
        segment(**{**given, "query": tmp_path / "exam"})
    assert not given["out"].exists()


def test_what_is_there_is_not_written_over(given: dict[str, Any]) -> None:
    given["out"].mkdir()
    (given["out"] / "query.ctbl").write_text("mine")
    with pytest.raises(ValueError, match="/query.ctbl: exists and is not what this command writes there"):
        segment(**given)
    assert [path.name for path in given["out"].iterdir()] == ["query.ctbl"]


def test_a_failure_while_writing_leaves_nothing(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tool, "write_dicom_seg", full)
    given["query"] = given["out"].parent / "exam"
    write_series(given["query"], volume(1), AFFINE)
    with pytest.raises(ValueError, match="could not be written: No space left on device$"):
        segment(**given, dicom_seg=True)
    assert not given["out"].exists()


def test_models_and_settings(given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"run": tmp_path}, f"^{tmp_path}: neither a checkpoint file nor a run folder"),
        ({"run": write_run(tmp_path / "colour", channels=3)}, "/step_000000001.pt: trained on 3 channels, but a scan"),
        ({"head": {"windows": 2}}, "^head.windows: unknown key; allowed: window, "),
        ({"head": {"name": "unet"}}, "^head.name: 'unet' is unknown; allowed: alpnet, cowpro, panet"),
        ({"pixel_mm": 0.0}, "^pixel_mm: expected a number above 0, got 0.0"),
        ({"window": (5.0, 5.0)}, "^window: expected two numbers, the lower first, got 5 5"),
        ({"series": "("}, r"^--series '\(': not a regular expression: "),
        ({"support_series": "["}, r"^--support-series '\[': not a regular expression: "),
        ({"intensity": "none"}, "^intensity: expected one of auto, clip, keep, got 'none'"),
        (
            {"dicom_seg": True},
            "query.nii.gz: --dicom-seg refers to DICOM files; allowed: queries that are DICOM",
        ),
    )
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            segment(**{**given, **options})
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(ValueError, match=r"^DICOM-SEG needs highdicom: pip install 'sslmed-dist\[dicom\]'$"):
        segment(**given, dicom_seg=True)
    assert not given["out"].exists()


@pytest.mark.parametrize("which", ["support", "query"])
def test_quadrants_need_a_known_orientation(given: dict[str, Any], which: str) -> None:
    for name in ("support", "support_mask") if which == "support" else ("query",):
        patch(given[name], "sform_code", 0, ())
        given[name] = given[name].with_name(given[name].name.removesuffix(".gz"))
    with pytest.raises(ValueError, match=f"^{given[which]}: has neither a qform nor an sform, so left and right "):
        segment(**given, quadrants=True)
    assert not given["out"].exists()
    segment(**given)
    labels, image = load(given["out"] / "query_labels.nii.gz")
    stored = load(given["query"])[1]
    assert np.array_equal(image.affine, stored.affine) and image.header["sform_code"] == stored.header["sform_code"]
