"""Jigsaw and geometric pretext tasks: what they compute, whole runs on any number of workers, validation, restarts."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sslmed_dist import checkpoint, config, registry
from sslmed_dist.methods import METHODS
from sslmed_dist.methods.jigsaw import side_by_side
from sslmed_dist.training import build, job, pretrained
from tests import tiny
from tests.gloo import GlooPool

SMALL = {"name": "skid", "width": 1 / 128}
HEAD = {"name": "projection", "hidden": 8, "layers": 2}
ARRANGE = {"rule": "uniform", "classes": 6}
TASKS: dict[str, dict[str, Any]] = {
    "skid": {
        "method": {"name": "jigsaw", "encoder": SMALL, "head": HEAD},
        "views": {"name": "jumbled", "size": 36, "arrangements": ARRANGE},
    },
    "sslacl": {
        "method": {"name": "jigsaw", "encoder": {"name": "sslacl", "width": 1 / 128}, "head": {**HEAD, "layers": 3}},
        "views": {"name": "jumbled", "size": 36, "arrangements": {"rule": "setarr", "classes": 6}},
    },
    "geometric": {
        "method": {"name": "geometric", "encoder": {"name": "vgg", "depth": 11, "width": 1 / 32, "batch_norm": True}},
        "views": {"name": "geometric", "size": 36},
    },
    "single": {
        "method": {
            "name": "jigsaw",
            "streams": "single",
            "encoder": {"name": "resnet", "depth": 9, "stem": "cifar", "width": 4},
            "head": HEAD,
        },
        "views": {"name": "jumbled", "size": 36, "arrangements": ARRANGE},
    },
}
PLAN = {
    "precision": "float64",
    "epochs": 2,
    "steps_per_epoch": 2,
    "slices_per_exam": 4,
    "validate": "val",
    "checkpoint_every": 1,
    "keep_last": 10,
    "log_every": 1,
}


def tree(folder: Path, name: str, **sections: Any) -> dict[str, Any]:
    """A run of one of ``TASKS`` on images of 36 pixels."""
    images = folder / "tiny.npz"
    if not images.exists():
        tiny.write_images(images, size=36)
    below = tiny.tree(folder, views={"name": "standard"}, method={"name": "classify"})
    return config.merge(config.merge({**below, **TASKS[name]}, {"optim": {"name": "rmsprop", "lr": 1e-3}}), sections)


def trained(settings: dict[str, Any], name: str) -> dict[str, Tensor]:
    """Train to the end in this process (or as one rank)."""
    return dict(job.train(config.replace(config.from_tree(settings, "test"), run={"name": name})).method.state_dict())


def rows(folder: Path) -> list[tuple[int, str, str, float]]:
    return [(r["step"], r["split"], r["name"], r["value"]) for r in tiny.computed(folder)]


def test_the_loss_is_cross_entropy_over_the_labels_of_the_views() -> None:
    torch.manual_seed(0)
    method = registry.build(METHODS, {**TASKS["skid"]["method"], "pretext_classes": 6}, "method").eval()
    patches, labels = torch.rand(5, 9, 1, 8, 8), torch.tensor([0, 5, 2, 2, 1])
    terms = method({"patches": patches, "pretext_label": labels})
    logits = method.head(method.encoder(patches))
    assert logits.shape == (5, 6)
    torch.testing.assert_close(terms["loss"], functional.cross_entropy(logits, labels))
    assert float(terms["accuracy"]) == pytest.approx(float((logits.argmax(1) == labels).float().mean()))


def test_one_stream_sees_the_patches_side_by_side() -> None:
    patches = torch.arange(9.0).view(1, 9, 1, 1, 1).expand(2, 9, 3, 4, 4)
    picture = side_by_side(patches)
    assert picture.shape == (2, 3, 12, 12)
    assert picture[0, 0, ::4, ::4].flatten().tolist() == list(range(9))


@pytest.mark.parametrize("name", ["skid", "sslacl"])
def test_workers_and_restarts(name: str, tmp_path: Path, gloo: GlooPool) -> None:
    """One float64 trajectory of parameters, running statistics and validation on 1, 2 and 4 workers; a run that goes
    on from any step has the bits of the undisturbed one, its validation and its best weights too."""
    settings = tree(tmp_path, name, plan=PLAN)
    states = {1: [trained(settings, "1")], **{w: gloo.run(trained, w, settings, f"{w}") for w in (2, 4)}}
    alone = states[1][0]
    expected = rows(tmp_path / "runs" / "1")
    measured = {row[2] for row in expected if row[1] == "val"}
    assert measured == {f"val_{name}{end}" for name in ("loss", "accuracy") for end in ("", "_at_lowest_loss")}
    for world in (2, 4):
        for key, value in states[world][0].items():
            if value.is_floating_point():
                # A bias before batch norm has a gradient of rounding errors alone: it is held against 1.
                assert (value - alone[key]).norm() <= 1e-9 * alone[key].norm().clamp_min(1.0), (world, key)
        found = rows(tmp_path / "runs" / f"{world}")
        assert [row[:3] for row in found] == [row[:3] for row in expected]
        for row, other in zip(found, expected, strict=True):
            assert row[3] == pytest.approx(other[3], rel=1e-9, abs=1e-9), row
    for world, left in ((1, 2), (4, 3)):
        folder = tmp_path / "runs" / f"{world}"
        store, before = checkpoint.Checkpoints(folder / "checkpoints"), rows(folder)
        final = checkpoint.load(store.path(4))
        for step in range(left + 1, 5):
            store.path(step).unlink()
        again = [trained(settings, "1")] if world == 1 else gloo.run(trained, world, settings, f"{world}")
        for one, other in zip(states[world], again, strict=True):
            assert all(torch.equal(one[key], other[key]) for key in one)
        assert rows(folder) == before
        best = checkpoint.load(store.path(4))["best"]
        assert all(torch.equal(best[key], final["best"][key]) for key in best)


@pytest.mark.parametrize("name", list(TASKS))
def test_a_task_is_learnt(name: str, tmp_path: Path) -> None:
    """The loss on training batches falls below chance; the number of labels is filled in from the views."""
    plan = {"epochs": 12, "batch_size": 16, "slices_per_exam": 1}
    done = job.train(config.from_tree(tree(tmp_path, name, plan=plan, optim={"lr": 3e-3}), "test"))
    classes = {"geometric": 54}.get(name, 6)
    assert done.settings.method["pretext_classes"] == classes == done.method.head.out_dim  # type: ignore[union-attr]
    losses = [row[3] for row in rows(tmp_path / "runs" / "tiny") if row[2] == "loss"]
    assert sum(losses[-6:]) / 6 < min(math.log(classes), sum(losses[:3]) / 3) - 0.02, losses
    encoder = pretrained.load(tmp_path / "runs" / "tiny").encoder
    assert encoder(torch.zeros(2, 1, 36, 36)).shape == (2, encoder.feature_dim)


def test_training_ends_when_the_validation_loss_stops_falling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses 3, 2, 2.5, 2, 4: the third after the lowest ends it with a patience of 3. The checkpoint holds the
    weights of the lowest, and the same command finds the run finished."""
    from sslmed_dist.training.validation import Validation

    losses = iter([3.0, 2.0, 2.5, 2.0, 4.0])
    monkeypatch.setattr(Validation, "terms", lambda self, state: {"loss": next(losses), "accuracy": 0.5})
    plan = {"epochs": 9, "steps_per_epoch": 1, "validate": "val", "patience": 3, "checkpoint_every": 2}
    settings = config.from_tree(tree(tmp_path, "skid", plan=plan), "test")
    done = job.train(settings)
    assert (done.state.epoch, done.state.watch.lowest, done.state.watch.lowest_epoch) == (5, 2.0, 2)
    assert done.state.watch.ended and done.finished() and not done.state.stopped
    folder = tmp_path / "runs" / "tiny"
    store = checkpoint.Checkpoints(folder / "checkpoints")
    assert store.latest() == store.path(5)
    best, last = checkpoint.load(store.path(5)), checkpoint.load(store.path(5))["method"]
    assert all(torch.equal(best["best"][key], value) for key, value in checkpoint.load(store.path(4))["best"].items())
    key = "encoder.squeeze.conv.weight"
    assert not torch.equal(best["best"][key], last[key])
    chosen = pretrained.load(folder, "best").encoder.state_dict()["squeeze.conv.weight"]
    assert torch.equal(chosen, best["best"][key])
    again = job.train(settings)  # asks for no further loss
    assert again.state.step == 5 and rows(folder)[-1][0] == 5


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"views": {"name": "standard", "size": 36}}, r"standard poses no task for the method jigsaw; allowed: geo"),
        ({"method": {"pretext_classes": 7}}, r"^method\.pretext_classes: 7, but the views have 6"),
        ({"views": {"arrangements": {"classes": 5000}}}, r"^views\.arrangements\.classes: expected 2 to 1887"),
        (
            {"views": {"arrangements": {"class": 6}}},
            r"^views\.arrangements\.class: unknown key; allowed: rule, ",
        ),
        ({"views": {"arrangements": 6}}, r"^views\.arrangements: expected a mapping, got 6"),
        ({"views": {"patches": 6}}, r"^views\.patches: unknown key; allowed: .*arrangements"),
        ({"method": {"head": {"name": "identity"}}}, r"^method\.head: identity has \d+ outputs, the task 6 labels"),
        (
            {
                "plan": {"validate": "val"},
                "method": {"name": "byol"},
                "views": {"name": "contrastive", "size": 12, "jitter": None, "grey": 0.0},
            },
            r"^plan\.validate: not with the method byol; allowed: classify, diagnose, geometric, jigsaw, or null",
        ),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, sections: dict[str, Any], message: str) -> None:
    given = tree(tmp_path, "sslacl", **sections)
    with pytest.raises(ValueError, match=message):
        job.assemble(config.from_tree(given, "test"))


