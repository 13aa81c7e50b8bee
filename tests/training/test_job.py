"""From a configuration to a trained method: what is resolved, built, written and taken over."""

import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sslmed_dist import checkpoint, config
from sslmed_dist.data.joined import Joined
from sslmed_dist.federation.shared import shared_keys
from sslmed_dist.run_folder import Metrics
from sslmed_dist.training import build, job, pretrained
from sslmed_dist.training.check import check_training
from sslmed_dist.training.evaluation_data import evaluation_splits
from sslmed_dist.training.precision import NonFinite
from sslmed_dist.training.progress import Progress
from sslmed_dist.training.stopping import BURST_S, Stop
from sslmed_dist.verbs.evaluate import evaluate_run
from tests import tiny


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def final(folder: Path) -> dict[str, Any]:
    """The newest checkpoint."""
    latest = checkpoint.Checkpoints(folder / "checkpoints").latest()
    assert latest is not None
    return checkpoint.load(latest)


def test_what_data_decides_is_resolved(tmp_path: Path) -> None:
    """Channels, and mean and standard deviation of the training pixels on the scale [0, 1], to four digits."""
    settings = tiny.settings(tmp_path)
    dataset = build.load_data(settings, "train")
    resolved = build.resolve(settings, dataset)
    with np.load(settings.data["root"]) as archive:
        pixels = archive["train_images"].astype(np.float64) / 255
    assert resolved.views["mean"] == [round(float(pixels.mean()), 4)]
    assert resolved.views["std"] == [round(float(pixels.std(ddof=1)), 4)]
    assert resolved.method["channels"] == 1
    assert build.resolve(resolved, dataset) == resolved
    assert config.from_tree(config.to_tree(resolved), "test") == resolved


def test_what_is_stated_is_kept(tmp_path: Path) -> None:
    dataset = build.load_data(tiny.settings(tmp_path), "train")
    given = tiny.settings(tmp_path, views={"mean": [0.25]}, method={"channels": 1})
    resolved = build.resolve(given, dataset)
    assert resolved.views["mean"] == [0.25] and 0 < resolved.views["std"][0] < 1
    with pytest.raises(ValueError, match="^method.channels: 3, but tiny has 1$"):
        build.resolve(tiny.settings(tmp_path, method={"channels": 3}), dataset)


def test_a_constant_channel_has_a_spread_above_zero(tmp_path: Path) -> None:
    images = tmp_path / "tiny.npz"
    labels = np.zeros((48, 1), np.uint8)
    np.savez(images, train_images=np.full((48, 12, 12, 3), 51, np.uint8), train_labels=labels)
    dataset = build.load_data(tiny.settings(tmp_path, data={"deduplicate": False}), "train")
    assert build.moments(dataset, 0) == ([0.2] * 3, [1e-4] * 3)


def test_a_subset_cuts_the_training_split_alone(tmp_path: Path) -> None:
    subset = {"subset": {"name": "label_fraction", "fraction": 0.5}}
    settings = tiny.settings(tmp_path, data=subset)
    sizes = [len(build.load_data(settings, split)) for split in ("train", "val", "test", "all")]
    assert sizes == [24, 12, 24, 84]
    assert len(build.load_data(settings, "train", {"subset": None})) == 48
    chosen = build.load_data(settings, "train").ids
    again = build.load_data(config.replace(settings, run={"seed": 1}), "train").ids
    assert set(chosen.tolist()) <= set(range(48)) and chosen.tolist() != again.tolist()


def test_initial_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    settings = tiny.settings(tmp_path)
    first = build.build_method(settings).state_dict()
    torch.manual_seed(77)
    state = torch.random.get_rng_state()
    assert same(first, build.build_method(config.replace(settings, plan={"epochs": 9})).state_dict())
    assert torch.equal(state, torch.random.get_rng_state()), "nobody else's numbers are used up"
    other = build.build_method(config.replace(settings, run={"seed": 1})).state_dict()
    assert not torch.equal(first["encoder.conv1.weight"], other["encoder.conv1.weight"])
    exact = build.build_method(config.replace(settings, plan={"precision": "float64"})).state_dict()
    assert torch.equal(first["head.layers.0.weight"], exact["head.layers.0.weight"].float())


def test_shared_keys(tmp_path: Path) -> None:
    method = build.build_method(tiny.settings(tmp_path))
    encoders, everything = shared_keys(method, "encoder"), shared_keys(method, "all")
    assert {key.split(".")[0] for key in encoders} == {"encoder"}
    assert set(everything) - set(encoders) == {f"head.layers.{n}.{leaf}" for n in (0, 2) for leaf in ("weight", "bias")}
    assert "encoder.bn1.running_var" in encoders and not any("num_batches_tracked" in key for key in everything)


