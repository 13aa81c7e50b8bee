"""Classes that lack samples are said beside every figure that suffers from it."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sslmed_dist.data.dataset import ArrayDataset
from sslmed_dist.downstream import KNN, Evaluator, LinearProbe, RawPixels, compared_rows, predict, rows_of
from sslmed_dist.downstream.classifier import classified
from sslmed_dist.downstream.coverage import coverage, remarks_in
from sslmed_dist.downstream.predictions import pool
from sslmed_dist.downstream.rows import write_rows
from tests.downstream.scale import Scale

CLASSES = ("cat", "dog", "frog", "ship; ferry", "yak\n")
LABELS = torch.tensor([0, 0, 0, 1, 3, 3] + [0, 3] + [0, 0, 1, 2, 2])
PARTS = {"train": torch.arange(6), "val": torch.arange(6, 8), "test": torch.arange(8, 13)}
TRAIN_AND_TEST = (
    "classes only in test, always scored as wrong: frog (2 of 5 test samples)",
    "classes only in train, not scored: ship, ferry",
    r"classes without samples in train and in test: yak\n",
    "classes with one training sample: dog",
    "classes with one test sample: dog",
)
IN_VAL = "classes missing in val, on which the choice is made: dog"


def tensor(*labels: int) -> Tensor:
    return torch.tensor(labels)


@pytest.mark.parametrize(
    ("train", "test", "val", "expected"),
    [
        (tensor(0, 0, 1, 1), tensor(0, 0, 1, 1), tensor(0, 1), ()),
        (tensor(0, 0), tensor(1, 1, 0, 0), None, ("only in test, always scored as wrong: b (2 of 4 test samples)",)),
        (tensor(0, 0, 1, 1), tensor(1, 1), None, ("only in train, not scored: a",)),
        (tensor(0, 0, 1), tensor(0, 0, 1), None, ("with one training sample: b", "with one test sample: b")),
        (tensor(0, 0, 1, 1), tensor(0, 0, 1, 1), tensor(0), ("missing in val, on which the choice is made: b",)),
    ],
)
def test_each_lack_is_said(train: Tensor, test: Tensor, val: Tensor | None, expected: tuple[str, ...]) -> None:
    assert coverage("single", ("a", "b"), train, test, val) == tuple(f"classes {remark}" for remark in expected)


def test_labels_without_both_values_in_train_are_said() -> None:
    train = torch.tensor([[1, 0, 1, 1], [1, 0, 0, 0], [1, 0, 1, 0]]).float()
    assert coverage("multi", ("a", "b", "c", "d"), train, train) == (
        "labels never positive in train, so that their AUC says nothing: b",
        "labels always positive in train, so that their AUC says nothing: a",
        "labels with one positive training sample: d",
    )


def test_of_many_classes_the_first_are_named() -> None:
    names, train = tuple(f"c{number}" for number in range(9)), tensor(0, 0)
    said = coverage("single", names, train, torch.arange(9).repeat(2))
    assert said == (
        "classes only in test, always scored as wrong: c1, c2, c3, c4, c5 and 3 more (16 of 18 test samples)",
    )


class Guess(nn.Module):
    def predict(self, images: Tensor) -> Tensor:
        return images.new_zeros(len(images), len(CLASSES)).log_softmax(dim=1)


def made_up() -> ArrayDataset:
    images = torch.randint(0, 256, (13, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ArrayDataset(name="made-up", images=images, labels=LABELS, classes=CLASSES)


def test_every_evaluator_that_scores_classes_says_it_in_its_rows_and_once_aloud(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluators: dict[str, Evaluator] = {"knn": KNN(k=3), "linear": LinearProbe((0.1,), epochs=2)}
    data, views = made_up(), Scale()
    found = predict(RawPixels(), data, PARTS, evaluators=evaluators, views=views, device="cpu", seed=0)
    found["classifier"] = classified(
        Guess(), data, PARTS["test"], views=views, device="cpu", seed=0, trained_on=PARTS["train"]
    )
    assert found["knn"].coverage == found["classifier"].coverage == TRAIN_AND_TEST
    assert found["linear"].coverage == (*TRAIN_AND_TEST, IN_VAL)
    rows = rows_of(found, arm="encoder", site="north", seed=0)
    rows += compared_rows(found, found, arms=("encoder", "random"), site="north", seed=0)
    write_rows(tmp_path / "last.json", rows)
    written = json.loads((tmp_path / "last.json").read_text())["rows"]
    wanted = {"knn": [*TRAIN_AND_TEST], "linear": [*TRAIN_AND_TEST, IN_VAL], "classifier": [*TRAIN_AND_TEST]}
    assert len(written) == 18 and all(remarks_in(row["note"]) == wanted[row["evaluator"]] for row in written)
    said = capsys.readouterr().err.splitlines()
    assert said == [f"last.json: site north: {remark}" for remark in (*TRAIN_AND_TEST, IN_VAL)]
    # Of pooled sites: what does not hold everywhere says at how many.
    both = pool([found["knn"], found["linear"]]).coverage
    assert both == (*TRAIN_AND_TEST, f"at 1 of 2 sites: {IN_VAL}")
    assert remarks_in("; ".join(["no interval: 1 group", *both])) == [*both]
