"""Checkpoints are written whole or not at all, and read strictly."""

import errno
import json
import os
import pickle
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sslmed_dist import checkpoint
from sslmed_dist.atomic_files import sha256, write_atomically
from sslmed_dist.checkpoint import Checkpoints


def content(value: float = 0.0) -> dict[str, Any]:
    """What a small run would keep."""
    weights = {"w": torch.arange(40.0) + value, "half": torch.ones(3, dtype=torch.bfloat16), "n": torch.tensor(7)}
    return {
        "config": {"run": {"seed": 3}},
        "fingerprint": "abc",
        "method": weights,
        "state": {"step": 5, "scaler": None},
    }


def write(path: Path, value: float = 0.0) -> Path:
    """One checkpoint file."""
    return checkpoint.save(path, kind="training", step=5, **content(value))


def equal(a: Any, b: Any) -> bool:
    """Nested equality with tensors, types included."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return bool(a == b)


def refusal(path: Path) -> str:
    """The line that refuses ``path``, without the file's name, which it begins with."""
    with pytest.raises(ValueError) as caught:
        checkpoint.load(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and "\n" not in line
    return line.removeprefix(f"{path}: ")


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    saved = checkpoint.load(write(tmp_path / "new" / "a.pt"))
    assert equal(saved, {"format": checkpoint.FORMAT, "version": 1, "kind": "training", "step": 5, **content()})
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.pt"]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes: the nearest thing to a full disk that a test can have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def assert_kept(folder: Path, reason: str, line: str) -> None:
    """The failed save said so in one line, left nothing behind and the former file as it was."""
    path = folder / "a.pt"
    assert line == f"{path}: checkpoint could not be written: {reason}; the previous one is kept"
    assert [file.name for file in folder.iterdir()] == ["a.pt"]
    assert equal(checkpoint.load(path)["method"], content()["method"])


@pytest.mark.parametrize("function", ["os.replace", "os.fsync", "torch.save"])
def test_a_save_that_fails_keeps_the_former_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    path = write(tmp_path / "a.pt")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(ValueError) as caught:
        patch.setattr(function, full)
        write(path, 1.0)
    assert_kept(tmp_path, "No space left on device", str(caught.value))


@pytest.mark.parametrize("size", [1, 1000, 2000])
def test_a_disk_that_fills_while_writing_keeps_the_former_file(tmp_path: Path, size: int) -> None:
    path = write(tmp_path / "a.pt")
    with largest_file(size), pytest.raises(ValueError) as caught:
        write(path, 1.0)
    assert_kept(tmp_path, "File too large", str(caught.value))
    path.unlink()
    with largest_file(size), pytest.raises(ValueError) as caught:
        write(path, 1.0)
    assert str(caught.value) == f"{path}: checkpoint could not be written: File too large"


def test_write_atomically(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "a.json"
    write_atomically(path, b"first")
    with largest_file(10), pytest.raises(ValueError) as caught:
        write_atomically(path, b"x" * 100)
    assert str(caught.value) == f"{path}: could not be written: File too large"
    assert path.read_bytes() == b"first" and list(path.parent.iterdir()) == [path]


def test_a_torn_file_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pt")
    data = path.read_bytes()
    for length in [0, 1, 3, *range(4, len(data), 97), len(data) - 1]:
        path.write_bytes(data[:length])
        assert refusal(path) == "torn or damaged checkpoint (File is not a zip file)"


def test_a_flipped_bit_is_refused_or_harmless(tmp_path: Path) -> None:
    """torch does not compare the archive's checksums. Bits that no reader looks at may flip."""
    path = write(tmp_path / "a.pt")
    data, saved = path.read_bytes(), checkpoint.load(path)
    refused = 0
    for position in range(0, len(data), 13):
        broken = bytearray(data)
        broken[position] ^= 1 << (position % 8)
        path.write_bytes(broken)
        try:
            assert equal(checkpoint.load(path), saved), position
        except ValueError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            refused += 1
    assert refused > 30


def test_a_flipped_bit_in_the_weights_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pt")
    data = bytearray(path.read_bytes())
    position = bytes(data).index(torch.arange(40.0).numpy().tobytes()) + 60
    data[position] ^= 1
    path.write_bytes(data)
    assert not torch.equal(torch.load(path, weights_only=True)["method"]["w"], torch.arange(40.0))
    assert refusal(path).startswith("torn or damaged checkpoint (checksum of ")


class Malice:
    """Runs a command when unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("malice",)


def test_what_is_no_checkpoint_of_ours_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ours, perhaps = "not a checkpoint of this program", "damaged, or not a checkpoint of this program"
    path = tmp_path / "a.pt"
    for foreign in ({"w": torch.ones(2)}, {"format": "other", "version": 1}, [1, 2], torch.ones(2)):
        torch.save(foreign, path)
        assert refusal(path) == ours
    path.write_text("epochs: 3\n")
    assert refusal(path) == ours
    path.write_bytes(pickle.dumps(Malice()))
    assert refusal(path) == ours
    torch.save({"format": checkpoint.FORMAT, "version": 1, "config": Malice()}, path)
    assert refusal(path) == f"{perhaps} (UnpicklingError)"
    with path.open("wb") as file:
        np.savez(file, w=np.ones(3))
    assert refusal(path).startswith(perhaps)
    assert not (tmp_path / "malice").exists(), "code in a file was run"
    assert refusal(tmp_path / "gone.pt") == refusal(tmp_path) == "no such checkpoint"


def test_a_newer_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "VERSION", 2)
    path = write(tmp_path / "a.pt")
    monkeypatch.undo()
    assert refusal(path) == "written by a newer version (format 2, this one reads 1)"


def test_load_method_names_what_does_not_fit(tmp_path: Path) -> None:
    module, path = nn.Linear(3, 2), tmp_path / "a.pt"
    weight, bias = torch.ones(2, 3), torch.zeros(2)
    checkpoint.load_method(module, {"weight": weight, "bias": bias}, path)
    assert torch.equal(module.weight, weight)
    for state, line in (
        ({"weight": weight}, "1 missing (bias)"),
        ({"weight": weight.T, "bias": bias}, "1 of another shape (weight (3, 2) in the file and (2, 3) here)"),
        ({"weight": weight, "bias": bias, "a": bias}, "1 unexpected (a)"),
        ({"weight": weight, "bias": bias / 0.0}, "1 not finite (bias)"),
    ):
        with pytest.raises(ValueError) as caught:
            checkpoint.load_method(module, state, path)
        assert str(caught.value) == f"{path}: does not fit this architecture: {line}"


def kept(folder: Path, steps: range, **arguments: Any) -> list[int]:
    """The steps that are still there after saving ``steps``."""
    checkpoints = Checkpoints(folder, **arguments)
    for step in steps:
        checkpoints.save(step, **content(step))
    return checkpoints.steps()


def test_the_newest_are_kept_and_every_nth(tmp_path: Path) -> None:
    assert kept(tmp_path / "a", range(1, 8)) == [6, 7]
    assert kept(tmp_path / "b", range(1, 8), keep_last=1) == [7]
    assert kept(tmp_path / "c", range(1, 10), keep_last=3, keep_every=4) == [4, 7, 8, 9]


def test_latest_is_the_newest_whole_file(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.latest() is None and checkpoints.steps() == []
    for step in (9, 10):
        checkpoints.save(step, **content(step))
    latest = checkpoints.latest()
    assert latest == checkpoints.path(10) and latest.name == "step_000000010.pt"
    assert json.loads((checkpoints.folder / "latest.json").read_text()) == {"file": latest.name, "step": 10}
    saved = checkpoint.load(latest)
    assert (saved["kind"], saved["step"]) == ("training", 10)
    # Killed between the checkpoint and latest.json: the newer file counts.
    checkpoint.save(checkpoints.path(11), kind="training", step=11, **content())
    assert checkpoints.latest() == checkpoints.path(11)


def test_a_run_folder_that_has_gone_is_not_made_anew(tmp_path: Path) -> None:
    """Below a mount point it would be hidden when the storage comes back."""
    gone = Checkpoints(tmp_path / "run" / "checkpoints")
    with pytest.raises(ValueError, match="run: the run folder has gone; is its storage there"):
        gone.save(5, **content())
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_cleared_and_never_read(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, **content())
    left = [tmp_path / ".step_000000002.pt.4711-0.tmp", tmp_path / ".latest.json.4711-12.tmp"]
    (tmp_path / "mine.tmp").write_text("not ours")
    for path in left:
        path.write_bytes(b"PK\x03\x04 torn")
    assert checkpoints.latest() == checkpoints.path(1)
    checkpoints.save(2, **content())
    assert not any(path.exists() for path in left)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "latest.json",
        "mine.tmp",
        "step_000000001.pt",
        "step_000000002.pt",
    ]


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
