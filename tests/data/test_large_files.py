"""Large images are examined without copies; text, headers and indices that would fill the memory are not read."""

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sslmed_dist import checkpoint, json_files, weights
from sslmed_dist.data import text_files
from sslmed_dist.data.check import files as check_files
from sslmed_dist.data.images.decode import open_picture


def test_a_large_image_is_examined_in_strips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their height, what is found is the same, and no second copy of the image is made."""
    for number, mode in enumerate(("L", "RGB", "I;16")):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 30, 3) if mode == "RGB" else (40, 30))
        Image.fromarray(pixels.astype(np.uint16 if mode == "I;16" else np.uint8)).save(tmp_path / f"{number}.png")
    small = [tmp_path / f"{number}.png" for number in range(3)]
    whole = [check_files.examine_file(path) for path in small]
    assert [result[1] for result in whole] == ["1 channel 8 bit", "3 channels 8 bit", "1 channel 16 bit"]
    monkeypatch.setattr(check_files, "STRIP", 95)
    assert [check_files.examine_file(path) for path in small] == whole
    monkeypatch.undo()
    Image.new("RGB", (4000, 4000), (1, 1, 1)).save(tmp_path / "large.png")
    tracemalloc.start()
    try:
        assert check_files.examine_file(tmp_path / "large.png")[:3] == ((4000, 4000), "3 channels 8 bit", True)
        assert tracemalloc.get_traced_memory()[1] < 4000 * 4000 * 3
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("turn", [None, *range(1, 9)])
def test_an_image_is_turned_upright(tmp_path: Path, turn: int | None) -> None:
    """As its EXIF tag says; the eight ways put the same corner in another place."""
    exif = Image.Exif()
    if turn is not None:
        exif[0x0112] = turn
    stored = np.arange(12, dtype=np.uint8).reshape(3, 4)
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    flips = {1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], 5: stored.T,
             6: stored.T[:, ::-1], 7: stored.T[::-1, ::-1], 8: stored.T[::-1]}  # fmt: skip
    np.testing.assert_array_equal(np.asarray(open_picture(tmp_path / "a.png")[0]), flips[turn or 1])


def sparse(path: Path, start: bytes, size: int) -> Path:
    """A file that begins with ``start`` and is zeros, which take no place, up to ``size`` bytes."""
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)
    return path


def test_text_and_headers_that_would_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = struct.pack("<Q", 2**25) + b"{"
    for read, path, line in (
        (
            text_files.read_text,
            sparse(tmp_path / "a.csv", b"", 2**28 + 1),
            "268,435,457 bytes, allowed for",
        ),
        (
            text_files.read_json,
            sparse(tmp_path / "a.json", b"[", 2**25 + 1),
            "33,554,433 bytes, allowed for",
        ),
        (json_files.read_object, tmp_path / "a.json", "33,554,433 bytes; at most 33,554,432 are read"),
        (
            weights.read,
            sparse(tmp_path / "a.safetensors", header, 2**26),
            "a header of 33,554,432 bytes; allowed",
        ),
    ):
        with pytest.raises(ValueError, match=f"{path.name}: {line}"):
            read(path, *([str(path)] if read is weights.read else []))
    (tmp_path / "lines").write_text("{}\n" * 9)
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pth")
    monkeypatch.setattr(text_files, "MOST_LINES", 8)
    monkeypatch.setattr(checkpoint, "MOST_INDEX", 8)
    with pytest.raises(ValueError, match="lines: 9 lines; allowed: 8"):
        text_files.read_lines(tmp_path / "lines")
    for load in (checkpoint.load, lambda path: weights.read(path, str(path))):
        with pytest.raises(ValueError, match=r"a.pth: an index of \d+ bytes; allowed: 8"):
            load(tmp_path / "a.pth")
