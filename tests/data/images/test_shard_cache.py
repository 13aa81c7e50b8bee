"""A pack on another disk or in an object store is copied once per node, checked, resumable, and never half."""

import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sslmed_dist.data import DATASETS, stores
from sslmed_dist.data.images import shard_cache
from sslmed_dist.data.images.shard_cache import at_hand
from sslmed_dist.data.pack import pack
from sslmed_dist.data.phantom import PHANTOMS


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of four shards, 36 images."""
    folder = tmp_path_factory.mktemp("shards")
    root = PHANTOMS["imagenet"](folder / "imagenet", size=48)
    return pack({"name": "imagenet", "root": str(root)}, folder / "pack", short=32, rows=10)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 1,000 bytes and hardly a pause, so that a small pack takes many of both."""
    monkeypatch.setattr(stores, "PART", 1000)
    monkeypatch.setattr(stores, "PAUSE_S", 0.001)


@pytest.fixture
def memory(shards: Path) -> Iterator[str]:
    """The same pack in fsspec's store in memory."""
    import fsspec

    files = fsspec.filesystem("memory")
    for path in shards.iterdir():
        files.pipe(f"/bucket/pack/{path.name}", path.read_bytes())
    yield "memory://bucket/pack"
    files.store.clear()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


@pytest.mark.parametrize("kind", ["path", "memory", "file"])
def test_a_copy_is_the_pack(shards: Path, memory: str, kind: str, tmp_path: Path) -> None:
    root = {"path": str(shards), "memory": memory, "file": f"file://{shards}"}[kind]
    folder = at_hand(root, str(tmp_path / "cache"), None)
    assert contents(folder) == contents(shards) and folder.parent == tmp_path / "cache"
    data, own = DATASETS["packed"](root=root, cache=str(tmp_path / "cache")), DATASETS["packed"](root=str(shards))
    rows = torch.arange(len(own))
    mine, theirs = (each.fetch(rows, seed=0, epoch=0, draw=rows) for each in (data, own))
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    assert data.blobs[0].parent == folder and at_hand(str(shards), None, None) == shards


