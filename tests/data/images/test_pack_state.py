"""A pack that is there: damaged ones are mended, changed images refused, and what is left out is said."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sslmed_dist import cli
from sslmed_dist.data import pack as packing
from tests.data.images.test_packed import KNOBS, contents, leaf, source

__all__ = ["source"]  # a fixture


def says(folder: Path, source: Path, **options: Any) -> list[str]:
    lines: list[str] = []
    packing.pack(leaf(source), folder, note=lines.append, **{**KNOBS, **options})
    return lines


@pytest.mark.parametrize("file", ["shard-00001.bin", "shard-00001.npz"])
@pytest.mark.parametrize("damage", ["cut", "gone", "flipped"])
def test_a_damaged_pack_is_mended(source: Path, tmp_path: Path, damage: str, file: str) -> None:
    folder = packing.pack(leaf(source), tmp_path / "out", **KNOBS)
    whole, path = contents(folder), folder / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.unlink()
    if damage != "gone":
        path.write_bytes(data if damage == "flipped" else data[:-9])
    verify = damage == "flipped" and file.endswith(".bin")  # its size is right
    if verify:
        assert says(folder, source) == [f"{folder}: is packed already"]
    lines = says(folder, source, verify=verify)
    assert lines[0].startswith(f"{path}: ") and lines[0].endswith(": written anew") and contents(folder) == whole
    assert says(folder, source, verify=True) == [f"{folder}: is packed already, all bytes compared"]


def test_a_changed_source_is_seen(source: Path, tmp_path: Path) -> None:
    mine = shutil.copytree(source, tmp_path / "mine")
    folder = packing.pack(leaf(mine), tmp_path / "out", **KNOBS)
    images = sorted((mine / "train" / "n99000003").iterdir())
    os.utime(images[0], (1, 1))  # touched: other times, the same bytes
    with pytest.raises(
        ValueError, match=f"^{folder}: sizes or times of its images have changed since they were packed"
    ):
        says(folder, mine)
    assert says(folder, mine, verify=True) == [f"{folder}: is packed already, all bytes compared"]
    assert says(folder, mine) == [f"{folder}: is packed already"], "the new times are known now"
    shutil.copy(images[1], images[0])
    for options in ({}, {"verify": True}):
        with pytest.raises(ValueError, match="have changed since they were packed; .*--force packs anew"):
            says(folder, mine, **options)
    first = (folder / "shard-00000.bin").read_bytes()
    says(folder, mine, force=True)
    fresh = packing.pack(leaf(mine), tmp_path / "fresh", **KNOBS)
    assert contents(folder) == contents(fresh) and (folder / "shard-00000.bin").read_bytes() != first


def test_an_unfinished_pack_of_a_changed_source(source: Path, tmp_path: Path) -> None:
    """A shard that was written before the change is not kept."""
    mine = shutil.copytree(source, tmp_path / "mine")
    folder = packing.pack(leaf(mine), tmp_path / "out", **KNOBS)
    (folder / "pack.json").unlink()
    images = sorted((mine / "train" / "n99000003").iterdir())
    shutil.copy(images[1], images[0])
    assert contents(packing.pack(leaf(mine), folder, **KNOBS)) == contents(
        packing.pack(leaf(mine), tmp_path / "fresh", **KNOBS)
    )


def test_links_that_lead_nowhere_are_not_left_out_without_a_word(source: Path, tmp_path: Path) -> None:
    mine = shutil.copytree(source, tmp_path / "mine")
    lost = mine / "train" / "n99000003" / "n99000003_9.JPEG"
    lost.symlink_to(tmp_path / "unmounted" / "x.JPEG")
    with pytest.raises(ValueError, match=rf"^{lost}: a link that leads nowhere \(1 of 5 images here\)"):
        packing.pack(leaf(mine), tmp_path / "out", **KNOBS)
    lines: list[str] = []
    folder = {"name": "image_folder", "root": str(mine / "train")}
    packing.pack(folder, tmp_path / "folder", note=lines.append, **KNOBS)
    assert "note: data: left aside: 1 links that lead nowhere" in lines


def test_data_that_is_made_is_not_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "pack", "synthetic", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "pack: synthetic is made and not read, so there is nothing to pack" in capsys.readouterr().err


@pytest.mark.parametrize(("short", "told"), [(16, False), (24, False), (25, True)])
def test_images_that_are_stored_enlarged_are_told_of(short: int, told: bool, tmp_path: Path) -> None:
    for number, size in enumerate([(24, 30), (60, 40), (50, 24)]):
        path = tmp_path / "images" / "a" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(path)
    lines: list[str] = []
    images = {"name": "image_folder", "root": str(tmp_path / "images")}
    packing.pack(images, tmp_path / "out", short=short, note=lines.append)
    line = f"note: data: 2 of the first 3 images are smaller than --short {short} and are stored enlarged"
    assert (line in lines) == told and any("enlarged" in it for it in lines) == told
