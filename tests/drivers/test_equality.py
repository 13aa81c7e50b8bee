"""One method, one trajectory: local process, gloo x2 and x4, Ray's local mode. (Flower: tests/federated.)"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sslmed_dist import config
from sslmed_dist.training import job
from tests import tiny
from tests.gloo import GlooPool

DYSTRESS = {"name": "dystress", "low": 0.1, "high": 0.3}
SUM = {"name": "sum", "terms": [{"name": "mio_v3"}, {"name": "vicreg", "weight": 0.004, "invariance": 0}]}
LOSSES: dict[str, dict[str, Any]] = {
    **{name: {"name": name} for name in ("nt_xent", "dclw", "macl", "mio_v1", "mio_v2", "mio_v3", "barlow_twins")},
    "dystress": {"name": "nt_xent", "temperature": DYSTRESS},
    "sum": SUM,
}


def trained(tree: dict[str, Any], name: str) -> dict[str, Tensor]:
    """Train to the end in this process (or as one rank) and return the state dict."""
    settings = config.replace(config.from_tree(tree, "test"), run={"name": name})
    return dict(job.train(settings).method.state_dict())


def relative(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Norm-wise difference of two state dicts, floating-point tensors only."""
    keys = [key for key, value in a.items() if value.is_floating_point()]
    assert a.keys() == b.keys()
    gap = torch.sqrt(sum((a[k].double() - b[k].double()).square().sum() for k in keys))
    size = torch.sqrt(sum(b[k].double().square().sum() for k in keys))
    return float(gap / size)


# One of each way of gathering; the others run with the slow cases.
QUICK = ("nt_xent", "mio_v3", "barlow_twins")


@pytest.mark.parametrize(
    "loss", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in LOSSES]
)
def test_workers_walk_one_float64_trajectory(tmp_path: Path, gloo: GlooPool, loss: str) -> None:
    """Six optimiser steps of a ResNet with synchronised batch norm: any number of workers, the same parameters."""
    tree = tiny.tree(tmp_path, plan={"precision": "float64"})
    tree["method"]["loss"] = LOSSES[loss]
    walk_together(tree, gloo)


def test_workers_walk_one_trajectory_with_the_gradient_cache(tmp_path: Path, gloo: GlooPool) -> None:
    """Micro-batches of 8 of 16 samples, batch norm over the micro-batch of all workers."""
    walk_together(tiny.tree(tmp_path, plan={"precision": "float64", "micro_batch": 8}), gloo)


def walk_together(tree: dict[str, Any], gloo: GlooPool) -> None:
    """Two and four workers end where one ends, and all of them with the same bits."""
    alone = trained(tree, "alone")
    for world in (2, 4):
        together = gloo.run(trained, world, tree, f"world-{world}")
        assert relative(together[0], alone) < 1e-9
        for other in together[1:]:
            assert all(torch.equal(other[key], together[0][key]) for key in alone)


def test_one_float32_step_agrees(tmp_path: Path, gloo: GlooPool) -> None:
    tree = tiny.tree(tmp_path, plan={"epochs": 1, "steps_per_epoch": 1})
    alone = trained(tree, "alone")
    for world in (2, 4):
        assert relative(gloo.run(trained, world, tree, f"world-{world}")[0], alone) < 1e-6


def test_two_runs_have_the_same_bits(tmp_path: Path, gloo: GlooPool) -> None:
    tree = tiny.tree(tmp_path)
    for world in (1, 4):
        first, second = (gloo.run(trained, world, tree, f"{world}-{turn}")[0] for turn in "ab")
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_accumulated_metrics_are_those_of_the_global_batch(tmp_path: Path, gloo: GlooPool) -> None:
    tree = tiny.tree(tmp_path, plan={"precision": "float64"})
    trained(tree, "alone")
    gloo.run(trained, 4, tree, "four")
    rows = {}
    for name in ("alone", "four"):
        rows[name] = {(r["step"], r["name"]): r["value"] for r in tiny.computed(tmp_path / "runs" / name)}
    assert rows["alone"].keys() == rows["four"].keys() and len(rows["alone"]) >= 6 * 7
    for key, value in rows["alone"].items():
        assert rows["four"][key] == pytest.approx(value, rel=1e-6, abs=1e-9), key


def test_rays_local_mode_is_the_local_process(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from sslmed_dist.drivers import ray_train

    tree = tiny.tree(tmp_path)
    alone = trained(tree, "alone")
    settings = config.from_tree(
        config.merge(tree, {"run": {"name": "ray"}, "driver": "ray", "ray": {"num_workers": 0}}), "t"
    )
    ray_train.train(settings)
    from sslmed_dist import checkpoint

    latest = checkpoint.Checkpoints(settings.folder / "checkpoints").latest()
    assert latest is not None
    saved = checkpoint.load(latest)["method"]
    assert all(torch.equal(saved[key], alone[key]) for key in alone)
