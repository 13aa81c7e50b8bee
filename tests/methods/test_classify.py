"""The classifier's loss against a slow one, its gradient over ranks, freezing, its scores, what data decides."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sslmed_dist import checkpoint, config, distributed, randomness, registry
from sslmed_dist.methods import METHODS
from sslmed_dist.methods.classify import Classify
from sslmed_dist.training import build, job, optim, pretrained
from tests import tiny
from tests.drivers.test_equality import relative, trained
from tests.gloo import GlooPool

ENCODER = {"name": "resnet", "depth": 9, "stem": "cifar", "width": 4}
LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, 0.3], [-3.0, 1.0, 4.0], [-1.0, 1.0, 1.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 2, 1, 1])
MULTI = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
CASES: dict[str, tuple[dict[str, Any], int, Tensor]] = {
    "classes": ({"classes": 3, "class_weights": [1.264, 1.667, 2.114]}, 3, LABELS),
    "plain": ({"classes": 3}, 3, LABELS),
    "binary": ({"classes": 2, "class_weights": 4.24}, 1, LABELS.clamp(max=1)),
    "labels": ({"classes": 3, "task": "multi", "class_weights": [0.5, 1.0, 3.0]}, 3, MULTI),
}


def classifier(**arguments: Any) -> Classify:
    """A tiny classifier with keyed weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made: Classify = registry.build(METHODS, {"name": "classify", "encoder": ENCODER, **arguments}, "method")
    return made.double()


def slow(case: str) -> float:
    """The loss, one sample and one output at a time."""
    arguments, outputs, labels = CASES[case]
    weights = arguments.get("class_weights", 1.0)
    weights = weights if isinstance(weights, list) else [weights] * outputs
    total, norm = 0.0, 0.0
    for row, label in zip(LOGITS[:, :outputs].tolist(), labels.tolist(), strict=True):
        if outputs == 3 and not isinstance(label, list):
            share = math.exp(row[label]) / sum(map(math.exp, row))
            total, norm = total - weights[label] * math.log(share), norm + weights[label]
            continue
        for value, truth, weight in zip(row, label if isinstance(label, list) else [label], weights, strict=True):
            p = 1 / (1 + math.exp(-value))
            total, norm = total - (weight * math.log(p) if truth else math.log(1 - p)), norm + 1
    return total / norm


@pytest.mark.parametrize("case", CASES)
def test_the_loss_is_the_slow_one(case: str) -> None:
    arguments, outputs, labels = CASES[case]
    terms = classifier(**arguments).objective({"logits": LOGITS[:, :outputs]}, {"labels": labels})
    assert terms["loss"].item() == pytest.approx(slow(case), rel=1e-12)


def test_accuracy_counts_samples_and_labels() -> None:
    found = [
        classifier(**arguments).objective({"logits": LOGITS[:, :outputs]}, {"labels": labels})["accuracy"].item()
        for arguments, outputs, labels in CASES.values()
    ]
    assert found == pytest.approx([3 / 4, 3 / 4, 1 / 4, 7 / 12])


