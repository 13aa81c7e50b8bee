"""A run goes on with the samples it began with; what its folder says never contradicts its checkpoint."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslmed_dist import checkpoint, config
from sslmed_dist.training import job
from tests import tiny


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a run folder, by its name there."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


NORMALISED = {"mean": [0.5], "std": [0.25]}  # else it would come from the data, and tell other data apart by itself


def settings_of(folder: Path, **sections: Any) -> config.Config:
    return tiny.settings(folder, **config.merge({"views": NORMALISED}, sections))


def stopped(folder: Path) -> Path:
    """The run folder of a tiny run that stands one step before its end."""
    run = job.train(settings_of(folder)).settings.folder
    (run / "checkpoints" / "step_000000006.pt").unlink()
    return run


def other_images(path: Path, **counts: int) -> None:
    """The images anew, with other counts or, without any, one other pixel."""
    tiny.write_images(path, **counts)
    if not counts:
        arrays = dict(np.load(path))
        arrays["train_images"][7, 0, 0] ^= 1
        np.savez(path, **arrays)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({}, "48 then, 48 now; sample 7 has another content"),
        ({"train": 50}, "48 then, 50 now; sample 48 is only in one of them"),
        ({"train": 51}, "48 then, 51 now; sample 48 is only in one of them"),
    ],
)
def test_other_samples_are_refused_and_nothing_changes(tmp_path: Path, counts: dict[str, int], said: str) -> None:
    run = stopped(tmp_path)
    before = files(run)
    other_images(tmp_path / "tiny.npz", **counts)
    with pytest.raises(ValueError) as caught:
        job.train(settings_of(tmp_path))
    allowed = "allowed: the same data, or another run.name to start a new run"
    assert str(caught.value) == f"data: tiny holds other samples than {run} was trained on ({said}); {allowed}"
    assert files(run) == before


@pytest.mark.parametrize("damage", ["missing", "other lines", "no text", "a pipe"])
def test_what_differs_is_not_guessed_from_another_list(tmp_path: Path, damage: str) -> None:
    run = stopped(tmp_path)
    listed = run / "samples.jsonl"
    lines = listed.read_text()
    listed.unlink()
    if damage == "a pipe":
        os.mkfifo(listed)
    elif damage != "missing":
        listed.write_bytes(lines.replace('"id": 0', '"id": 1').encode() if damage == "other lines" else b"\xff\xfe")
    other_images(tmp_path / "tiny.npz")
    unknown = r"\(48 then, 48 now; in which sample they differ is not known: samples.jsonl is missing, or not that"
    with pytest.raises(ValueError, match=unknown):
        job.train(settings_of(tmp_path))


def test_samples_are_named_where_the_normalisation_that_comes_from_them_differs(tmp_path: Path) -> None:
    run = job.train(tiny.settings(tmp_path)).settings.folder
    before = files(run)
    other_images(tmp_path / "tiny.npz", train=50)
    with pytest.raises(
        ValueError, match=r"other samples than .* \(48 then, 50 now; sample 48 is only in one of them\)"
    ):
        job.train(tiny.settings(tmp_path))
    assert files(run) == before
    for path in (run / "checkpoints").glob("*.pt"):
        without(path, "samples")
    with pytest.raises(ValueError) as caught:
        job.train(tiny.settings(tmp_path))
    assert str(caught.value) == (
        f"{run}: holds a run on other data (views.mean, views.std come from the data and differ); allowed: the same "
        "data, or another run.name"
    )


def test_a_finished_run_on_other_samples_is_refused_like_any_other(tmp_path: Path) -> None:
    run = job.train(settings_of(tmp_path)).settings.folder
    before = files(run)
    other_images(tmp_path / "tiny.npz")
    with pytest.raises(ValueError, match="sample 7 has another content"):
        job.train(settings_of(tmp_path))
    assert files(run) == before


def test_the_same_data_elsewhere_goes_on_to_the_same_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = job.train(settings_of(tmp_path))
    shutil.move(whole.settings.folder, tmp_path / "first")
    run = stopped(tmp_path)
    (tmp_path / "moved").mkdir()
    shutil.move(tmp_path / "tiny.npz", tmp_path / "moved" / "tiny.npz")
    settings = config.replace(config.load(run / "config.yaml"), data={"root": str(tmp_path / "moved" / "tiny.npz")})
    done = job.train(settings)
    assert "changed since the last checkpoint: data.root" in capsys.readouterr().err
    for key, value in whole.method.state_dict().items():
        assert torch.equal(done.method.state_dict()[key], value), key
    assert config.load(run / "config.yaml").data["root"] == settings.data["root"]


def test_the_list_and_the_hash_lie_where_they_should(tmp_path: Path) -> None:
    run = job.train(settings_of(tmp_path)).settings.folder
    lines = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == list(range(48)) and [line["label"] for line in lines] == [0, 1] * 24
    saved = checkpoint.load(run / "checkpoints" / "step_000000006.pt")
    assert saved["samples"].keys() == {"digest", "content", "count"} and saved["samples"]["count"] == 48
    assert saved["state"]["steps_per_epoch"] == 3


def without(path: Path, *keys: str) -> None:
    """Take keys out of a checkpoint, as an older version wrote it."""
    saved = checkpoint.load(path)
    for key in keys:
        (saved["state"] if key == "steps_per_epoch" else saved).pop(key)
    checkpoint.save(path, **{key: value for key, value in saved.items() if key not in ("format", "version")})


def test_an_older_checkpoint_goes_on_with_a_notice_and_is_known_from_then_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = stopped(tmp_path)
    without(run / "checkpoints" / "step_000000005.pt", "samples", "steps_per_epoch")
    job.train(settings_of(tmp_path))
    assert "whether the samples are still those of the run is not known" in capsys.readouterr().err
    assert checkpoint.load(run / "checkpoints" / "step_000000006.pt")["samples"]["count"] == 48


def test_the_steps_of_an_epoch_are_those_of_the_beginning(tmp_path: Path) -> None:
    """An older checkpoint that knows its steps an epoch, but not its samples."""
    run = stopped(tmp_path)
    without(run / "checkpoints" / "step_000000005.pt", "samples")
    other_images(tmp_path / "tiny.npz", train=70)
    with pytest.raises(ValueError, match="an epoch has 4 steps now and had 3 when the run began"):
        job.train(settings_of(tmp_path))


def test_a_finished_run_stays_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = job.train(settings_of(tmp_path)).settings.folder
    before = files(run)
    capsys.readouterr()
    job.train(settings_of(tmp_path, evaluate={"protocols": [{"name": "knn", "k": 7}]}))
    said = capsys.readouterr().err
    assert "tiny is finished (step 6): nothing is trained" in said
    assert "not taken, because the run is finished: evaluate.protocols" in said
    assert files(run) == before


def test_settings_and_checkpoint_say_the_same_after_a_stop_in_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stopped(tmp_path)

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "run_fit", die)
    with pytest.raises(KeyboardInterrupt):
        job.train(settings_of(tmp_path, plan={"log_every": 2}))
    latest = sorted((run / "checkpoints").glob("*.pt"))[-1]
    of_checkpoint = config.from_tree(checkpoint.load(latest)["config"], "checkpoint")
    assert of_checkpoint == config.load(run / "config.yaml") and of_checkpoint.plan.log_every == 2


def test_what_reading_left_aside_is_said_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    for number in range(32):
        path = tmp_path / "set" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((12, 12), number, np.uint8)).save(path)
    (tmp_path / "set" / "a" / "notes.txt").write_text("x")
    data = {"name": "image_folder", "root": str(tmp_path / "set"), "size": 12, "channels": 1}
    run = job.train(settings_of(tmp_path, data=data)).settings.folder
    kept = (run / "notices.txt").read_text()
    assert "left aside: 1 " in kept and "notes.txt" not in kept
    assert f"note: data: {kept}" in capsys.readouterr().err