def test_a_site_keeps_its_queue_and_its_copies(tmp_path: Path) -> None:
    """A queue holds embeddings of single images: not even ``share: all`` may send it."""
    tree = tiny.tree(tmp_path)
    tree["method"] = {"name": "moco_v2", "queue": 64, "encoder": tree["method"]["encoder"]}
    method = build.build_method(config.from_tree(tree, "test"))
    assert {"queue", "momentum_encoder", "momentum_head"} <= {key.split(".")[0] for key in method.state_dict()}
    assert {key.split(".")[0] for key in shared_keys(method, "all")} == {"encoder", "head"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_at_a_step_and_the_rest_has_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    whole = job.train(tiny.settings(tmp_path, run={"name": "whole"}))
    settings = tiny.settings(tmp_path, run={"name": "stopped"})
    raise_signal_at(monkeypatch, number, 2)
    former = signal.getsignal(signal.SIGTERM)
    first = job.train(settings)
    assert first.state.stopped and first.state.step == 2 and signal.getsignal(signal.SIGTERM) == former
    assert checkpoint.Checkpoints(settings.folder / "checkpoints").steps()[-1] == 2
    second = job.train(settings)
    assert not second.state.stopped and second.state.step == 6 and second.state.samples == 96
    assert same(dict(whole.method.state_dict()), dict(second.method.state_dict()))
    rows = [tiny.computed(run) for run in (whole.settings.folder, settings.folder)]
    values = [[(row["step"], row["name"], row["value"]) for row in run] for run in rows]
    assert values[0] == values[1]


def raise_signal_at(monkeypatch: pytest.MonkeyPatch, number: int, step: int) -> None:
    """Send this process a signal just before step ``step`` (1, 2, ...) asks whether to stop."""
    asked: list[Stop] = []
    original = Stop.__call__

    def ask(self: Stop) -> bool:
        asked.append(self)
        if len(asked) == step:
            signal.raise_signal(number)
        return original(self)

    monkeypatch.setattr(Stop, "__call__", ask)


def test_a_file_stops_a_run_and_is_taken_away(tmp_path: Path) -> None:
    settings = tiny.settings(tmp_path)
    settings.folder.mkdir(parents=True)
    (settings.folder / "stop").touch()
    assert not job.train(settings).state.stopped, "a file left by a former run is not obeyed"
    assert not (settings.folder / "stop").exists()
    with Stop(tmp_path) as stop:
        assert not stop()
        (tmp_path / "stop").touch()
        stop.looked = -10.0
        assert stop() and stop()


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    with Stop(tmp_path) as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop()
        signal.raise_signal(signal.SIGTERM)  # of the same event: a lost parent sends one for each of its threads
        stop.signalled -= BURST_S
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def test_training_in_a_folder_and_with_data_of_ones_own(tmp_path: Path) -> None:
    settings = tiny.settings(tmp_path, plan={"epochs": 1, "checkpoint_every": 100})
    dataset = build.load_data(settings, "val")
    done = job.train(config.replace(settings, plan={"batch_size": 4}), dataset=dataset, folder=tmp_path / "arm")
    assert done.state.step == 3 and done.dataset is dataset and not settings.folder.exists()
    saved = final(tmp_path / "arm")
    assert saved["step"] == 3, "the end is saved whatever checkpoint_every says"
    assert saved["fingerprint"] == config.fingerprint(done.settings)
    assert config.from_tree(saved["config"], "test") == done.settings
    assert same(saved["method"], dict(done.method.state_dict()))


def test_a_run_that_is_not_finite_leaves_its_last_checkpoint(tmp_path: Path) -> None:
    settings = tiny.settings(tmp_path, optim={"lr": 1e38})
    lines = []
    for _ in range(2):  # going on from the checkpoint meets the same step again
        with pytest.raises(NonFinite) as caught:
            job.train(settings)
        lines.append(str(caught.value))
    assert lines[0] == lines[1] and lines[0].startswith("step 1: not finite: loss=")
    assert checkpoint.Checkpoints(settings.folder / "checkpoints").steps() == [1]
    assert {row["step"] for row in Metrics(settings.folder / "metrics.jsonl").read()} == {1}


def test_check_builds_everything_and_writes_nothing(tmp_path: Path) -> None:
    settings = tiny.settings(tmp_path, plan={"compile": True, "loader_threads": 1})
    summary = check_training(settings)
    assert summary.settings == build.resolve(settings, build.load_data(settings, "train")), (
        "nothing but what data decides"
    )
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ValueError, match="^plan.batch_size: 16 is not a multiple of 3 workers$"):
        check_training(config.replace(settings, driver="ray", ray={"num_workers": 3}))


def test_first_weights_are_not_read_again_by_whoever_uses_the_encoder(tmp_path: Path) -> None:
    """A weights file that has gone since must not be missed, and a random encoder must be random."""
    plain = tiny.settings(tmp_path, plan={"epochs": 1, "steps_per_epoch": 1})
    weights = tmp_path / "weights.pth"
    torch.save(build.build_method(config.replace(plain, method={"channels": 1})).encoder.state_dict(), weights)  # type: ignore[union-attr]
    settings = config.replace(plain, method={"encoder": {"weights": str(weights)}}, run={"seed": 5})
    job.train(settings)
    weights.unlink()
    found = pretrained.load(settings.folder)
    assert same(dict(found.encoder.state_dict()), encoder_part(final(settings.folder)["method"]))
    assert found.settings.method["encoder"]["weights"] == str(weights) and not found.encoder.training
    scratch = config.replace(found.settings, method={"encoder": {"weights": None}})
    random = pretrained.untrained(found.settings).state_dict()
    assert same(dict(random), encoder_part(dict(build.build_method(scratch).state_dict())))
    assert evaluate_run(settings.folder).is_file()


