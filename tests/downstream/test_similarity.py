"""Histograms of similarity against a loop over pairs."""

import math

import pytest
import torch

from sslmed_dist.downstream import histogram, similarity
from sslmed_dist.downstream.similarity import KINDS


def views(n: int = 13) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    centre = torch.randn(n, 4, generator=generator)
    return centre, centre + 0.3 * torch.randn(n, 4, generator=generator), torch.arange(n) % 3


def test_counts_and_means_equal_the_loop_over_pairs() -> None:
    first, second, labels = views()
    found = histogram(first, second, labels, bins=20)
    counts, values = {kind: [0] * 20 for kind in KINDS}, {kind: [] for kind in KINDS}  # type: ignore[var-annotated]
    for i, x in enumerate(first.double().tolist()):
        for j, y in enumerate(second.double().tolist()):
            cosine = sum(a * b for a, b in zip(x, y, strict=True)) / (math.hypot(*x) * math.hypot(*y))
            kind = KINDS[0] if i == j else KINDS[1] if labels[i] == labels[j] else KINDS[2]
            counts[kind][math.floor((cosine + 1) * 10)] += 1
            values[kind].append(cosine)
    assert found.counts == {kind: tuple(row) for kind, row in counts.items()}
    for kind in KINDS:
        assert found.means[kind] == pytest.approx(sum(values[kind]) / len(values[kind]), rel=1e-12)
    assert sum(found.pairs(kind) for kind in KINDS) == 13 * 13 and found.pairs("true_positive") == 13
    assert found.edges[0] == -1.0 and found.edges[-1] == 1.0 and len(found.edges) == 21
    assert found.means["true_positive"] > found.means["true_negative"]  # type: ignore[operator]


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = histogram(*views())
    monkeypatch.setattr(similarity, "CHUNK", 3 * 13)
    chunked = histogram(*views())
    assert chunked.counts == whole.counts and chunked.edges == whole.edges
    assert [chunked.means[kind] for kind in KINDS] == pytest.approx([whole.means[kind] for kind in KINDS], rel=1e-12)


def test_the_ends_lie_in_the_outer_bins() -> None:
    x, labels = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([0, 1])
    found = histogram(x, 2 * x, labels, bins=4)
    assert found.counts == {"true_positive": (0, 0, 0, 2), "false_negative": (0,) * 4, "true_negative": (2, 0, 0, 0)}
    assert found.means == {"true_positive": 1.0, "false_negative": None, "true_negative": -1.0}


@pytest.mark.parametrize(
    ("rows", "bins", "labels", "message"),
    [
        (12, 10, torch.arange(13), r"got \(13, 4\), \(12, 4\), \(13,\)"),
        (13, 10, torch.zeros(13, 2), r"one label per sample \(N,\), got .* \(13, 2\)"),
        (13, 0, torch.arange(13), "expected bins >= 1 and labelled samples, got bins 0"),
        (13, 10, torch.arange(13) - 1, "expected bins >= 1 and labelled samples"),
    ],
)
def test_wrong_arguments_are_named(rows: int, bins: int, labels: torch.Tensor, message: str) -> None:
    first, second, _ = views()
    with pytest.raises(ValueError, match=message):
        histogram(first, second[:rows], labels, bins)
