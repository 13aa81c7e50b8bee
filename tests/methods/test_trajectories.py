"""Every method, whole runs: workers, restarts, the evaluation of both encoders, and whether it learns."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sslmed_dist import checkpoint, cli, config
from sslmed_dist.federation.shared import shared_keys
from sslmed_dist.run_folder import Metrics
from sslmed_dist.training import build, job, pretrained
from tests import tiny
from tests.gloo import GlooPool
from tests.methods import small

State = dict[str, Tensor]
PLAN = {"precision": "float64", "epochs": 1, "steps_per_epoch": 4, "checkpoint_every": 2, "log_every": 2}


@dataclass(frozen=True)
class Walked:
    """One configuration, walked by one and by four processes."""

    name: str
    folder: Path
    tree: dict[str, Any]
    states: dict[int, list[State]]


def trained(tree: dict[str, Any], name: str) -> State:
    """Train to the end in this process (or as one rank) and return the state dict."""
    settings = config.replace(config.from_tree(tree, "test"), run={"name": name})
    return dict(job.train(settings).method.state_dict())


# One direction alone is the symmetric method with V = 1: its own tests are enough.
@pytest.fixture(scope="module", params=[name for name in small.METHOD if name != "moco"])
def walked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, gloo: GlooPool) -> Walked:
    """Four float64 steps, a checkpoint after every other one."""
    folder = tmp_path_factory.mktemp(request.param)
    tree = small.tree(folder, request.param, plan=PLAN)
    states = {1: [trained(tree, "1")], **{world: gloo.run(trained, world, tree, f"{world}") for world in (2, 4)}}
    return Walked(request.param, folder / "runs", tree, states)


def test_workers_walk_one_float64_trajectory(walked: Walked) -> None:
    """Parameters, momentum encoders, running statistics, queues, pointers and centres do not depend on how many."""
    alone = walked.states[1][0]
    floats = [key for key, value in alone.items() if value.is_floating_point()]
    for world in (2, 4):
        first, *others = walked.states[world]
        for key in floats:
            gap = (first[key] - alone[key]).norm() / alone[key].norm().clamp_min(1e-3)
            assert gap < 1e-9, (world, key, float(gap))
        assert all(torch.equal(first[key], alone[key]) for key in alone.keys() - set(floats))
        assert all(torch.equal(other[key], first[key]) for other in others for key in alone)


@pytest.mark.parametrize("world", [1, 4])
def test_a_restart_in_the_middle_changes_no_bit(walked: Walked, gloo: GlooPool, world: int) -> None:
    folder = walked.folder / str(world)
    rows = [(row["step"], row["name"], row["value"]) for row in tiny.computed(folder)]
    store = checkpoint.Checkpoints(folder / "checkpoints")
    assert store.steps() == [2, 4]
    store.path(4).unlink()
    again = [trained(walked.tree, "1")] if world == 1 else gloo.run(trained, world, walked.tree, f"{world}")
    for before, after in zip(walked.states[world], again, strict=True):
        assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert rows == [(row["step"], row["name"], row["value"]) for row in tiny.computed(folder)]


def test_measures_of_collapse_are_logged(walked: Walked) -> None:
    names = {row["name"] for row in Metrics(walked.folder / "1" / "metrics.jsonl").read()}
    assert {"loss", "embedding_std", "effective_rank", "uniformity", "alignment"} <= names
    assert ("teacher_information" in names) == (walked.name == "dino")


def test_both_encoders_can_be_asked_for(walked: Walked) -> None:
    folder, state = walked.folder / "1", walked.states[1][0]
    own = pretrained.load(folder).encoder.state_dict()
    assert torch.equal(own["conv1.weight"], state["encoder.conv1.weight"].float())
    if walked.name == "simsiam":
        with pytest.raises(ValueError, match=r"has no momentum encoder \(method simsiam\); allowed part: encoder$"):
            pretrained.load(folder, part="momentum")
        return
    slow = pretrained.load(folder, part="momentum").encoder.state_dict()
    assert slow.keys() == own.keys() and not torch.equal(slow["conv1.weight"], own["conv1.weight"])
    for key, value in slow.items():
        assert torch.equal(value, state[f"momentum_encoder.{key}"].to(value.dtype)), key


@pytest.mark.parametrize("walked", ["byol"], indirect=True)
def test_the_momentum_encoder_is_evaluated_and_exported(walked: Walked, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    folder, state = walked.folder / "1", walked.states[1][0]
    for part, name in (("encoder", "last.json"), ("momentum", "last-momentum.json")):
        assert cli.main(["evaluate", str(folder), "--part", part]) == 0
        assert json.loads((folder / "evaluate" / name).read_text())["part"] == part
        assert cli.main(["export", str(folder), str(tmp_path / part), "--part", part]) == 0
        written = safetensors.load_file(tmp_path / f"{part}.safetensors")
        key = "encoder.conv1.weight" if part == "encoder" else "momentum_encoder.conv1.weight"
        assert torch.equal(written["conv1.weight"], state[key].float())
        assert json.loads((tmp_path / f"{part}.json").read_text())["part"] == part


def test_a_federation_shares_the_encoder_and_starts_the_copies_from_it(walked: Walked) -> None:
    """A site without a state of its own begins round 1 with the others' encoder in both places."""
    settings = config.from_tree(walked.tree, "test")
    dataset = build.load_data(settings, "train")
    work = job.assemble(settings, dataset)
    shared = shared_keys(work.method, "encoder")
    assert {key.split(".")[0] for key in shared} == {"encoder"}
    with torch.no_grad():
        for key in shared:
            work.method.state_dict()[key].copy_(walked.states[1][0][key])
    work.method.step_begin(1.0, 0.5)
    if walked.name != "simsiam":
        own = work.method.state_dict()
        assert all(torch.equal(own[f"momentum_{key}"], walked.states[1][0][key]) for key in shared)


