"""Nearest neighbours while the encoder trains: the training does not notice them, and they are what they say."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sslmed_dist.training import build, job
from sslmed_dist.training.monitor import Monitor
from tests import tiny


def rows(run: Path) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return [row for row in lines if row["name"].startswith("knn_")]


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_training_has_the_same_bits_with_it(tmp_path: Path, precision: str) -> None:
    runs = [
        job.train(
            tiny.settings(
                tmp_path,
                run={"name": f"r{every}"},
                plan={"precision": precision, "epochs": 3},
                evaluate={"every": every},
            )
        )  # type: ignore[dict-item]
        for every in (None, 2)
    ]
    for key, value in runs[0].method.state_dict().items():
        assert torch.equal(runs[1].method.state_dict()[key], value), key
    assert rows(runs[0].settings.folder) == []
    (row,) = rows(runs[1].settings.folder)
    assert (row["name"], row["step"], row["epoch"], row["split"]) == ("knn_accuracy", 6, 1, "train")
    assert 0.0 <= row["value"] <= 1.0


def test_the_value_is_the_share_of_images_whose_neighbours_agree(tmp_path: Path) -> None:
    work = job.assemble(tiny.settings(tmp_path))
    monitor = Monitor(work.settings, work.dataset)
    train, test = monitor.parts["train"], monitor.parts["test"]
    assert not set(train.tolist()) & set(test.tolist()) and len(train) + len(test) == 48
    views = build.standard_views(work.settings, work.dataset)

    def features(positions: Tensor) -> Tensor:
        batch = work.dataset.fetch(positions, seed=0, epoch=0, draw=torch.zeros_like(positions))
        with torch.no_grad():
            x = work.method.eval().encoder(views(batch, seed=0, epoch=0)["views_0"]).double()
        return x / x.norm(dim=1, keepdim=True)

    similarity = features(test) @ features(train).T
    right = 0
    for query, label in enumerate(work.dataset.labels[test].tolist()):
        nearest = similarity[query].argsort(descending=True)[:20]
        votes = torch.zeros(2, dtype=torch.float64)
        for neighbour in nearest.tolist():
            weight = torch.exp(similarity[query, neighbour] / monitor.evaluator.temperature)
            votes[int(work.dataset.labels[train[neighbour]])] += weight
        right += int(votes.argmax()) == label
    assert monitor.measure(work.method) == {"knn_accuracy": pytest.approx(right / len(test))}


def test_unlabelled_images_are_refused(tmp_path: Path) -> None:
    work = job.assemble(tiny.settings(tmp_path))
    work.dataset.labels[3] = -1
    with pytest.raises(ValueError, match="evaluate.every: tiny holds unlabelled samples"):
        Monitor(work.settings, work.dataset)


@pytest.mark.parametrize("every", [0, -1])
def test_every_is_a_number_of_epochs(tmp_path: Path, every: int) -> None:
    with pytest.raises(ValueError, match=f"evaluate.every: expected an integer >= 1 or null, got {every}"):
        tiny.settings(tmp_path, evaluate={"every": every})