def batch_of(rows: int, case: str) -> dict[str, Tensor]:
    """Keyed images with labels, class sizes uneven, so that the ranks' sums of weights differ."""
    ids = torch.arange(rows)
    images = randomness.uniform(3, ids[:, None], torch.arange(64)[None, :]).view(rows, 1, 8, 8).double()
    if case == "labels":
        labels = (randomness.uniform(4, ids[:, None], torch.arange(3)[None, :]) < 0.4).float()
    else:
        labels = (ids // 3) % (2 if case == "binary" else 3)
    return {"views_0": images, "labels": labels}


def gradients(case: str) -> tuple[float, Tensor]:
    """This rank's loss and gradient of its rows of eight; batch norm is left out (evaluation mode)."""
    method = classifier(**CASES[case][0], channels=1).eval()
    part = slice(distributed.rank(), None, distributed.world_size())
    loss = method({name: value[part] for name, value in batch_of(8, case).items()})["loss"]
    grads = torch.autograd.grad(loss, list(method.parameters()))
    return loss.item(), torch.cat([grad.flatten() for grad in grads])


@pytest.mark.parametrize("case", CASES)
def test_ranks_together_are_one_process(gloo: GlooPool, case: str) -> None:
    value, gradient = gradients(case)
    for world in (2, 4):
        values, found = zip(*gloo.run(gradients, world, case), strict=True)
        assert sum(values) / world == pytest.approx(value, rel=1e-12)
        assert (torch.stack(found).mean(0) - gradient).norm() <= 1e-12 * gradient.norm()


def tree(folder: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    """A tiny fine-tuning."""
    below = tiny.tree(folder)
    below["method"] = {"name": "classify", "encoder": ENCODER, "class_weights": 2.0}
    # Not flipped: the class is the side that is bright.
    below["views"] = below["views"] | {"views": 1, "flip": 0.0, "crop_scale": [0.6, 1.0]}
    below["optim"] = {"name": "sgd", "lr": 0.1, "schedule": {"name": "step", "milestones": [1]}}
    return config.merge(below, sections)


def test_workers_walk_one_float64_trajectory(tmp_path: Path, gloo: GlooPool) -> None:
    fine = tree(tmp_path, plan={"precision": "float64"})
    alone = trained(fine, "alone")
    assert relative(gloo.run(trained, 2, fine, "two")[0], alone) < 1e-9


def test_the_data_decides_classes_and_task(tmp_path: Path) -> None:
    settings = config.from_tree(tree(tmp_path), "fine")
    dataset = build.load_data(settings, "train")
    resolved = build.resolve(settings, dataset)
    assert {key: resolved.method[key] for key in ("channels", "classes", "task")} == {
        "channels": 1, "classes": 2, "task": "single"
    }  # fmt: skip
    assert build.resolve(resolved, dataset) == resolved
    for key, value, has in (("classes", 4, "2"), ("task", "multi", "single")):
        with pytest.raises(ValueError, match=f"^method.{key}: {value}, but tiny has {has}$"):
            build.resolve(config.replace(settings, method={key: value}), dataset)
    dataset.labels = dataset.labels - 1
    with pytest.raises(ValueError, match="^tiny: holds unlabelled samples; the method classify needs labels$"):
        build.resolve(settings, dataset)
    assert "classes" not in build.resolve(tiny.settings(tmp_path), dataset).method


def test_a_frozen_encoder_stays_as_it_was_and_starts_from_a_run(tmp_path: Path) -> None:
    start = job.train(tiny.settings(tmp_path))
    source = {"run": {"name": "fine", "start_from": str(start.settings.folder)}, "method": {"freeze": True}}
    done = job.train(config.from_tree(tree(tmp_path, **source), "fine"))
    encoder = start.method.encoder.state_dict()
    own = done.method.encoder.state_dict()
    assert all(torch.equal(own[key], value) for key, value in encoder.items())
    untouched = pretrained.first_method(done.settings).state_dict()
    assert not torch.equal(done.method.state_dict()["head.weight"], untouched["head.weight"])
    saved = checkpoint.load(done.settings.folder / "checkpoints" / "step_000000006.pt")
    assert "weights" not in saved["method"]


def test_fine_tuning_moves_the_encoder_and_learns(tmp_path: Path) -> None:
    longer = tree(tmp_path, plan={"epochs": 10}, optim={"schedule": {"name": "step", "milestones": [7]}})
    done = job.train(config.from_tree(longer, "fine"))
    batch = next(iter(done.batches.epoch(0)))
    views = build.standard_views(done.settings, done.dataset)(batch, seed=0, epoch=0)
    done.method.eval()
    assert done.method.objective(done.method.embed(views), views)["accuracy"] > 0.9


@pytest.mark.parametrize("case", CASES)
def test_predictions_are_log_probabilities(case: str) -> None:
    method = classifier(**CASES[case][0], channels=1).eval()
    images = batch_of(4, case)["views_0"]
    logits, probabilities = method.head(method.encoder(images)), method.predict(images).exp()
    assert probabilities.shape == (4, method.classes)
    if case == "labels":
        torch.testing.assert_close(probabilities, logits.sigmoid())
        return
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(4).double())
    expected = logits.softmax(dim=1)[:, 1] if case != "binary" else logits[:, 0].sigmoid()
    torch.testing.assert_close(probabilities[:, 1], expected)


def test_the_schedule_of_the_thesis() -> None:
    leaf = {"name": "sgd", "lr": 1.0, "schedule": {"name": "step", "milestones": [30, 40]}}
    made = optim.build(leaf, classifier(), batch_size=128, epochs=50, per_epoch=7)
    rates = [made.learning_rate(epoch * 7) for epoch in range(50)]
    assert rates == pytest.approx([1.0] * 30 + [0.1] * 10 + [0.01] * 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": 1}, "method.classes: expected an integer >= 2 for the task single, got 1"),
        ({"classes": 3, "class_weights": 2.0}, r"expected 3 numbers, one per class, finite and > 0, got 2.0"),
        ({"classes": 3, "class_weights": [1.0, 2.0]}, r"expected 3 numbers, one per class"),
        ({"classes": 2, "class_weights": [1.0, 2.0]}, r"expected one number, the positive class's, finite"),
        ({"classes": 3, "task": "multi", "class_weights": [1.0, 2.0]}, r"one number, .* or 3, one per label"),
        ({"class_weights": 0.0}, "method.class_weights: expected one number, .* got 0.0"),
        ({"class_weights": "heavy"}, "method.class_weights: expected"),
        ({"task": "both"}, "method.task: expected one of 'single', 'multi', got 'both'"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classifier(**arguments)