MILD = {"crop_scale": [0.7, 1.0], "flip": 0.0, "jitter": None, "blur": 0.0}  # of pictures that are mostly noise
MILD_VIEWS = {"pirl": {"image": MILD}, "dino": {"large": MILD, "small": {"crop_scale": [0.4, 0.7]}}}
# A head of two layers and a slow centre want more steps than a test has.
EASY_DINO = {"momentum": 0.95, "momentum_end": None, "centre_momentum": 0.5, "head": {"hidden": 32, "layers": 3}}


def chance(name: str) -> float | None:
    """The loss of a queue method that tells nothing apart: 41 equal shares."""
    if name == "pirl":
        return math.log(41) - 40 * math.log(1 - 1 / 41)
    return math.log(41) if name.startswith("moco") else None


# Noise and its puzzle have little in common: what moco_jigsaw learns is asked in test_jigsaw_pairs.py.
@pytest.mark.parametrize("name", [name for name in small.METHOD if name != "moco_jigsaw"])
def test_training_lowers_the_loss_and_does_not_collapse(tmp_path: Path, name: str) -> None:
    """Sixteen epochs of three steps. A queue that is still random makes the first losses low: those with a queue are
    held against chance, the others against their own first steps."""
    sections: dict[str, Any] = {"plan": {"epochs": 16, "checkpoint_every": 48}, "views": MILD_VIEWS.get(name, MILD)}
    if name == "dino":
        sections |= {"method": EASY_DINO, "optim": {"name": "adamw", "lr": 0.003}}
    trained(small.tree(tmp_path, name, **sections), name)
    found: dict[str, list[float]] = {}
    for row in Metrics(tmp_path / "runs" / name / "metrics.jsonl").read():
        found.setdefault(row["name"], []).append(float(row["value"]))
    loss, before = found["loss"], chance(name)
    assert len(loss) == 48
    assert sum(loss[-10:]) / 10 < (sum(loss[:10]) / 10 if before is None else before) - 0.2, loss
    assert found["embedding_std"][-1] > 0.2 and found["effective_rank"][-1] > 2.0
    if name == "dino":
        assert found["teacher_information"][-1] > 0.3


@pytest.mark.parametrize("name", list(small.METHOD))
def test_half_precision_trains(tmp_path: Path, name: str) -> None:
    """bf16 in the encoder; losses, queues and centres stay float32 and finite."""
    tree = small.tree(tmp_path, name, plan={"precision": "bf16", "epochs": 1})
    state = trained(tree, name)
    assert all(bool(value.isfinite().all()) for value in state.values() if value.is_floating_point())
    assert {value.dtype for value in state.values()} == {torch.float32, torch.int64}