def test_a_grid_of_two_needs_one_stream(tmp_path: Path) -> None:
    views = {"arrangements": {"rule": "uniform", "grid": 2, "classes": 6}}
    work = job.assemble(config.from_tree(tree(tmp_path, "skid", views=views), "test"))
    batch = next(iter(work.batches.epoch(0)))
    with pytest.raises(ValueError, match=r"^views\.arrangements\.grid: 4 patches for the stem's 9 branches; allowed: "):
        work.method(work.views(batch, seed=0, epoch=0))
    work = job.assemble(config.from_tree(tree(tmp_path, "single", views=views), "test"))
    terms = work.method(work.views(next(iter(work.batches.epoch(0))), seed=0, epoch=0))
    assert bool(terms["loss"].isfinite())


def test_plan_keys_that_contradict() -> None:
    with pytest.raises(ValueError, match=r"plan\.patience: needs plan\.validate"):
        config.Plan(patience=3)
    with pytest.raises(ValueError, match=r"plan\.validate: a federation has fixed rounds"):
        config.Config({}, {}, {}, plan=config.Plan(validate="val"), federated=config.Federated())


def test_views_are_asked_by_the_seed_so_sites_agree(tmp_path: Path) -> None:
    """What ``SUPPLIES`` makes is a function of the recipe: two sites with other data have the same arrangements."""
    settings = config.from_tree(tree(tmp_path, "skid"), "test")
    dataset = build.load_data(settings, "train")
    views = [build.build_views(config.replace(settings, run={"seed": seed}), dataset) for seed in (0, 1)]
    assert torch.equal(views[0].arrangements, views[1].arrangements)  # type: ignore[arg-type]
