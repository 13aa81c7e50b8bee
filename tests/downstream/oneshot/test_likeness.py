"""A query of another kind than the support or the training data is told; the same kind is not."""

import pytest
import torch
from torch import Tensor, nn

from sslmed_dist.downstream.oneshot.likeness import FAR, STRANGE, Statistics, distance, profile, warnings, watched


def scan(seed: int) -> Tensor:
    """Skewed as MR is: (6, 1, 32, 32), mean 0, deviation 1."""
    values = torch.randn(6, 1, 32, 32, generator=torch.Generator().manual_seed(seed)).exp()
    return (values - values.mean()) / values.std()


class Normed(nn.Module):
    """A batch norm whose running statistics are those of ``scan``."""

    def __init__(self, mean: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.norm.running_mean = torch.tensor([mean])

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.norm(images)
        return maps


def statistics_of(mean: float, images: Tensor) -> Statistics:
    encoder = Normed(mean).eval()
    with watched(encoder, len(images)) as statistics:
        for chunk in images.split(4):
            encoder(chunk)
    encoder(images + 100)  # is seen no more
    return statistics


def test_the_same_kind_is_not_told() -> None:
    assert distance(profile(scan(0)), profile(scan(1))) < FAR / 2
    assert warnings(profile(scan(0)), profile(scan(1)), ("MR", "MR"), statistics_of(0.0, scan(1))) == []


def test_another_contrast_and_modality_are_told() -> None:
    inverted = profile(-scan(0))
    assert distance(profile(scan(1)), inverted) > FAR
    lines = warnings(profile(scan(1)), inverted, ("MR", "CT"), Statistics())
    assert len(lines) == 2 and lines[0] == "its modality is CT, the support's MR"
    assert "another sequence, modality or field of view?" in lines[1]
    assert len(warnings(profile(scan(1)), inverted, ("", "CT"), Statistics())) == 1, "an unknown modality tells nothing"


@pytest.mark.parametrize("mean", [0.0, 0.15, -3.0])
def test_features_are_compared_with_those_of_training(mean: float) -> None:
    images = scan(0)
    value = statistics_of(mean, images).value
    assert value == pytest.approx(abs(mean), abs=1e-4)
    lines = warnings(profile(images), profile(images), ("", ""), statistics_of(mean, images))
    assert [("unlike the training data" in line) for line in lines] == [True] * (abs(mean) > STRANGE)


def test_an_encoder_without_batch_norm_tells_nothing() -> None:
    encoder = nn.Conv2d(1, 1, 3)
    with watched(encoder, 6) as statistics:
        encoder(scan(0))
    assert statistics.value is None
