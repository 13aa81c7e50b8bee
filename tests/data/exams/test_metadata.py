"""What the metadata say: numbers brought to one scale, scanners as columns, nothing from the pixels."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sslmed_dist.data.dataset import ArrayDataset, Subset
from sslmed_dist.data.exams.exam_dataset import ExamDataset
from sslmed_dist.data.exams.metadata import MOST_PLACES, MetadataColumns
from sslmed_dist.data.exams.mrnet import MRNet
from sslmed_dist.data.phantom import write_knee


class Described(ExamDataset):
    """Exams of which only the records matter."""

    def slices(self, position: int, numbers: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the pixels are not asked for")

    def value_range(self) -> tuple[float, float]:
        return (0.0, 1.0)

    def to(self, device: str | torch.device) -> "Described":
        return self


def described(records: list[dict[str, Any]], **facts: Any) -> Described:
    count = len(records)
    given = {"counts": torch.arange(count) + 10, "ids": torch.arange(count), "labels": torch.zeros(count, 1)} | facts
    return Described(name="exams", classes=("a",), channels=1, records=records, **given)


def test_numbers_have_the_training_s_scale_and_scanners_a_column_each() -> None:
    records = [
        {"spacing_mm": [3.0 + k, 0.5, 0.5], "echo_ms": None if k == 2 else 30.0 + k, "slots": ["sagittal"]}
        for k in range(4)
    ]
    counts = torch.tensor([10, 13, 10, 15])
    sets = {"s": described(records, counts=counts, scanners=torch.tensor([7, 2, 7, 2]))}
    learnt = MetadataColumns(sets, torch.arange(4))
    # What does not differ is no feature.
    assert learnt.names == ("s: slices", "s: step_mm", "s: echo_ms", "s: echo_ms unknown", "scanner 0", "scanner 1")
    x = learnt(sets, torch.arange(4))
    assert torch.allclose(x[:, :3].mean(0), torch.zeros(3).double(), atol=1e-12)
    assert torch.allclose(x[:, 1], (torch.arange(4.0).double() - 1.5) / torch.arange(4.0).double().std())
    assert x[:, 2:4].tolist()[2] == [0, 1]  # unknown: the mean, and it says so
    assert x[:, 4:].tolist() == [[0, 1], [1, 0], [0, 1], [1, 0]]
    # Another set keeps columns and scale: twice the step, all else unknown or new.
    other = described([{"spacing_mm": [9.0, 0.5, 0.5]}], counts=torch.tensor([20]), scanners=torch.tensor([5]))
    row = learnt({"s": other}, torch.tensor([0]))[0]
    std = float(torch.arange(4.0).double().std())
    assert row.tolist() == pytest.approx([8 / float(counts.double().std()), 4.5 / std, 0, 1, 0, 0])


def test_series_have_columns_of_their_own_and_what_repeats_is_left_out() -> None:
    first, second = described([{}] * 4), described([{}] * 2, ids=torch.tensor([1, 3]), counts=torch.tensor([5, 9]))
    learnt = MetadataColumns({"a": first, "again": first, "b": second}, torch.arange(4))
    assert learnt.names == ("a: slices", "b: slices", "b: slices unknown")
    x = learnt({"a": first, "again": first, "b": second}, torch.arange(4))
    assert x[:, 2].tolist() == [1, 0, 1, 0] and x[0, 1] == 0 and x[1, 1] == -x[3, 1]


def test_a_subset_is_learnt_alone_and_many_scanners_share_the_last_column() -> None:
    data = described([{} for _ in range(100)], scanners=torch.arange(100))
    learnt = MetadataColumns({"s": data}, torch.arange(100))
    x = learnt({"s": data}, torch.arange(100))
    assert len(learnt.names) == 1 + MOST_PLACES and x[:, 1:].sum(1).tolist() == [1.0] * 100
    part = Subset(data, torch.arange(0, 100, 2))
    assert len(MetadataColumns({"s": part}, part.ids).names) == 1 + 50
    assert MetadataColumns({"s": part}, part.ids)({"s": data}, torch.arange(100))[1::2, 1:].sum() == 0


def test_mrnet_has_slices_and_sites_and_images_have_none(tmp_path: Path) -> None:
    write_knee(tmp_path / "knee", train=4, valid=0, sites=2, size=16, slices=(3, 9), planes=("axial",))
    data = MRNet(tmp_path / "knee", plane="axial", side=16)
    learnt = MetadataColumns({"axial": data}, data.ids)
    assert learnt.names == ("axial: slices", "site 0", "site 1") and learnt({"axial": data}, data.ids).shape == (4, 3)
    images = ArrayDataset(
        name="x", images=torch.zeros(2, 1, 4, 4), labels=torch.zeros(2, dtype=torch.int64), classes=("a",)
    )
    with pytest.raises(ValueError, match="expected a set of examinations"):
        MetadataColumns({"x": images}, images.ids)
