"""CoWPro in whole runs on phantom scans: workers, restarts, an encoder to start from and one to go on with."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sslmed_dist import checkpoint, config
from sslmed_dist.data.phantom import write_abdomen
from sslmed_dist.models import episode_norm
from sslmed_dist.run_folder import Metrics
from sslmed_dist.training import job, pretrained
from tests import tiny
from tests.gloo import GlooPool

pytest.importorskip("skimage")
State = dict[str, Tensor]
ENCODER = {"name": "dilated_resnet", "depth": 9, "stem": "cifar", "width": 4, "out": 8}
PLAN = {"precision": "float64", "epochs": 1, "batch_size": 8, "steps_per_epoch": 4, "checkpoint_every": 2}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Episodes of 32 x 32 from two small scans."""
    folder = tmp_path_factory.mktemp("cowpro")
    root = write_abdomen(folder / "scans", exams=2, size=48, slices=8)
    made = tiny.tree(folder, plan=PLAN)
    made["data"] = {"name": "episodes", "root": str(root), "size": 32, "min_size": 24, "workers": 1, "cache": ""}
    made["views"] = {"name": "episode", "size": 32}
    made["method"] = {"name": "cowpro", "encoder": ENCODER, "head": {"name": "cowpro", "window": 2}}
    return made


def trained(tree: dict[str, Any], name: str) -> State:
    """Train to the end in this process (or as one rank) and return the state dict."""
    settings = config.replace(config.from_tree(tree, "test"), run={"name": name})
    return dict(job.train(settings).method.state_dict())


def test_workers_walk_one_trajectory_and_a_restart_changes_no_bit(tree: dict[str, Any], gloo: GlooPool) -> None:
    alone = trained(tree, "1")
    states = {1: [alone], 2: gloo.run(trained, 2, tree, "2")}
    for key, value in states[2][0].items():
        assert (value - alone[key]).double().norm() <= 1e-9 * alone[key].double().norm().clamp_min(1e-3), key
        assert torch.equal(states[2][1][key], value)
    for world, before in states.items():
        store = checkpoint.Checkpoints(Path(tree["run"]["dir"]) / str(world) / "checkpoints")
        assert store.steps() == [2, 4]
        store.path(4).unlink()
        again = [trained(tree, "1")] if world == 1 else gloo.run(trained, world, tree, f"{world}")
        assert all(torch.equal(a[key], b[key]) for a, b in zip(before, again, strict=True) for key in alone)
    names = {row["name"] for row in Metrics(Path(tree["run"]["dir"]) / "1" / "metrics.jsonl").read()}
    assert {"loss", "segmentation", "cycle", "cycled", "dice"} <= names


def test_an_encoder_to_start_from_and_one_to_go_on_with(tree: dict[str, Any], tmp_path: Path) -> None:
    """Contrastive, then CoWPro (keys and norms fit), then its maps in evaluation."""
    start = job.train(tiny.settings(tmp_path, method={"encoder": ENCODER}, plan={"epochs": 1}))
    later = config.merge(tree, {"run": {"name": "later", "start_from": str(start.settings.folder)}})
    method = pretrained.first_method(config.from_tree(config.merge(later, {"method": {"channels": 1}}), "test"))
    own, other = method.encoder.state_dict(), start.method.encoder.state_dict()
    assert own.keys() == other.keys() and all(torch.equal(own[key].float(), other[key].float()) for key in own)
    assert len(episode_norm.layers(method)) == sum(key.endswith("running_mean") for key in own)
    state = trained(later, "later")
    found: Any = pretrained.load(Path(tree["run"]["dir"]) / "later").encoder
    images = torch.linspace(-1, 1, 3 * 32 * 32).view(3, 1, 32, 32)
    maps = found.maps(images)
    assert maps.shape == (3, 8, 16, 16)
    torch.testing.assert_close(found.maps(images[:1]), maps[:1])
    assert torch.equal(found.project.weight, state["encoder.project.weight"].float())
    assert not torch.equal(own["project.weight"], state["encoder.project.weight"])
