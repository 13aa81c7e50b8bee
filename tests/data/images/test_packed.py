"""Packed sets: the same samples as the source, bits kept, whole or not there, and nothing torn or foreign is read."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslmed_dist import cli
from sslmed_dist.data import DATASETS, Dataset, check
from sslmed_dist.data import pack as packing
from sslmed_dist.data.images.jpeg import decode_jpeg
from sslmed_dist.data.images.packed import Packed
from sslmed_dist.data.images.shard_writing import write_shard
from sslmed_dist.data.images.shards import Form, image_bytes
from sslmed_dist.data.phantom import PHANTOMS
from sslmed_dist.run_folder import phantoms_at
from tests import device_cases
from tests.differences import require_within

KNOBS: dict[str, Any] = {"short": 40, "rows": 10}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ImageNet phantom: 24 and 12 images."""
    return PHANTOMS["imagenet"](tmp_path_factory.mktemp("source") / "imagenet", size=48)


def leaf(source: Path) -> dict[str, Any]:
    return {"name": "imagenet", "root": str(source), "classes": ["n99000004", "n99000001", "n99000003"]}


@pytest.fixture(scope="module", params=["raw", "jpeg"])
def packed(request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of it (18 images), packed in either form."""
    return packing.pack(leaf(source), tmp_path_factory.mktemp("packed") / request.param, form=request.param, **KNOBS)


def fetch(data: Dataset, positions: list[int] | None = None) -> torch.Tensor:
    rows = torch.arange(len(data)) if positions is None else torch.tensor(positions)
    return data.fetch(rows, seed=0, epoch=0, draw=torch.zeros_like(rows))["images"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("split", ["train", "test", "all"])
def test_samples_are_those_of_the_source(packed: Path, source: Path, split: str) -> None:
    arguments = {**leaf(source), "split": split, "size": 40}
    original = DATASETS[arguments.pop("name")](**{**arguments, "classes": tuple(arguments["classes"])})
    ours = DATASETS["packed"](root=str(packed), split=split)
    for name in ("ids", "labels", "groups"):
        assert torch.equal(getattr(ours, name), getattr(original, name))
    assert (ours.classes, ours.channels, ours.name) == (original.classes, original.channels, original.name)
    assert ours.records == original.records and ours.value_range() == original.value_range()
    difference = (fetch(ours).int() - fetch(original).int()).abs()
    assert int(difference.max()) == 0 if packed.name == "raw" else float(difference.float().mean()) < 6


def test_a_jpeg_is_decoded_from_the_stored_bytes(source: Path, tmp_path: Path) -> None:
    folder = packing.pack(leaf(source), tmp_path / "out", **KNOBS)
    data = DATASETS["packed"](root=str(folder), split="all", workers=3)
    blob = np.fromfile(folder / "shard-00001.bin", np.uint8)
    with np.load(folder / "shard-00001.npz") as index:
        start, end = index["offsets"][3:5].tolist()
        assert index["ids"][3] == 13
    image = decode_jpeg(image_bytes(blob, start, end), 3, "image")
    assert min(image.shape[1:]) == 40
    top, left = ((side - 40) // 2 for side in image.shape[1:])
    assert torch.equal(fetch(data, [13])[0], image[:, top : top + 40, left : left + 40])


def test_another_size_and_another_order(packed: Path) -> None:
    data, small = (DATASETS["packed"](root=str(packed), size=size) for size in (None, 20))
    assert torch.equal(fetch(data, [5, 0, 5]), fetch(data)[[5, 0, 5]])
    assert fetch(small).shape == (12, 3, 20, 20) and fetch(small).dtype == torch.uint8
    coarse = torch.nn.functional.avg_pool2d(fetch(data).float(), 2)
    assert float((fetch(small).float() - coarse).abs().mean()) < 12


def test_moved_pickled_and_loaded_it_is_the_same(packed: Path) -> None:
    data = DATASETS["packed"](root=str(packed))
    whole = fetch(data)
    moved, again = data.to("cpu"), pickle.loads(pickle.dumps(data))
    assert torch.equal(fetch(moved), whole) and torch.equal(fetch(again), whole)
    assert isinstance(moved, Packed) and moved.images is None, "on a CPU the memory map stays"
    assert len(pickle.dumps(data)) < 20000
    moved.images = moved.load(torch.device("cpu"))
    assert torch.equal(fetch(moved, [3, 1]), whole[[3, 1]])


@pytest.mark.parametrize(("form", "workers"), [("raw", 1), pytest.param("jpeg", 2, marks=pytest.mark.slow)])
def test_grey_images_and_patients(form: Form, workers: int, tmp_path: Path) -> None:
    root = PHANTOMS["mura"](tmp_path / "mura")
    folder = packing.pack(
        {"name": "mura", "root": str(root)}, tmp_path / "out", form=form, short=32, workers=workers, rows=20
    )
    ours = DATASETS["packed"](root=str(folder), split="test")
    original = DATASETS["mura"](root=str(root), split="test", size=32)
    assert torch.equal(ours.groups, original.groups) and ours.ids.tolist() == list(range(16, 24))
    assert fetch(ours).shape == (8, 1, 32, 32)
    assert float((fetch(ours).float() - fetch(original).float()).abs().max()) <= (0 if form == "raw" else 60)


def test_check_finds_nothing_wrong_and_then_the_damage(packed: Path, tmp_path: Path) -> None:
    lines, problems = check.inspect(packed)
    assert lines[:2] == ["layout: packed set", f"2 shards, {packed.name}, short side 40, of imagenet"] and not problems
    assert "train: 12 images, 3 x 40 x 40, 8 bit" in lines and "test: n99000004 2, n99000001 2, n99000003 2" in lines
    folder = shutil.copytree(packed, tmp_path / "damaged")
    blob = bytearray((folder / "shard-00001.bin").read_bytes())
    blob[100] ^= 255
    (folder / "shard-00001.bin").write_bytes(blob)
    assert any("shard-00001.bin: its bytes are not those that were packed" in line for line in check.inspect(folder)[1])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("shard-00001.bin", lambda data: data[:-1], "shard-00001.bin: .* bytes, expected .*; torn, or of another pack"),
        ("shard-00000.bin", None, "shard-00000.bin: no such file, but pack.json names it"),
        ("shard-00000.npz", lambda data: data[:-7] + b"garbage", "shard-00000.npz: not the index that pack.json names"),
        ("pack.json", lambda data: data[:50], "pack.json: not JSON"),
        ("pack.json", lambda data: b'{"kind": "other"}', "pack.json: not a packed set of version 1"),
        ("pack.json", None, "pack.json: no such file: packing was not finished"),
    ],
)
def test_torn_and_foreign_files_are_refused_by_name(
    packed: Path, tmp_path: Path, name: str, change: Any, message: str
) -> None:
    folder = shutil.copytree(packed, tmp_path / "damaged")
    data = (folder / name).read_bytes()
    (folder / name).unlink()
    if change is not None:
        (folder / name).write_bytes(change(data))
    with pytest.raises(ValueError, match=message):
        DATASETS["packed"](root=str(folder))
    assert any(name in problem for problem in check.inspect(folder)[1])


def test_forced_packing_leaves_no_shard_of_another_pack(source: Path, tmp_path: Path) -> None:
    folder = packing.pack(leaf(source), tmp_path / "out", **KNOBS)
    (folder / "shard-100000.bin").write_bytes(b"of a pack of more shards")
    changed = {**KNOBS, "quality": 30}
    packing.pack(leaf(source), folder, force=True, **changed)
    assert contents(folder) == contents(packing.pack(leaf(source), tmp_path / "new", **changed))


def test_shards_of_another_pack_are_refused(source: Path, tmp_path: Path) -> None:
    first = packing.pack(leaf(source), tmp_path / "first", **KNOBS)
    other = packing.pack(leaf(source), tmp_path / "other", **{**KNOBS, "quality": 30})
    shutil.copy(first / "shard-00000.bin", other / "shard-00000.bin")
    with pytest.raises(ValueError, match="shard-00000.bin: .* bytes, expected"):
        DATASETS["packed"](root=str(other))
    shutil.copy(first / "shard-00000.npz", other / "shard-00000.npz")
    with pytest.raises(ValueError, match="shard-00000.npz: not the index that pack.json names"):
        DATASETS["packed"](root=str(other))
    with pytest.raises(ValueError, match="pack.json: another pack; give an empty or a new folder"):
        packing.pack(leaf(source), first, **{**KNOBS, "quality": 30})
    (first / "pack.json").unlink()
    with pytest.raises(ValueError, match="shard-00000.npz: shard of another pack"):
        packing.pack(leaf(source), first, **{**KNOBS, "quality": 30})


def test_a_failed_run_leaves_nothing_whole_and_the_next_one_ends_with_the_same_files(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = packing.pack(leaf(source), tmp_path / "complete", **KNOBS)
    real, calls = write_shard, []

    def stop_at_second(shard: Any) -> dict[str, Any]:
        calls.append(shard.number)
        if shard.number == 1:
            (shard.folder / f".{shard.stem}.bin.999").write_bytes(b"half")
            raise KeyboardInterrupt
        return real(shard)

    monkeypatch.setattr(packing, "write_shard", stop_at_second)
    said = f"^{tmp_path / 'out'}: 1 of 2 shards are written; the same command goes on with the others$"
    with pytest.raises(KeyboardInterrupt, match=said):
        packing.pack(leaf(source), tmp_path / "out", **KNOBS)
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]
    monkeypatch.undo()
    with pytest.raises(ValueError, match="packing was not finished"):
        DATASETS["packed"](root=str(tmp_path / "out"))
    stamp = (tmp_path / "out" / "shard-00000.bin").stat().st_mtime_ns
    packing.pack(leaf(source), tmp_path / "out", **KNOBS)
    assert contents(tmp_path / "out") == contents(complete)
    assert (tmp_path / "out" / "shard-00000.bin").stat().st_mtime_ns == stamp
    torn = complete / "shard-00000.bin"
    (complete / "pack.json").unlink()
    torn.write_bytes(torn.read_bytes()[:-1])
    packing.pack(leaf(source), complete, **KNOBS)
    assert contents(tmp_path / "out") == contents(complete)


@pytest.mark.slow
def test_killed_with_its_processes_it_resumes_to_the_same_files(tmp_path: Path) -> None:
    """kill -9 of the command in mid-write: its worker processes end too, and what is there is not read as whole."""
    root = PHANTOMS["mhist"](tmp_path / "mhist", train=160, test=40, size=32)
    command = ["data", "pack", "mhist", str(root), str(tmp_path / "out"), "--short", "512", "--rows", "20"]
    started = subprocess.Popen(
        [sys.executable, "-m", "sslmed_dist.cli", *command], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("out/shard-*.npz")) and time.monotonic() < deadline:
        time.sleep(0.01)
    children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
    started.send_signal(signal.SIGKILL)
    started.wait()
    while any(alive(int(child)) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert children and not any(alive(int(child)) for child in children)
    with pytest.raises(ValueError, match="packing was not finished"):
        DATASETS["packed"](root=str(tmp_path / "out"))
    assert cli.main([*command, "--workers", "1"]) == 0
    assert cli.main([*command[:4], str(tmp_path / "again"), *command[5:], "--workers", "1"]) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "again")


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_mistakes_are_refused(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "pack", "imagenet", str(source), str(tmp_path), "clases=x"]) == 2
    assert "data.clases: unknown key; allowed: root, classes, workers, duplicates" in capsys.readouterr().err
    stl10 = PHANTOMS["stl10"](tmp_path / "stl10")
    with pytest.raises(ValueError, match="pack: stl10 is not a set of 8-bit image files"):
        packing.pack({"name": "stl10", "root": str(stl10)}, tmp_path / "out")
    with pytest.raises(ValueError, match="pack: short must be 16 to 4096, got 8"):
        packing.pack(leaf(source), tmp_path / "out", short=8)
    with pytest.raises(ValueError, match="out.npz: image files are packed into a folder; allowed: a name without .npz"):
        packing.pack(leaf(source), tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").exists()
    with pytest.raises(ValueError, match="holds stl10, which is no part of a pack"):
        packing.pack(leaf(source), tmp_path)
    broken = shutil.copytree(source, tmp_path / "broken")
    (broken / "train" / "n99000003" / "n99000003_2.JPEG").write_text("nothing")
    with pytest.raises(ValueError, match="n99000003_2.JPEG is corrupt or no image"):
        packing.pack(leaf(broken), tmp_path / "out", **KNOBS)
    assert not (tmp_path / "out" / "pack.json").exists()
    assert (
        json.loads((packing.pack(leaf(source), tmp_path / "good", **KNOBS) / "pack.json").read_text())["images"] == 18
    )


def test_gpu_decoding_is_refused_where_there_is_none(packed: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    message = "cuda is for jpeg shards" if packed.name == "raw" else "torch sees no CUDA device; allowed here: cpu"
    with pytest.raises(ValueError, match=message):
        DATASETS["packed"](root=str(packed), decode="cuda")


@pytest.mark.gpu
def test_gpu_decoding_gives_the_images_of_the_cpu_to_rounding(tmp_path: Path) -> None:
    pack = device_cases.jpeg_pack(tmp_path)
    images = {device: device_cases.decoded(device, pack) for device in ("cpu", "cuda")}
    require_within(images["cpu"], images["cuda"], device_cases.decoded_tolerance)


def test_a_pack_of_phantoms_is_known_as_one(source: Path, tmp_path: Path) -> None:
    phantoms = tmp_path / "set"
    shutil.copytree(source, phantoms)
    (phantoms / "phantom.json").write_text("{}")
    packing.pack(leaf(phantoms), tmp_path / "out", **KNOBS)
    assert phantoms_at(tmp_path / "out") and DATASETS["packed"](str(tmp_path / "out"), "all").notices
    (phantoms / "phantom.json").unlink()
    packing.pack(leaf(phantoms), tmp_path / "real", **KNOBS)
    assert not phantoms_at(tmp_path / "real")
    assert not DATASETS["packed"](str(tmp_path / "real"), "all").notices