def test_what_is_there_is_not_copied_again_and_another_pack_has_another_folder(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = str(tmp_path / "cache")
    folder = at_hand(shards, cache, None)
    assert "note: data: 8 of 8 files of" in capsys.readouterr().err
    monkeypatch.setattr(shard_cache, "copy_file", None)
    assert at_hand(shards, cache, None) == folder and capsys.readouterr().err == ""
    monkeypatch.undo()
    other = shutil.copytree(shards, tmp_path / "other")
    (other / "pack.json").write_text((other / "pack.json").read_text() + "\n")
    assert at_hand(other, cache, None) != folder


class Fragile:
    """A store that fails as told: the n-th reading (1, 2, ...) raises an error or gives so many bytes."""

    def __init__(self, folder: Path, faults: dict[int, Any]) -> None:
        self.inner, self.faults, self.calls, self.where = stores.Folder(folder), faults, 0, "s3://bucket/pack"
        self.asked: list[tuple[str, int]] = []

    def size(self, name: str) -> int:
        return self.inner.size(name)

    def read(self, name: str, start: int, end: int) -> bytes:
        self.calls += 1
        self.asked.append((name, start))
        fault = self.faults.get(self.calls)
        if isinstance(fault, Exception):
            raise fault
        data = self.inner.read(name, start, end)
        return data if fault is None else data[:fault]


def fragile(monkeypatch: pytest.MonkeyPatch, folder: Path, faults: dict[int, Any]) -> Fragile:
    store = Fragile(folder, faults)
    monkeypatch.setattr(shard_cache, "open_store", lambda root: store)
    return store


def test_torn_answers_and_timeouts_are_asked_for_again_from_where_they_broke_off(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = {2: 17, 3: 0, 4: TimeoutError("read"), 5: ConnectionResetError("peer"), 9: 999, 20: OSError("503")}
    store = fragile(monkeypatch, shards, faults)
    assert contents(at_hand("s3://bucket/pack", str(tmp_path / "cache"), None)) == contents(shards)
    first = store.asked[1][1]
    assert [start for _, start in store.asked[2:6]] == [first + 17] * 4, "not from the beginning"


@pytest.mark.parametrize(
    ("fault", "calls", "message"),
    [
        (TimeoutError("slow"), 5, r"s3://bucket/pack/shard-00000.npz: cannot be read: TimeoutError: slow \(tried 5 "),
        (0, 5, r"shard-00000.npz: cannot be read: OSError: it ends after 1,000 of [0-9,]+ bytes \(tried 5 times\)$"),
        (FileNotFoundError("gone"), 1, "shard-00000.npz: cannot be read: FileNotFoundError: gone$"),
        (PermissionError("Access Denied"), 1, "cannot be read: PermissionError: Access Denied$"),
        (RuntimeError("https://u:pw@h/x?X-Amz-Signature=ab no"), 5, "RuntimeError: https://h/x no "),
        (RuntimeError("aws_secret_access_key=hunter2 refused"), 5, r"RuntimeError: \(left out\) refused "),
    ],
)
def test_a_store_that_goes_on_failing_is_one_line_and_the_next_start_goes_on(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Any, calls: int, message: str
) -> None:
    parts = -(-(shards / "pack.json").stat().st_size // 1000)  # then comes the first index: one part, and the fault
    store = fragile(monkeypatch, shards, {parts + 1 + n: fault for n in range(1, 9)})
    cache = tmp_path / "cache"
    with pytest.raises(ValueError, match=message) as caught:
        at_hand("s3://bucket/pack", str(cache), None)
    assert store.calls == parts + 1 + calls and "hunter2" not in str(caught.value) and "pw" not in str(caught.value)
    (folder,) = cache.glob("pack-*")
    assert (folder / ".shard-00000.npz.part").stat().st_size == 1000 and not (folder / "pack.json").exists()
    store = fragile(monkeypatch, shards, {})
    assert contents(at_hand("s3://bucket/pack", str(cache), None)) == contents(shards)
    assert (("shard-00000.npz", 1000) in store.asked) and (("shard-00000.npz", 0) not in store.asked)


def test_other_bytes_than_were_packed_are_refused_and_a_spoilt_part_is_read_anew(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = shutil.copytree(shards, tmp_path / "damaged")
    blob = bytearray((damaged / "shard-00001.bin").read_bytes())
    blob[100] ^= 1
    (damaged / "shard-00001.bin").write_bytes(blob)
    cache = tmp_path / "cache"
    with pytest.raises(ValueError, match=r"shard-00001.bin: not the file that pack.json names \(SHA-256 differs\)"):
        at_hand(damaged, str(cache), None)
    (folder,) = cache.glob("pack-*")
    assert not (folder / "shard-00001.bin").exists() and not list(folder.glob(".*.part"))
    (folder / ".shard-00001.bin.part").write_bytes(b"\0" * 500)
    assert contents(at_hand(shards, str(cache), None)) == contents(shards)


def test_a_disk_or_a_limit_that_is_too_small_is_named_before_anything_is_copied(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    (cache / "pack-old").mkdir(parents=True)
    (cache / "pack-old" / "shard-00000.bin").write_bytes(b"x" * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10, 10, 0))  # type: ignore[attr-defined]
    hint = r"allowed: delete what no run reads any more: pack-old \(0.0 GiB\); or another data.cache$"
    with pytest.raises(ValueError, match=rf"data.cache: {cache}: 0.00 GiB to copy, and 0.00 GiB are free; {hint}"):
        at_hand(shards, str(cache), None)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="more than data.cache_gib 0.0001; allowed: a larger limit, or delete"):
        at_hand(shards, str(cache), 0.0001)
    assert not list(cache.glob("pack-*/shard-00001.bin")) and not list(cache.glob("pack-*/.*.part"))
    assert at_hand(shards, str(cache), 1.0).is_dir()
    with pytest.raises(ValueError, match="data.cache_gib: expected a number above 0, got 0"):
        at_hand(shards, str(cache), 0.0)
    with pytest.raises(ValueError, match="data.cache_gib: is the limit of data.cache, which is not given"):
        DATASETS["packed"](root=str(shards), cache_gib=1.0)


SLOW = """
import sys, time
from sslmed_dist.data import stores
from sslmed_dist.data.images.shard_cache import at_hand

stores.PART = 500
read = stores.Folder.read

def slowly(self, name, start, end):
    print(name, start, flush=True)
    time.sleep(0.02)
    return read(self, name, start, end)

stores.Folder.read = slowly
at_hand(sys.argv[1], sys.argv[2], None)
"""


def test_a_copy_that_is_killed_is_not_taken_for_whole_and_goes_on(shards: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    command = [sys.executable, "-c", SLOW, str(shards), str(cache)]
    copying = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert copying.stdout is not None
    for line in copying.stdout:
        if line.startswith("shard-00000.bin") and int(line.split()[1]) >= 2000:
            break
    copying.send_signal(signal.SIGKILL)
    copying.wait()
    (folder,) = cache.glob("pack-*")
    with pytest.raises(ValueError, match="pack.json: no such file"):
        DATASETS["packed"](root=str(folder))
    done = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert done == {"shard-00000.npz"} and (folder / ".shard-00000.bin.part").is_file()
    stamp = (folder / "shard-00000.npz").stat().st_mtime_ns
    assert at_hand(shards, str(cache), None) == folder and contents(folder) == contents(shards)
    assert (folder / "shard-00000.npz").stat().st_mtime_ns == stamp


def test_the_workers_of_a_node_copy_once(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Four at once, each with a lock of its own: one copies, three wait."""
    copied, copy = [], shard_cache.copy_file

    def slow(*arguments: Any) -> None:
        copied.append(arguments[1])
        time.sleep(0.02)
        copy(*arguments)

    monkeypatch.setattr(shard_cache, "copy_file", slow)
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(at_hand(shards, str(tmp_path / "cache"), None))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(set(found)) == 1 and len(copied) == len(set(copied)) == 8
    assert contents(found[0]) == contents(shards)
