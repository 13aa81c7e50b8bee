"""Extraction on a small made-up dataset: what it gives, what it leaves alone, what it refuses."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslmed_dist.data.dataset import ArrayDataset
from sslmed_dist.downstream import RawPixels, extract, extract_splits, predict
from sslmed_dist.downstream.features import occurrences
from tests.downstream.scale import Scale


def made_up(n: int = 40, multi: bool = False, groups: Tensor | None = None) -> ArrayDataset:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 2
    images = torch.randint(0, 200, (n, 1, 4, 4), generator=generator, dtype=torch.uint8)
    images[labels == 1] += 30
    truth = torch.stack([labels, 1 - labels], dim=1).float() if multi else labels
    return ArrayDataset(name="made-up", images=images, labels=truth, classes=("no", "yes"), groups=groups)


def thirds(n: int = 40) -> dict[str, Tensor]:
    every = torch.arange(n)
    return {"train": every[: n // 2], "val": every[n // 2 : 3 * n // 4], "test": every[3 * n // 4 :]}


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten())


def settings(**more: Any) -> dict[str, Any]:
    return {"views": Scale(), "device": "cpu", **more}


def test_features_are_those_of_evaluation_mode_and_modes_are_put_back() -> None:
    model, data = encoder().train(), made_up()
    model[1].eval()  # type: ignore[index]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = extract(model, data, torch.arange(40), **settings(batch_size=7))
    assert [part.training for part in model] == [True, False, True, True]  # type: ignore[attr-defined]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    model.eval()
    expected = model(data.images.float() / 255)
    torch.testing.assert_close(found.x, expected.detach())
    assert found.x.dtype == torch.float32 and not found.x.is_inference()
    assert torch.equal(found.labels, data.labels) and torch.equal(found.index, data.ids)


def test_order_labels_and_groups_follow_the_positions() -> None:
    data, positions = made_up(groups=torch.arange(40) // 4), torch.tensor([31, 2, 17])
    found = extract(RawPixels(), data, positions, **settings())
    assert torch.equal(found.x, data.images[positions].flatten(1) / 255)
    assert found.groups.tolist() == [7, 0, 4] and found.index.tolist() == [31, 2, 17]
    assert torch.equal(found.labels, data.labels[positions])


def test_repeated_positions_are_fetched_with_the_next_draw() -> None:
    assert occurrences(torch.tensor([5, 3, 5, 5, 3, 9])).tolist() == [0, 0, 1, 2, 1, 0]


def test_raw_pixels_lose_the_mean_of_each_channel_of_train() -> None:
    images = torch.randint(0, 255, (40, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    data = ArrayDataset(name="colour", images=images, labels=torch.arange(40) % 2, classes=("no", "yes"))
    splits = extract_splits(RawPixels(), data, thirds(), **settings())
    expected = images[30:] / 255 - (images[:20] / 255).mean(dim=(0, 2, 3))[:, None, None]
    torch.testing.assert_close(splits.test.x, expected.flatten(1))
    assert splits.train.x.reshape(-1, 3, 16).mean(dim=(0, 2)).abs().max() < 1e-6


def test_an_empty_validation_split_is_allowed_here() -> None:
    splits = extract_splits(RawPixels(), made_up(), thirds() | {"val": torch.arange(0)}, **settings())
    assert splits.val.x.shape == (0, 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test": torch.arange(0)}, "the split test is empty"),
        ({"test": torch.tensor([39, 3])}, "sample 3 is in both train and test"),
        ({"other": torch.arange(2)}, "expected the splits train, val, test, got other"),
    ],
)
def test_wrong_splits_are_refused(change: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        extract_splits(RawPixels(), made_up(), thirds() | change, **settings())


def test_a_patient_in_train_and_test_is_refused() -> None:
    data = made_up(groups=torch.arange(40) % 5)
    with pytest.raises(ValueError, match=r"made-up: patient \(group\) 0 is in both train and test"):
        extract_splits(RawPixels(), data, thirds(), **settings())


def test_unlabelled_samples_are_refused() -> None:
    data = made_up()
    data.labels[3] = -1
    with pytest.raises(ValueError, match="the split train holds unlabelled samples"):
        extract_splits(RawPixels(), data, thirds(), **settings())


def test_non_finite_features_are_refused() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).index_fill(0, torch.tensor([1]), torch.nan)

    with pytest.raises(ValueError, match="made-up: the encoder gives non-finite features for 1 of 40 samples"):
        extract(Broken(), made_up(), torch.arange(40), **settings())


def test_evaluators_mistakes_name_the_dataset() -> None:
    from sslmed_dist.downstream import KNN

    with pytest.raises(ValueError, match="made-up: knn.k: 200 neighbours asked of n = 20"):
        predict(RawPixels(), made_up(), thirds(), evaluators={"knn": KNN()}, seed=0, **settings())


def test_one_missing_label_of_several_is_refused() -> None:
    data = made_up()
    data.labels = torch.zeros(len(data), 2)
    data.labels[3, 1] = float("nan")
    with pytest.raises(
        ValueError, match=r"the split train holds unlabelled samples \(1; one missing label is enough\)"
    ):
        extract_splits(RawPixels(), data, thirds(), **settings())
