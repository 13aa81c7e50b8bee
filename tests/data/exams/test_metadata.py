"""What the metadata say: numbers brought to one scale, scanners as columns, nothing from the pixels."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sslmed_dist.data.dataset import ArrayDataset, Subset
from sslmed_dist.data.exams.exam_dataset import ExamDataset
from sslmed_dist.data.exams.metadata import MOST_SCANNERS, metadata_features
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


def test_numbers_have_one_scale_and_scanners_a_column_each() -> None:
    records = [
        {"spacing_mm": [3.0 + k, 0.5, 0.5], "echo_ms": None if k == 2 else 30.0 + k, "slots": ["sagittal"]}
        for k in range(4)
    ]
    features, names = metadata_features(described(records, scanners=torch.tensor([7, 2, 7, 2])))
    assert names == ("slices", "step_mm", "echo_ms", "scanner 0", "scanner 1")  # what does not differ is no feature
    assert torch.allclose(features[:, :3].mean(0), torch.zeros(3), atol=1e-6)
    assert torch.allclose(features[:, 1], (torch.arange(4.0) - 1.5) / torch.arange(4.0).std())
    assert features[2, 2] == 0  # missing: the mean
    assert features[:, 3:].tolist() == [[0, 1], [1, 0], [0, 1], [1, 0]]


def test_a_subset_has_the_rows_of_the_set_and_many_scanners_share_the_last_column() -> None:
    data = described([{} for _ in range(100)], scanners=torch.arange(100))
    features, names = metadata_features(data)
    assert len(names) == 1 + MOST_SCANNERS and features[:, 1:].sum(1).tolist() == [1.0] * 100
    part, same = metadata_features(Subset(data, torch.tensor([3, 99])))
    assert same == names and torch.equal(part, features[[3, 99]])


def test_mrnet_has_slices_and_sites_and_images_have_none(tmp_path: Path) -> None:
    write_knee(tmp_path / "knee", train=4, valid=0, sites=2, size=16, slices=(3, 9), planes=("axial",))
    features, names = metadata_features(MRNet(tmp_path / "knee", plane="axial", side=16))
    assert names == ("slices", "site 0", "site 1") and features.shape == (4, 3)
    images = ArrayDataset(
        name="x", images=torch.zeros(2, 1, 4, 4), labels=torch.zeros(2, dtype=torch.int64), classes=("a",)
    )
    with pytest.raises(ValueError, match="expected a set of examinations"):
        metadata_features(images)
