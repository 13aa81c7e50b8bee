"""What the Ray driver decides before, and without, a cluster."""

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest

from sslmed_dist import config, run_folder
from sslmed_dist.cli import main
from sslmed_dist.drivers import ray_autoscaler, ray_room, ray_train
from tests import tiny


def test_only_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that happens to be called as a value is nothing to us: ``batch`` stays a norm, ``local`` a kind."""
    monkeypatch.chdir(tmp_path)
    tree = tiny.tree(tmp_path)
    words = {"batch", "local", "medmnist", "cifar", "resnet", "projection", "contrastive", "macl", "knn", "slice"}
    for word in words:
        (tmp_path / word).write_text("")
    changes: dict[str, Any] = {
        "run": {"dir": "runs", "start_from": "batch"},
        "data": {"root": "tiny.npz", "cache": "c", "subset": {"name": "listed", "file": "l"}},
        "method": {"encoder": {"norm": "batch", "weights": "w"}, "loss": {"name": "macl", "weights": "local"}},
        "evaluate": {"data": {"root": "e", "unit": "slice"}},
    }
    before = config.from_tree(config.merge(tree, changes), "test")
    after = config.to_tree(ray_train.absolute_paths(before))
    for dotted in ("data.root", "data.cache", "data.subset.file", "method.encoder.weights", "evaluate.data.root"):
        value = config.below(after, dotted.split("."))
        assert value == str(tmp_path / config.below(config.to_tree(before), dotted.split(".")))
        after = config.merge(after, config.nested(dotted, Path(value).name))
    assert after["run"] == {
        **config.to_tree(before)["run"],
        "dir": str(tmp_path / "runs"),
        "start_from": str(tmp_path / "batch"),
    }
    assert {**after, "run": None} == {**config.to_tree(before), "run": None}


NODE = {"Alive": True, "Resources": {"CPU": 4.0}}
GPU = {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}}
DEAD = {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}


@pytest.mark.parametrize(
    ("workers", "cpus", "gpus", "nodes", "lacks"),
    [
        (4, 1, 0, [NODE], None),
        (5, 1, 0, [NODE], "5 workers of 1 CPUs and 0 GPUs each; there are 4 CPUs and 0 GPUs, room for 4"),
        (5, 1, 0, [NODE, DEAD], "5 workers of 1 CPUs and 0 GPUs each; there are 4 CPUs and 0 GPUs, room for 4"),
        (2, 3, 0, [NODE, NODE], None),
        (4, 3, 0, [NODE, GPU], "4 workers of 3 CPUs and 0 GPUs each; there are 12 CPUs and 2 GPUs, room for 3"),
        (2, 1, 1.0, [NODE, GPU], None),
        (3, 1, 1.0, [NODE, GPU], "3 workers of 1 CPUs and 1 GPUs each; there are 12 CPUs and 2 GPUs, room for 2"),
        (6, 1, 0.3, [GPU], None),
        (8, 1, 0.25, [GPU], None),
        (9, 0, 0.25, [GPU], "9 workers of 0 CPUs and 0.25 GPUs each; there are 8 CPUs and 2 GPUs, room for 8"),
        (7, 0, 0, [NODE], None),
        (1, 1, 0, [], "1 worker of 1 CPUs and 0 GPUs each; there are 0 CPUs and 0 GPUs, room for 0"),
        (
            1,
            1,
            1.0,
            [{"Alive": True, "Resources": {"CPU": math.inf, "GPU": 0}}],
            "1 worker of 1 CPUs and 1 GPUs each; there are 0 GPUs, room for 0",
        ),
    ],
)
def test_room_is_counted_node_by_node(
    workers: int, cpus: int, gpus: float, nodes: list[dict[str, Any]], lacks: str | None
) -> None:
    options = config.Ray(num_workers=workers, cpus_per_worker=cpus, gpus_per_worker=gpus)
    assert ray_room.too_little(options, nodes) == (None if lacks is None else f"ray.num_workers: {lacks}")


@pytest.mark.parametrize(
    ("options", "nodes", "lacks"),
    [
        ({"num_workers": [1, 9]}, [NODE], None),
        ({"num_workers": [5, 9]}, [NODE], "at least 5 workers of 1 CPUs and 0 GPUs each; there are 4 CPUs and 0 GPUs"),
        ({"num_workers": 2, "placement": "spread"}, [NODE], None),
        ({"num_workers": 2, "placement": "strict_spread"}, [NODE, GPU], None),
        (
            {"num_workers": 2, "placement": "strict_spread"},
            [NODE, DEAD],
            "2 workers of 1 CPUs and 0 GPUs each, each on a node of its own (ray.placement); "
            "there are 4 CPUs and 0 GPUs on 1 node, room for 1",
        ),
    ],
)
def test_room_of_elastic_and_spread_workers(
    tmp_path: Path, options: dict[str, Any], nodes: list[dict[str, Any]], lacks: str | None
) -> None:
    line = ray_room.too_little(tiny.settings(tmp_path, ray=options).ray, nodes)
    assert (line is None) if lacks is None else (line or "").startswith(f"ray.num_workers: {lacks}")


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["ray.num_workers=[2, 3]"], "plan.batch_size: 16 is not a multiple of 3 workers (ray.num_workers: [2, 3])"),
        (
            ["ray.num_workers=[1, 4]", "plan.batch_size=12", "plan.micro_batch=6"],
            "plan.micro_batch: 6 is not a multiple of 4 workers (ray.num_workers: [1, 4])",
        ),
        (["ray.num_workers=3"], "plan.batch_size: 16 is not a multiple of 3 workers"),
        (["ray.num_workers=[0, 2]"], "ray.num_workers: expected a whole number, or [fewest, most] with 1 <= fewest"),
        (["ray.num_workers=[3, 2]"], "with 1 <= fewest <= most, got [3, 2]"),
        (["ray.num_workers=[1, 2, 3]"], "ray.num_workers: expected int or [int, int], got [1, 2, 3]"),
        (
            ["ray.num_workers=[1, 2]", "ray.placement=strict_spread"],
            "ray.placement: strict_spread needs one ray.num_workers; allowed with two: pack, spread",
        ),
        (["ray.placement=strict_pack"], "ray.placement: expected one of 'pack', 'spread', 'strict_spread'"),
        (
            ["ray.placement=strict_spread"],
            "(ray.placement); there are 0 GPUs on 1 node, room for 1",
        ),
    ],
)
def test_numbers_of_workers_that_cannot_be_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    overrides: list[str],
    line: str,
) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "tiny.yaml").write_text(config.dump(tiny.settings(tmp_path)))
    assert main(["train", str(tmp_path / "tiny.yaml"), "driver=ray", *overrides]) == 2
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({"num_workers": 3}, [{"CPU": 1}] * 3),
        ({"num_workers": [2, 5], "cpus_per_worker": 4, "gpus_per_worker": 1.0}, [{"CPU": 4, "GPU": 1}] * 2),
        ({"num_workers": 5, "cpus_per_worker": 2, "gpus_per_worker": 0.25}, [{"CPU": 8, "GPU": 1}] * 2),
        ({"num_workers": 4, "gpus_per_worker": 0.3}, [{"CPU": 3, "GPU": 1}] * 2),
        ({"num_workers": 2, "cpus_per_worker": 0, "gpus_per_worker": 2.0}, [{"GPU": 2}] * 2),
    ],
)
def test_an_autoscaler_is_asked_in_whole_numbers(
    tmp_path: Path, options: dict[str, Any], asked: list[dict[str, int]]
) -> None:
    """Ray refuses others with a traceback, so a run that had to wait for nodes failed at once."""
    bundles = ray_room.whole_bundles(tiny.settings(tmp_path, ray=options).ray)
    assert bundles == asked and all(type(need) is int for one in bundles for need in one.values())


FIVE = ray_autoscaler.Autoscaler({"workers": ({"CPU": 4.0}, 5.0)}, refuses=False)
ADDED = NODE | {"Labels": {"ray.io/node-group": "workers"}}


@pytest.mark.parametrize(
    ("options", "nodes", "could"),
    [
        ({"num_workers": 99}, [], 20.0),
        ({"num_workers": 99}, [NODE], 24.0),  # a node of its own beside the group
        ({"num_workers": 99}, [ADDED, ADDED, NODE], 24.0),  # two of the group's five are there
        ({"num_workers": 99, "gpus_per_worker": 1.0}, [ADDED], 0.0),
        ({"num_workers": 99, "placement": "strict_spread"}, [NODE], 6.0),
    ],
)
def test_room_that_an_autoscaler_can_make(
    tmp_path: Path, options: dict[str, Any], nodes: list[dict[str, Any]], could: float
) -> None:
    chosen = tiny.settings(tmp_path, ray=options).ray
    assert ray_autoscaler.room_it_can_make(chosen, FIVE, nodes) == could
    endless = ray_autoscaler.Autoscaler({"workers": ({"CPU": 4.0}, math.inf)}, refuses=False)
    assert ray_autoscaler.room_it_can_make(chosen, endless, nodes) >= (99.0 if could > 0 else 0.0)


@pytest.mark.parametrize(
    ("overrides", "address", "line"),
    [
        (["ray.address=https://head:8265"], "head:6379", "ray.address=https://head:8265: jobs are submitted there"),
        ([], "http://head:8265", "RAY_ADDRESS=http://head:8265: jobs are submitted there"),
        (["ray.wait_s=-1"], None, "ray.wait_s: expected a number >= 0, got -1"),
        (["ray.num_workers=-1"], None, "ray.num_workers: expected an integer >= 0, got -1"),
        (
            ["run.dir=/tmp/ray/session/runtime_resources/working_dir_files/_ray_pkg_0a1b/runs"],
            "head:6379",
            "lies in the temporary folder of this Ray job, which is deleted after it; allowed: run.dir=/absolute/path",
        ),
    ],
)
def test_what_cannot_work_is_one_line_before_ray_starts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    overrides: list[str],
    address: str | None,
    line: str,
) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    (tmp_path / "tiny.yaml").write_text(config.dump(tiny.settings(tmp_path)))
    assert main(["train", str(tmp_path / "tiny.yaml"), "driver=ray", *overrides]) == 2
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_more_gpus_than_this_machine_has_are_refused_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_train.torch.cuda, "device_count", lambda: 1)
    chosen = tiny.settings(tmp_path, ray={"num_workers": 2, "gpus_per_worker": 1.0})
    with pytest.raises(ValueError, match="2 workers of 1 CPUs and 1 GPUs each; there are 1 GPUs, room for 1; smaller"):
        ray_train.train(chosen)


def test_under_torchrun_rank_0_alone_opens_the_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others would meet its lock, which is held while the samples are compared."""
    pytest.importorskip("ray")
    monkeypatch.setattr(ray_train, "launch", lambda *_: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    chosen = tiny.settings(tmp_path, ray={"num_workers": 0})
    held = run_folder.RunFolder(chosen.folder, chosen)
    held.open("auto")
    try:
        monkeypatch.setenv("RANK", "1")
        ray_train.train(chosen)
        monkeypatch.setenv("RANK", "0")
        with pytest.raises(ValueError, match="another process is writing this run"):
            ray_train.train(chosen)
    finally:
        held.close()
