"""Archives whose list of members is long or unreadable are one line, whoever opens them."""

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sslmed_dist import checkpoint, outputs
from sslmed_dist.data.npz import archive_names
from sslmed_dist.run_folder import phantom_data
from tests.tiny import settings


def phantom(path: Path) -> bool:
    return phantom_data(settings(path.parent, data={"name": "cifar10_jpeg", "root": str(path)}))


def many_members(path: Path, count: int) -> Path:
    """An archive whose list of members names its first one ``count`` times."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    content = path.read_bytes()
    start = content.index(b"PK\x01\x02")
    entry = content[start : content.index(b"PK\x05\x06")]
    with path.open("wb") as file:
        file.write(content[:start] + entry * count)
        size = len(entry) * count
        # the end record in its 64 bit form, and the plain one that points to it
        file.write(struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, start))
        file.write(struct.pack("<4sIQI", b"PK\x06\x07", 0, start + size, 1))
        file.write(struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, *[0xFFFF] * 2, *[0xFFFFFFFF] * 2, 0))
    return path


OPENERS = (archive_names, checkpoint.verify, phantom)


@pytest.mark.parametrize("read", OPENERS)
def test_a_long_list_of_members_is_not_read(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    with zipfile.ZipFile(many_members(tmp_path / "few.npz", 3)) as archive:
        assert len(archive.infolist()) == 3
    path = many_members(tmp_path / "a.npz", 200_000)
    with pytest.raises(ValueError, match=r"a.npz: .*a list of members of 12,400,000 bytes; allowed: 8,388,608"):
        read(path)
    assert not outputs.known(path, outputs.is_features)  # and so it is not written over


@pytest.mark.parametrize(("place", "value"), [(6, 99), (8, 0x800)])  # a later version of zip; a name in UTF-8, of 0xFF
def test_a_list_of_members_that_cannot_be_read_is_one_line(tmp_path: Path, place: int, value: int) -> None:
    path = many_members(tmp_path / "a.npz", 1)
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\x01\x02")
    struct.pack_into("<H", content, start + place, value)
    content[start + 46] = 0xFF
    path.write_bytes(content)
    for read in OPENERS:
        with pytest.raises(ValueError, match="a.npz: "):
            read(path)
