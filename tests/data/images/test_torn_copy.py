"""The copy of a pack on a node's disk, of which a file was cut off or removed."""

from pathlib import Path

import pytest

from sslmed_dist.data.images.shard_cache import at_hand
from tests.data.images.test_shard_cache import contents, shards

__all__ = ["shards"]  # a fixture


@pytest.mark.parametrize("name", ["shard-00001.bin", "shard-00002.npz"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_torn_copy_is_mended(
    shards: Path, tmp_path: Path, name: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the files that are whole are not copied again."""
    folder = at_hand(shards, str(tmp_path / "cache"), None)
    whole = contents(folder)
    kept = {path.name: path.stat().st_ino for path in folder.iterdir()}
    data = (folder / name).read_bytes()
    (folder / name).unlink()
    if damage == "cut":
        (folder / name).write_bytes(data[:-5])
    capsys.readouterr()
    assert at_hand(shards, str(tmp_path / "cache"), None) == folder and contents(folder) == whole
    said = capsys.readouterr().err
    assert f"note: data: {name} in {folder}: torn or missing, copied anew" in said and "1 of 8 files" in said
    for path in folder.glob("shard-*"):
        assert path.name == name or path.stat().st_ino == kept[path.name]
