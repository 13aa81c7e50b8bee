"""Episodes in one file: the same bits as the folder, with numpy alone, and one line for what is wrong."""

import io
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslmed_dist import cli, registry
from sslmed_dist.data import DATASETS
from sslmed_dist.data.check import inspect
from sslmed_dist.data.exams.exam_archive import ExamArchive, join_bytes, pack_episodes, smallest, split_bytes
from sslmed_dist.data.phantom import write_abdomen
from tests.test_imports import loaded

pytest.importorskip("skimage")
RECIPE = ("min_size=24", "body_threshold=20")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_abdomen(tmp_path_factory.mktemp("abdomen") / "set", exams=7, sites=2, size=48, slices=8)


@pytest.fixture(scope="module")
def packed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "set.npz"
    assert cli.main(["data", "pack", "episodes", str(root), str(out), *RECIPE, "cache=", "--workers", "1"]) == 0
    return out


def episodes(place: Path, **arguments: Any) -> Any:
    leaf = {"name": "episodes", "root": str(place), "min_size": 24, "body_threshold": 20.0, "workers": 1, "cache": ""}
    return registry.build(DATASETS, leaf | arguments, "data")


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"fold": 1, "split": "train", "exclude": ["liver"], "size": 40},
        {"masks": "organs", "fold": 0, "split": "test", "size": 32},
        {"masks": "organs", "split": "val", "val_fraction": 0.3},
    ],
)
def test_a_packed_set_is_the_folder_bit_for_bit(root: Path, packed: Path, arguments: dict[str, Any]) -> None:
    ours, theirs = episodes(packed, **arguments), episodes(root, **arguments)
    assert ours.name == theirs.name and ours.classes == theirs.classes and len(ours) == len(theirs) > 0
    for name in ("ids", "labels", "groups", "sites", "images"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    everything = torch.arange(len(ours))
    keys = {"seed": 3, "epoch": 2, "draw": everything % 3}
    one, other = ours.fetch(everything, **keys), theirs.fetch(everything, **keys)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    for mine, other in zip(ours.records, theirs.records, strict=True):
        assert {**mine, "file": None} == {**other, "file": None}
        assert mine["file"] == f"exam {int(other['file'][6:8]):02d}"


def test_it_is_read_with_the_core_alone(packed: Path, tmp_path: Path) -> None:
    code = (
        "from sslmed_dist.data.exams.episodes import Episodes\n"
        f"a = Episodes({str(packed)!r}, min_size=24, body_threshold=20.0, exclude=('spleen',))\n"
        f"b = Episodes({str(packed)!r}, masks='organs')\n"
        "assert len(a) and len(b) == 56"
    )
    assert loaded(code, "torch", "nibabel", "scipy", "skimage", "pydicom") == ["torch"]


def test_it_says_what_it_is(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "check", str(packed)]) == 0
    out = capsys.readouterr().out
    assert "layout: packed episodes .npz" in out and "exams: 7, 7 with a mask of liver" in out and "slices: 56" in out
    assert "slices: 56 of 48 x 48 pixels, 1.25 x 1.25 x 7.7 mm" in out and "exams per site: 0: 4, 1: 3" in out
    assert "min_size 24" in out and "made by superpixels 1, scikit-image" in out and "slices with organ: liver" in out
    with np.load(packed) as archive:
        head = json.loads(str(archive["episodes"].item()))
        assert "phantom" in archive.files and b"image_0" not in packed.read_bytes()
    assert [exam["number"] for exam in head["exams"]] == list(range(1, 8))


def test_values_come_back_in_the_smallest_type_that_holds_them() -> None:
    for values, kind in (
        ([0, 255], "|u1"),
        ([-1, 300], "<i2"),
        ([0, 60000], "<u2"),
        ([0.5, 1], "<f4"),
        ([-0.0], "<f4"),
    ):
        array = np.array(values, np.float32)
        stored = smallest(array)
        assert stored.dtype.str == kind
        back = join_bytes(split_bytes(stored), kind).astype(np.float32)
        assert np.array_equal(back.view(np.uint32), array.view(np.uint32))


def altered(packed: Path, path: Path, **changes: Any) -> Path:
    """A copy whose head says something else."""
    with np.load(packed) as archive:
        arrays = {name: archive[name] for name in archive.files}
    head = json.loads(str(arrays["episodes"].item())) | changes
    stream = io.BytesIO()
    np.savez(stream, **{**arrays, "episodes": np.array(json.dumps(head))})  # type: ignore[arg-type]
    path.write_bytes(stream.getvalue())
    return path


