"""Overlap losses against slow readings of their formulas, values known by hand, and gradients."""

import pytest
import torch
from torch import Tensor

from sslmed_dist import randomness
from sslmed_dist.losses.overlap import edge_dice, edges, soft_dice


def pair(rows: int = 5, columns: int = 6) -> tuple[Tensor, Tensor]:
    """Probabilities and masks, float64 (3, rows, columns): the last mask is empty."""
    cells = torch.arange(3 * rows * columns).view(3, rows, columns)
    masks = (randomness.uniform(2, cells) > 0.6).double()
    masks[2] = 0
    return randomness.uniform(1, cells), masks


def slow_dice(p: Tensor, m: Tensor) -> float:
    both = sizes = 0.0
    for a, b in zip(p.flatten().tolist(), m.flatten().tolist(), strict=True):
        both, sizes = both + a * b, sizes + a + b
    return 1 - (2 * both + 1e-5) / (sizes + 1e-5)


def slow_edges(one: Tensor) -> Tensor:
    rows, columns = one.shape
    out = torch.zeros_like(one)
    for i in range(rows):
        for j in range(columns):
            near = [
                float(one[r, c])
                for r in range(max(i - 1, 0), min(i + 2, rows))
                for c in range(max(j - 1, 0), min(j + 2, columns))
            ]
            out[i, j] = max(near) - min(near)
    return out


def test_they_are_the_slow_ones() -> None:
    p, m = pair()
    assert soft_dice(p, m).tolist() == pytest.approx([slow_dice(a, b) for a, b in zip(p, m, strict=True)], rel=1e-12)
    assert torch.equal(edges(p), torch.stack([slow_edges(one) for one in p]))
    slow = [slow_dice(slow_edges(a), slow_edges(b)) for a, b in zip(p, m, strict=True)]
    assert edge_dice(p, m).tolist() == pytest.approx(slow, rel=1e-12)


def test_known_values() -> None:
    mask = torch.zeros(1, 8, 8, dtype=torch.float64)
    mask[:, 2:5, 3:7] = 1
    half, empty = mask.clone(), torch.zeros_like(mask)
    half[:, :, 5:] = 0
    # An outline of 3 x 4 pixels: all of the 5 x 6 about it but the 1 x 2 in its middle.
    assert edges(mask).sum() == 5 * 6 - 2 and edges(mask).unique().tolist() == [0, 1]
    assert edges(torch.ones_like(mask)).sum() == 0  # the border of the slice is no edge
    assert [float(term(mask, mask)) for term in (soft_dice, edge_dice)] == [0, 0]
    assert [float(term(empty, empty)) for term in (soft_dice, edge_dice)] == [0, 0]
    assert float(soft_dice(half, mask)) == pytest.approx(1 - 2 * 6 / 18, rel=1e-5)
    assert float(soft_dice(0.5 * mask, mask)) == pytest.approx(1 - 2 * 6 / 18, rel=1e-5)
    assert float(soft_dice(empty, mask)) == pytest.approx(1, abs=1e-6)
    # A mask beside the right one shares part of its outline: the areas do not overlap, the edges do.
    beside = mask.roll(3, 1)
    # Of 28 and 4 x 6 - 4 edge pixels, the latter cut off by the border, two rows of six are shared.
    assert float(soft_dice(beside, mask)) == pytest.approx(1, abs=1e-6)
    assert float(edge_dice(beside, mask)) == pytest.approx(1 - 2 * 12 / (28 + 20), rel=1e-5)


def test_gradients_in_float64() -> None:
    p, m = pair()
    logits = torch.logit(p).requires_grad_()
    for term in (soft_dice, edge_dice):
        assert torch.autograd.gradcheck(lambda x, term=term: term(x.sigmoid(), m), (logits,), atol=1e-7)
        assert torch.autograd.grad(term(logits.sigmoid(), m).sum(), logits)[0].abs().sum() > 0
