"""Collapse measures against slow references and closed forms."""

import math

import pytest
import torch

from sslmed_dist.losses.collapse import ROWS, collapse_measures
from tests import references
from tests.losses.golden import embeddings


def values(z0: torch.Tensor, z1: torch.Tensor) -> dict[str, float]:
    return {name: value.item() for name, value in collapse_measures(z0, z1).items()}


def test_slow_references() -> None:
    z0, z1 = embeddings(9, 4, "measures")
    measured = values(z0, z1)
    assert list(measured) == ["embedding_std", "effective_rank", "uniformity", "alignment"]
    for name in ("embedding_std", "uniformity"):
        reference = getattr(references, name)
        assert measured[name] == pytest.approx((reference(z0) + reference(z1)) / 2, rel=1e-12)
    assert measured["alignment"] == pytest.approx(references.alignment(z0, z1), rel=1e-12)
    ranks = []
    for z in (z0, z1):
        shares = torch.linalg.svdvals(z / z.norm(dim=1, keepdim=True))
        ranks.append(math.exp(-sum(p * math.log(p) for p in (shares / shares.sum()).tolist())))
    assert measured["effective_rank"] == pytest.approx(sum(ranks) / 2, rel=1e-10)


@pytest.mark.parametrize("rows, width", [(8, 512), (300, 16)])
def test_collapsed_embeddings(rows: int, width: int) -> None:
    """One direction in float32: rank 1 and not the rounding errors' rank."""
    z = embeddings(1, width, "collapsed")[0].float().expand(rows, width)
    expected = {"embedding_std": 0.0, "effective_rank": 1.0, "uniformity": 0.0, "alignment": 0.0}
    assert values(z, 3.0 * z) == pytest.approx(expected, abs=1e-5)
    assert values(0.0 * z, 0.0 * z)["effective_rank"] == 1.0


def test_orthogonal_embeddings() -> None:
    eye = torch.eye(8)
    measured = values(eye, -eye)
    expected = {"embedding_std": math.sqrt(7 / 8), "effective_rank": 8.0, "uniformity": -4.0, "alignment": 4.0}
    assert measured == pytest.approx(expected, rel=1e-12)


def test_isotropic_embeddings() -> None:
    z0, z1 = embeddings(1500, 16, "isotropic")
    measured = values(z0, z1)
    assert measured["embedding_std"] == pytest.approx(1.0, abs=0.01)
    assert measured["effective_rank"] == pytest.approx(16.0, abs=0.1)


def test_first_rows_count_and_nothing_carries_a_gradient() -> None:
    z0, z1 = (z.float().requires_grad_() for z in embeddings(ROWS + 5, 3, "many"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        measured = collapse_measures(z0, z1)
    assert not any(value.requires_grad for value in measured.values())
    assert values(z0[:ROWS], z1[:ROWS]) == {name: value.item() for name, value in measured.items()}


def test_one_row_is_refused() -> None:
    with pytest.raises(ValueError, match="z0: expected at least 2 rows, got 1"):
        collapse_measures(torch.ones(1, 3), torch.ones(1, 3))