def test_what_is_wrong_is_one_line(root: Path, packed: Path, tmp_path: Path) -> None:
    torn = tmp_path / "torn.npz"
    torn.write_bytes(packed.read_bytes()[:-2000])
    foreign = tmp_path / "foreign.npz"
    np.savez(foreign, x=np.zeros(3))
    newer, older = (altered(packed, tmp_path / f"v{n}.npz", version=n) for n in (99, "1"))
    bare = tmp_path / "bare"
    shutil.copytree(root, bare)
    for path in bare.glob("label_*"):
        path.unlink()
    unmarked = tmp_path / "unmarked.npz"
    assert cli.main(["data", "pack", "episodes", str(bare), str(unmarked), *RECIPE, "cache=", "--workers", "1"]) == 0
    assert len(episodes(unmarked)) > 0
    cases: tuple[tuple[Path, dict[str, Any], str], ...] = (
        (torn, {}, "torn.npz"),
        (foreign, {}, "foreign.npz: not packed episodes"),
        (newer, {}, r"v99.npz: written by a newer sslmed \(version 99, this program reads version 1\)"),
        (older, {}, "v1.npz: not packed episodes"),
        (tmp_path / "gone.npz", {}, "gone.npz"),
        (
            packed,
            {"min_size": 30},
            "data.min_size: 30 asked for, but .* holds superpixels made with 24; set min_size to",
        ),
        (unmarked, {"exclude": ["liver"]}, "exclude: liver: needs organ masks, and .*unmarked.npz has none of exam 01"),
    )
    for place, arguments, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            episodes(place, **arguments)
        assert "\n" not in str(caught.value)


def test_nothing_is_overwritten(root: Path, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "pack", "episodes", str(root), str(packed)]) == 2
    assert "set.npz: exists already; give another name, or --force" in capsys.readouterr().err
    assert cli.main(["data", "pack", "episodes", str(root), str(tmp_path / "x")]) == 2
    assert "give a name that ends in .npz" in capsys.readouterr().err
    assert cli.main(["data", "pack", "episodes", str(root), str(tmp_path / "x.npz"), "sizes=3"]) == 2
    assert "pack.sizes: unknown key; allowed: root, organs, scale," in capsys.readouterr().err
    assert cli.main(["data", "pack", "episodes", str(root), str(tmp_path / "x.npz"), "--short", "64"]) == 2
    assert "pack: short: for sets of image files" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_same_exams_give_the_same_bytes(root: Path, packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "again.npz"
    assert cli.main(["data", "pack", "episodes", str(root), str(out), *RECIPE, "cache=", "--workers", "1"]) == 0
    assert out.read_bytes() == packed.read_bytes() and [path.name for path in out.parent.iterdir()] == ["again.npz"]


def test_a_failed_write_leaves_nothing(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, target: Path) -> None:
        raise OSError("no space")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(ValueError, match="x.npz: could not be written: no space"):
        pack_episodes(root, tmp_path / "x.npz", min_size=24, body_threshold=20.0, cache="")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("member", ["voxels_2", "organs_2", "superpixels_2"])
def test_a_flipped_byte_is_found(packed: Path, tmp_path: Path, member: str) -> None:
    with zipfile.ZipFile(packed) as archive:
        start = archive.getinfo(f"{member}.npy").header_offset
        size = archive.getinfo(f"{member}.npy").compress_size
    damaged = tmp_path / "damaged.npz"
    data = bytearray(packed.read_bytes())
    data[start + size - 20] ^= 16
    damaged.write_bytes(data)
    assert [line.startswith(f"{damaged}: ") for line in inspect(damaged)[1]] == [True]
    with pytest.raises(ValueError, match=r"damaged.npz: not a readable .npz"):
        episodes(damaged, exclude=["liver"])


def test_an_organ_value_of_257_is_not_taken_for_1(tmp_path: Path) -> None:
    """The stored type may be wider than the one that organs are kept in: nothing wraps."""
    archive = ExamArchive.__new__(ExamArchive)
    archive.place = tmp_path / "a.npz"
    np.savez(archive.place, organs_1=np.array([[[1, 257]]], np.uint16))
    with pytest.raises(ValueError, match="a.npz: exam 01 holds an organ value outside 0 to 1 \\(liver\\)"):
        archive.read_organs(1, (1, 1, 2), ("liver",))
