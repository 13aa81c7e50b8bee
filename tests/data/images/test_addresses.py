"""What an address of a pack or of its cache may be, and what is said of one that may not."""

import shutil
from pathlib import Path
from urllib.parse import quote

import pytest

from sslmed_dist import addresses, config
from sslmed_dist.data import stores
from sslmed_dist.data.images import shard_cache
from sslmed_dist.data.images.shard_cache import at_hand
from sslmed_dist.training import build
from tests import tiny
from tests.data.images.test_shard_cache import Fragile, contents, memory, quick, shards

__all__ = ["memory", "quick", "shards"]  # fixtures


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("s3://user:hunter2@host/pack", "data.root: the address holds a user, a password or a query"),
        ("https://host/pack?sig=hunter2", "data.root: the address holds a user, a password or a query"),
        ("ftp://host/pack", "data.root: ftp:// is not read; allowed: a path, s3://, gs://"),
    ],
)
def test_a_secret_in_an_address_is_refused_and_not_repeated(tmp_path: Path, root: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        tiny.settings(tmp_path, data={"name": "packed", "root": root})
    assert "hunter2" not in str(caught.value)
    assert addresses.without_secrets("at s3://u:p@h/x?y z") == "at s3://h/x z"


def test_addresses_stay_as_they_are_and_what_cannot_be_read_is_one_line(
    memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny.settings(tmp_path, data={"name": "packed", "root": memory, "cache": str(tmp_path / "cache")})
    tree = config.to_tree(settings)
    assert config.paths(tree) == {"data.cache": str(tmp_path / "cache")}, "an address is no path to be made absolute"
    assert len(build.load_data(settings, "train")) == 24
    plain = config.fingerprint(tiny.settings(tmp_path, data={"name": "packed", "root": "/elsewhere"}))
    assert config.fingerprint(config.replace(settings, data={"cache_gib": 3.0})) == plain
    without_cache = tiny.settings(tmp_path, data={"name": "packed", "root": memory})
    with pytest.raises(ValueError, match=f"^data.root: {memory}: needs data.cache, a folder on a disk of this machine"):
        build.load_data(without_cache, "train")
    files = tiny.settings(tmp_path, data={"name": "image_folder", "root": memory})
    with pytest.raises(ValueError, match="image_folder is read from a disk; an address may be of: packed "):
        build.load_data(files, "train")
    find = stores.importlib.util.find_spec
    monkeypatch.setattr(stores.importlib.util, "find_spec", lambda name: None if name == "s3fs" else find(name))
    with pytest.raises(ValueError, match=r"s3:// needs s3fs, which is not installed: pip install 'sslmed-d"):
        at_hand("s3://bucket/pack", str(tmp_path), None)


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("s3://", r"data.root: s3://: names no bucket, host or folder; allowed: s3://NAME/folder"),
        ("file:///", r"data.root: file:///: names no bucket, host or folder"),
        (
            "file://fileserver/pack",
            r"data.root: file://fileserver/pack: file:// begins with a host; allowed: file:///a",
        ),
        ("file://localhost", r"data.root: file://localhost: file:// begins with a host"),
        ("s3://b/my%20pack", r"data.root: s3://b/my%20pack: holds %20, as links do; .* with ' ' in its place"),
        ("memory://b%2fpack", r"data.root: memory://b%2fpack: holds %2f, .* with '/' in its place"),
    ],
)
def test_an_address_that_names_nothing_here_is_refused(tmp_path: Path, root: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.settings(tmp_path, data={"name": "packed", "root": root})


@pytest.mark.parametrize("host", ["", "localhost"])
def test_a_file_address_is_a_path_of_this_machine(shards: Path, tmp_path: Path, host: str) -> None:
    place = tmp_path / "my pack 100%"
    shutil.copytree(shards, place)
    address = f"file://{host}{quote(str(place))}"
    assert tiny.settings(tmp_path, data={"name": "packed", "root": address}).data["root"] == address
    assert at_hand(address, None, None) == place and "%20" in address
    assert contents(at_hand(address, str(tmp_path / "cache"), None)) == contents(shards)


@pytest.mark.parametrize(("content", "words"), [(b"{", "not JSON"), (b"\xff", "not a text file"), (b"{}", "not a")])
def test_an_address_keeps_its_slashes_in_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, words: str
) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "pack.json").write_bytes(content)
    monkeypatch.setattr(shard_cache, "open_store", lambda root: Fragile(tmp_path / "pack", {}))
    with pytest.raises(ValueError, match=f"^s3://bucket/pack/pack.json: .*{words}"):
        at_hand("s3://bucket/pack", str(tmp_path / "cache"), None)


@pytest.mark.parametrize("inside", [".", "copies"])
def test_a_cache_lies_on_this_machine_and_outside_of_the_pack(shards: Path, inside: str) -> None:
    with pytest.raises(ValueError, match=r"^data\.cache: s3://b/cache: is an address; allowed: a path of this machine"):
        at_hand(shards, "s3://b/cache", None)
    before = sorted(shards.rglob("*"))
    with pytest.raises(ValueError, match="lies in the pack .* itself; allowed: a folder outside it"):
        at_hand(shards, str(shards / inside), None)
    assert sorted(shards.rglob("*")) == before


def test_a_refused_connection_is_no_absent_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(stores, "PAUSE_S", 0.0)
    with pytest.raises(ValueError, match=r"cannot be read: Client\w*Error: .*tried 5 times"):
        at_hand("http://127.0.0.1:9/pack", str(tmp_path / "cache"), None)
