"""What makes a mask plausible: neighbours, the support's place, one piece."""

import math

import pytest
import torch

from sslmed_dist.downstream.oneshot.tidy import REMOVED, in_one_piece, moved, place_of, smoothed, tidied

SPACING = (2.0, 3.0, 5.0)


def test_neighbouring_slices_are_averaged() -> None:
    margins = torch.tensor([4.0, 0.0, 8.0])[None, :, None, None]
    assert smoothed(margins).flatten().tolist() == [3.0, 3.0, 6.0]
    assert torch.equal(smoothed(margins[:, :1]), margins[:, :1])


def test_the_place_of_an_organ() -> None:
    mask = torch.zeros(6, 20, 20, dtype=torch.bool)
    mask[2:5, 8:12, 5:7] = True
    mask[4, 8:12, 15:17] = True
    place = place_of(mask, (9.5, 9.5), SPACING, 3)
    assert place.volume == 32 * 30.0 and place.outside.shape == (3, 20, 20)
    assert (place.outside[0] == 0).sum() == 8 and (place.outside[2] == 0).sum() == 16
    assert place.outside[0, 8, 9] == pytest.approx(9.0) and place.outside[0, 12, 5] == pytest.approx(2.0)
    columns = (3 * 8 * 5.5 + 8 * 15.5) / 32
    assert place.middle == pytest.approx((0.0, (columns - 9.5) * 3.0))
    assert place.height == pytest.approx(((2 + 3 + 4 + 4) / 4 + 0.5) / 6)


def test_a_range_of_two_slices_has_no_middle_part() -> None:
    mask = torch.zeros(2, 8, 8, dtype=torch.bool)
    mask[:, 2, 2] = True
    assert (place_of(mask, (4, 4), SPACING, 3).outside[:, 2, 2] == 0).all()


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_bodies_meet_at_their_middles_in_millimetres(scale: float) -> None:
    """A query whose pixels are ``scale`` times as large, with the body elsewhere."""
    mask = torch.zeros(1, 24, 24, dtype=torch.bool)
    mask[0, 8:16, 8:16] = True
    place = place_of(mask, (11.5, 11.5), (1.0, 1.0, 5.0), 1)
    there = moved(place.outside, place, (7.5, 9.5), (scale, scale, 5.0), (24, 24))[0]
    half = 4 / scale
    inside = [i for i in range(24) if abs(i - 7.5) < half], [i for i in range(24) if abs(i - 9.5) < half]
    expected = torch.zeros(24, 24, dtype=torch.bool)
    expected[inside[0][0] : inside[0][-1] + 1, inside[1][0] : inside[1][-1] + 1] = True
    assert torch.equal(there < 0.3, expected)


def test_what_lies_far_from_the_supports_place_counts_less() -> None:
    mask = torch.zeros(3, 8, 40, dtype=torch.bool)
    mask[:, :, :10] = True
    place = place_of(mask, (3.5, 19.5), (1.0, 1.0, 5.0), 3)
    margins = tidied(torch.ones(3, 3, 8, 40), place, (3.5, 19.5), (1.0, 1.0, 5.0))
    assert torch.allclose(margins[..., :19], torch.ones(1))
    assert margins[0, 0, 0, 39].item() == pytest.approx(1 - 0.2 * (30 - 10), abs=1e-4)


def test_only_the_largest_piece_stays() -> None:
    margins = torch.full((3, 8, 8), -1.0)
    margins[0, 1:3, 1:3] = 1.0
    margins[1, 3, 3] = 2.0  # touches by a corner
    margins[:, 6:8, 6] = 3.0  # six voxels: larger than five
    kept = in_one_piece(margins)
    assert (kept[:, 6:8, 6] == 3.0).all() and (kept == REMOVED).sum() == 5
    assert torch.equal(in_one_piece(torch.full((2, 3, 3), -1.0)), torch.full((2, 3, 3), -1.0))
    assert math.isclose(float(kept.max()), 3.0)
