"""Checkpoints and files that someone else wrote, renamed or inflated: one line each, and the run loses nothing."""

import json
import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from sslmed_dist import checkpoint, json_files
from sslmed_dist.data.pickles import read_pickle
from sslmed_dist.training import job, pretrained
from sslmed_dist.verbs.evaluate import evaluate_run
from tests import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of six steps."""
    return job.train(tiny.settings(tmp_path_factory.mktemp("foreign"))).settings.folder


@pytest.fixture
def file(run: Path, tmp_path: Path) -> Path:
    """A copy of its last checkpoint."""
    return Path(shutil.copy(run / "checkpoints" / "step_000000006.pt", tmp_path / "step_000000006.pt"))


def rewritten(path: Path, change: dict[str, Any]) -> None:
    """The checkpoint with other fields; None takes one out."""
    payload = torch.load(path, weights_only=True) | change
    torch.save({key: value for key, value in payload.items() if value is not None}, path)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        *(
            ({name: None}, f"{name}: expected ")
            for name in ("version", "kind", "config", "fingerprint", "method", "state")
        ),
        ({"version": "1"}, "version: expected a whole number, got str"),
        ({"version": True}, "version: expected a whole number, got bool"),
        ({"config": [1]}, "config: expected text, got list"),
        ({"config": "[" * 100_000}, "config: not valid JSON"),
        ({"kind": "other"}, "kind: expected one of training, encoder, site, got 'other'"),
        ({"method": [1]}, "method: expected tensors by name, got list"),
        ({"method": {3: torch.zeros(1)}}, "method: 3 is no tensor"),
        ({"method": {"a": torch.zeros(1, device="meta")}}, "method: 'a' is no tensor"),
        ({"best": [1]}, "best: expected tensors by name, got list"),
        ({"best": {"a": 1.0}}, "best: 'a' is no tensor"),
        ({"best": {"a": torch.zeros(1, device="meta")}}, "best: 'a' is no tensor"),
        ({"best": {"a": torch.zeros(1).expand(1 << 30)}}, "best: its tensors have 4,294,967,296 bytes"),
        ({"samples": "all"}, "samples: expected an object, got str"),
        ({"samples": {"content": True, "count": 48}}, "samples: has no digest"),
        ({"samples": {"content": 1, "count": 48, "digest": "a"}}, "samples: content: expected bool, got 1"),
        ({"step": 7}, "contradicts its name: it holds step 7"),
    ],
)
def test_every_field_is_named(file: Path, change: dict[str, Any], line: str) -> None:
    rewritten(file, change)
    with pytest.raises(ValueError, match=f"^{re.escape(str(file))}: {re.escape(line)}"):
        checkpoint.load(file)


def test_a_damaged_training_state_names_the_checkpoint(tmp_path: Path) -> None:
    settings = tiny.settings(tmp_path)
    folder = job.train(settings).settings.folder / "checkpoints"
    (folder / "step_000000006.pt").unlink()
    state = torch.load(folder / "step_000000005.pt", weights_only=True)["state"]
    rewritten(folder / "step_000000005.pt", {"state": {**state, "optimizer": {}}})
    other = tiny.settings(tmp_path, run={"name": "other", "continue_from": str(folder.parent)})
    for attempt in (settings, other):
        with pytest.raises(ValueError, match=r"step_000000005\.pt: its training state is damaged: KeyError"):
            job.train(attempt)


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
@pytest.mark.parametrize("fault", ["nan", "inf", "shape"])
def test_momenta_that_cannot_be_are_named_before_the_first_step(tmp_path: Path, optimiser: str, fault: str) -> None:
    settings = tiny.settings(tmp_path, optim={"name": optimiser, "lr": 0.01}, plan={"epochs": 1, "steps_per_epoch": 2})
    folder = job.train(settings).settings.folder / "checkpoints"
    (folder / "step_000000002.pt").unlink()
    file = folder / "step_000000001.pt"
    state = torch.load(file, weights_only=True)["state"]
    momenta = state["optimizer"]["state"][0]
    key = next(key for key, value in momenta.items() if value.ndim)
    momenta[key] = (
        torch.zeros(3)
        if fault == "shape"
        else momenta[key].flatten().index_fill(0, torch.tensor([1]), float(fault)).view_as(momenta[key])
    )
    rewritten(file, {"state": state})
    what = r"of another shape \(" if fault == "shape" else r"not finite \("
    other = tiny.settings(tmp_path, run={"name": "other", "continue_from": str(folder.parent)}, optim=settings.optim)
    for attempt in (settings, other):
        line = rf"step_000000001\.pt: its training state is damaged: optimiser: 1 {what}{key} of encoder\."
        with pytest.raises(ValueError, match=line):
            job.train(attempt)


def test_an_archive_that_has_to_be_inflated_is_refused_unread(file: Path) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * (1 << 24))
    for read in (checkpoint.load, pretrained.load):
        with pytest.raises(ValueError, match="a compressed archive"):
            read(file)


@pytest.mark.parametrize("flag", [0x01, 0x20, 0x40])
def test_an_archive_that_zipfile_cannot_open_is_named(file: Path, flag: int) -> None:
    """A flipped bit says that a member is encrypted, a patch, or strongly encrypted."""
    content = bytearray(file.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + place] |= flag
    file.write_bytes(content)
    for read in (checkpoint.load, pretrained.load):
        with pytest.raises(ValueError, match=rf"^{re.escape(str(file))}: torn or damaged checkpoint \("):
            read(file)


def test_a_checkpoint_under_a_false_name_costs_the_run_nothing(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(run / "checkpoints", folder)
    false = folder / "step_999999999.pt"
    shutil.copy(folder / "step_000000006.pt", false)
    (folder / "step_0000000007.pt").write_bytes(b"")  # ten digits: no name of ours
    checkpoints = checkpoint.Checkpoints(folder, keep_last=1)
    saved = checkpoint.load(folder / "step_000000006.pt")
    content = {key: saved[key] for key in ("config", "fingerprint", "method", "state")}
    written = checkpoints.save(7, **content)
    assert written.exists() and false.exists() and checkpoints.steps() == [7, 999999999]
    with pytest.raises(ValueError, match=r"step_999999999\.pt: contradicts its name: it holds step 6"):
        checkpoint.load(false)


def test_names_that_are_none_of_ours_are_not_listed(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "checkpoints", tmp_path / "checkpoints")
    (tmp_path / "checkpoints" / "step_abc.pt").write_bytes(b"")
    (tmp_path / "checkpoints" / "step_0000000008.pt").write_bytes(b"")  # ten digits
    assert pretrained.find(tmp_path).name == "step_000000006.pt"


def test_the_last_round_is_that_of_the_largest_number(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    for name in ("round_99999.pt", "round_100000.pt", "round_0100001.pt", "step_000000009.pt"):
        (tmp_path / "checkpoints" / name).write_bytes(b"")
    assert pretrained.find(tmp_path).name == "round_100000.pt"
    assert pretrained.find(tmp_path, "round_99999").name == "round_99999.pt"
    with pytest.raises(ValueError, match="allowed: last, step_9, round_99999, round_100000$"):
        pretrained.find(tmp_path, "round_100001")


@pytest.mark.parametrize("opcode", [b"r" + (0x1FFFFFFF).to_bytes(4, "little"), b"p536870911\n"])
def test_a_place_far_out_in_a_pickles_memo_is_refused(tmp_path: Path, opcode: bytes) -> None:
    path = tmp_path / "data_batch_1"
    path.write_bytes(b"\x80\x02N" + opcode + b".")
    with pytest.raises(ValueError, match="place 536870911 of the memo"):
        read_pickle(path)


def test_pipes_and_giants_are_not_read_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match="metrics.jsonl: not a regular file"):
        json_files.Lines(tmp_path / "metrics.jsonl")
    (tmp_path / "last.json").write_text("{}" + " " * 100)
    monkeypatch.setattr(json_files, "LARGEST_OBJECT", 100)
    with pytest.raises(ValueError, match="last.json: 102 bytes; at most 100 are read"):
        json_files.read_object(tmp_path / "last.json")


@pytest.mark.parametrize("content", ["my own notes", "[" * 100_000, json.dumps({"rows": 3})])
def test_results_are_not_written_over_what_is_none(run: Path, content: str) -> None:
    out = run / "evaluate" / "last.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(content)
    with pytest.raises(ValueError, match=r"last\.json: exists and is not what this command writes there"):
        evaluate_run(run)
    assert out.read_text() == content
    out.unlink()
    assert evaluate_run(run) == evaluate_run(run) == out
    out.unlink()
