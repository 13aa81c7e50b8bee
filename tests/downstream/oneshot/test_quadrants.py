"""Quadrants of the body: where its centre is, which of them an organ occupies, what lies in them."""

import pytest
import torch
from torch import Tensor

from sslmed_dist.downstream.oneshot.quadrants import allowed, body_centre, occupied


def body(row: int, column: int, *, size: int = 40) -> Tensor:
    """Five slices (5, 1, size, size) with an ellipse of half axes 8 and 14 about (row, column), and noise."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    inside = ((y - row) / 8) ** 2 + ((x - column) / 14) ** 2 <= 1
    noise = torch.rand(5, 1, size, size, generator=torch.Generator().manual_seed(0))
    return 10.0 * inside + noise


def test_the_centre_is_the_bodys_and_not_the_images() -> None:
    for row, column in ((20, 20), (12, 24), (27, 15)):
        found = body_centre(body(row, column))
        assert found == pytest.approx((row, column), abs=0.5)
        assert body_centre(300.0 * body(row, column) - 70.0) == found
    with pytest.raises(ValueError, match="slices: expected a body that is brighter"):
        body_centre(torch.ones(3, 1, 8, 8))


def test_occupied_quadrants_by_share() -> None:
    mask = torch.zeros(2, 10, 10)
    mask[0, 1:5, 1:5] = 1  # 16 voxels, anterior right
    mask[1, 7, 1:4] = 1  # 3, posterior right
    mask[1, 2, 8] = 1  # 1, anterior left
    assert occupied(mask, (4.5, 4.5), share=0.01).tolist() == [[True, True], [True, False]]
    assert occupied(mask, (4.5, 4.5), share=0.05).tolist() == [[True, False], [True, False]]
    assert occupied(mask, (0.5, 0.5), share=0.0).tolist() == [[False, False], [False, True]]
    with pytest.raises(ValueError, match="mask: expected at least one voxel"):
        occupied(torch.zeros(2, 4, 4), (1.5, 1.5))


def test_a_thousandth_does_not_open_a_quadrant() -> None:
    mask = torch.zeros(1, 60, 60)
    mask[0, :30, :30] = 1
    mask[0, 40, 40] = 1
    assert occupied(mask, (29.5, 29.5)).tolist() == [[True, False], [False, False]]


def test_the_query_has_a_centre_of_its_own() -> None:
    quadrants = torch.tensor([[False, False], [True, False]])
    inside = allowed(quadrants, (2.5, 3.0), (6, 5))
    expected = torch.zeros(6, 5, dtype=torch.bool)
    expected[3:, :4] = True  # a pixel on the centre belongs to the anterior and to the right
    assert torch.equal(inside, expected)
    assert allowed(torch.ones(2, 2, dtype=torch.bool), (2.5, 3.0), (6, 5)).all()


def test_an_organ_lies_in_its_own_quadrants() -> None:
    """Whatever share there is none of, the quadrants of a mask hold all of it; mirrored, they are mirrored."""
    mask = torch.rand(3, 9, 9, generator=torch.Generator().manual_seed(1)) < 0.05
    mask[:, :, 5:] = False
    found = occupied(mask, (4.0, 4.0), share=0.0)
    assert not (mask & ~allowed(found, (4.0, 4.0), (9, 9))).any()
    # With the centre between pixels nothing lies on it, so a mirrored mask has mirrored quadrants.
    assert torch.equal(occupied(mask.flip(2), (4.0, 3.5), share=0.0), occupied(mask, (4.0, 4.5), share=0.0).flip(1))