def encoder_part(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's tensors of a method, under their own names."""
    return {key.removeprefix("encoder."): value for key, value in state.items() if key.startswith("encoder.")}


def test_an_encoder_of_another_shape_is_refused(tmp_path: Path) -> None:
    settings = job.train(tiny.settings(tmp_path, plan={"epochs": 1, "steps_per_epoch": 1})).settings
    saved = final(settings.folder)
    tree = config.merge(saved["config"], {"method": {"encoder": {"width": 8}}})
    content = {key: saved[key] for key in ("step", "fingerprint", "method", "state")}
    path = checkpoint.save(tmp_path / "odd.pt", kind="training", config=tree, **content)
    with pytest.raises(
        ValueError,
        match=r"odd.pt: does not fit this architecture: 60 of another shape \(bn1.bias \(4,\) in the file and \(8,",
    ):
        pretrained.load(path)


def test_two_evaluators_of_one_name_are_told_apart(tmp_path: Path) -> None:
    protocols = [{"name": "knn", "k": 5}, {"name": "knn", "k": 3}, {"name": "linear"}]
    settings = tiny.settings(tmp_path, evaluate={"protocols": protocols})
    assert list(build.build_evaluators(settings)) == ["knn(k=5)", "knn(k=3)", "linear"]


def test_evaluation_splits(tmp_path: Path) -> None:
    """``val`` is cut from train to choose with; the test split is whole and shares nothing with them."""
    dataset, parts = evaluation_splits(tiny.settings(tmp_path, evaluate={"val_fraction": 0.25}))
    assert {name: len(positions) for name, positions in parts.items()} == {"train": 36, "val": 12, "test": 24}
    assert len(dataset) == 72 and len(set(torch.cat(list(parts.values())).tolist())) == 72
    assert dataset.ids[parts["test"]].tolist() == list(range(60, 84))


def test_joined_splits_are_fetched_from_where_they_lie(tmp_path: Path) -> None:
    settings = tiny.settings(tmp_path)
    parts = [build.load_data(settings, split) for split in ("train", "test")]
    joined = Joined(parts)
    whole = build.load_data(settings, "all")
    wanted = torch.tensor([47, 0, 48, 71, 0])
    keys: dict[str, Any] = {"seed": 0, "epoch": 0, "draw": torch.tensor([0, 1, 2, 3, 4])}
    batch, expected = joined.fetch(wanted, **keys), whole.fetch(joined.ids[wanted], **keys)
    assert batch.keys() == expected.keys() and all(torch.equal(batch[key], expected[key]) for key in batch)
    assert joined.positions(1).tolist() == list(range(48, 72)) and joined.value_range() == (0.0, 255.0)
    assert joined.to("cpu").device == torch.device("cpu")
    other = build.load_data(tiny.settings(tmp_path, data={"classes": ["a", "b"]}), "test")
    with pytest.raises(ValueError, match="^tiny and tiny differ in classes or channels: not splits of one set$"):
        Joined([parts[0], other])


def test_progress_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("title", 4, 8, start=1, every_s=0.0) as bar:
        bar.update(2, {"loss": 1.25, "wait_share": 0.375})
        bar.update(4, {"lr": 0.1})
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and len(lines) == 2 and lines[0].startswith("title  step 2/4  loss 1.2500  ")
    assert re.search(r" images/s  38 % waiting for data  [0-9]+ s left$", lines[0])
    assert lines[1].startswith("title  step 4/4  ") and lines[1].endswith("  0 s left")
    with Progress("title", 9, 8, every_s=1e9) as bar:
        bar.last = float("inf")
        bar.update(1, {})
        bar.update(9, {})
    assert len(capsys.readouterr().err.splitlines()) == 1, "the last step is always shown"


def test_a_run_may_start_from_anothers_encoder(tmp_path: Path) -> None:
    first = job.train(tiny.settings(tmp_path, plan={"epochs": 1, "steps_per_epoch": 1}, run={"name": "first"}))
    start = {"name": "second", "start_from": str(first.settings.folder), "seed": 4}
    settings = tiny.settings(tmp_path, run=start)
    method = job.assemble(settings).method
    assert same(encoder_part(dict(method.state_dict())), encoder_part(dict(first.method.state_dict())))
    own = build.build_method(config.replace(settings, method={"channels": 1})).state_dict()
    assert torch.equal(method.state_dict()["head.layers.0.weight"], own["head.layers.0.weight"]), "a head of its own"
    with pytest.raises(
        ValueError, match=r"step_000000001.pt: does not fit .*bn1.bias \(4,\) in the file and \(8,\) here"
    ):
        job.assemble(config.replace(settings, method={"encoder": {"width": 8}}))
    with pytest.raises(ValueError, match="gone: neither a checkpoint file nor a run folder with checkpoints$"):
        job.assemble(config.replace(settings, run={"start_from": "gone"}))
