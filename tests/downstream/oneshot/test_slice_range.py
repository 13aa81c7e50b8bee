"""The estimator of an organ's slices: sums against loops, ranges on made-up evidence, what decides without any."""

import pytest
import torch
from torch import Tensor

from sslmed_dist.downstream.oneshot import slice_range
from sslmed_dist.downstream.oneshot.protocol import part_of
from sslmed_dist.downstream.oneshot.slice_range import Level, Stack, calibrate, estimate, evidence, ranges, sums


def made_up(first: int, last: int, count: int, *, noise: float, seed: int = 0) -> Tensor:
    """Evidence (3, count): 2 within the range under the right part, 1 under another, -2 beyond it."""
    found = torch.full((3, count), -2.0, dtype=torch.float64)
    found[:, first : last + 1] = 1.0
    for z in range(first, last + 1):
        found[part_of(z, first, last), z] = 2.0
    return found + noise * torch.randn(3, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_sums_equal_the_loop_over_slices() -> None:
    values = torch.randn(3, 13, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first, last = (torch.tensor(side) for side in zip(*[(a, b) for a in range(13) for b in range(a, 13)], strict=True))
    expected = [
        sum(float(values[part_of(z, a, b), z]) for z in range(a, b + 1))
        for a, b in zip(first.tolist(), last.tolist(), strict=True)
    ]
    assert sums(values, first, last).tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_ranges_have_the_lengths_allowed() -> None:
    first, last = ranges(30, 10.0)
    assert set((last - first + 1).tolist()) == set(range(6, 16))
    assert int(first.min()) == 0 and int(last.max()) == 29 and len(first) == sum(30 - n + 1 for n in range(6, 16))
    assert [side.tolist() for side in ranges(4, 10.0)] == [[0], [3]]
    assert set((ranges(5, 0.3)[1] - ranges(5, 0.3)[0]).tolist()) == {0}


@pytest.mark.parametrize(("first", "last"), [(3, 14), (10, 19), (0, 8), (22, 29)])
def test_clear_evidence_gives_the_range(first: int, last: int) -> None:
    support = Stack(9, 19, 30, 7.7)
    found = estimate(made_up(first, last, 30, noise=0.3, seed=first), Level(0.0, 2.0), support, 7.7)
    assert (found.first, found.last, found.seen) == (first, last, True)


def test_the_length_is_in_millimetres() -> None:
    """A query cut twice as finely holds twice as many slices."""
    support = Stack(5, 14, 30, 8.0)
    found = estimate(made_up(12, 31, 60, noise=0.2), Level(0.0, 2.0), support, 4.0)
    assert (found.first, found.last) == (12, 31)
    coarse = estimate(made_up(12, 31, 60, noise=0.2), Level(0.0, 2.0), support, 8.0)
    assert coarse.last - coarse.first + 1 == 15  # no more than 1.5 times the support's ten slices


def test_without_evidence_the_position_decides() -> None:
    support = Stack(6, 11, 24, 5.0)
    blind = torch.ones(3, 48)
    found = estimate(blind, calibrate(torch.ones(3, 24), support, [7, 9, 10]), support, 2.5)
    assert (found.first, found.last, found.seen) == (12, 23, False)
    upside_down = estimate(made_up(30, 41, 48, noise=0.1), Level(0.0, -1.0), support, 2.5)
    assert (upside_down.first, upside_down.last, upside_down.seen) == (12, 23, False)


def test_the_position_breaks_a_tie() -> None:
    """Two stretches alike: the one at the support's height."""
    found = torch.full((3, 40), -1.0, dtype=torch.float64)
    found[:, 4:12] = 1.0
    found[:, 26:34] = 1.0
    for first in (5, 27):
        best = estimate(found, Level(0.0, 1.0), Stack(first, first + 7, 40, 3.0), 3.0)
        assert (best.first, best.last) == (4 if first == 5 else 26, 11 if first == 5 else 33)


def test_one_slice() -> None:
    found = made_up(4, 4, 9, noise=0.0)
    best = estimate(found, Level(0.0, 2.0), Stack(2, 2, 9, 5.0), 5.0)
    assert (best.first, best.last) == (4, 4)
    with pytest.raises(ValueError, match="found: expected slices some mm apart, got 0 slices"):
        estimate(found[:, :0], Level(0.0, 1.0), Stack(2, 2, 9, 5.0), 5.0)


def test_the_level_lies_between_slices_within_and_beyond() -> None:
    own = torch.zeros(3, 8, dtype=torch.float64)
    own[:, 2:7] = 3.0
    own[0, 2] = own[1, 4] = own[2, 6] = 50.0  # the support slices find themselves
    assert calibrate(own, Stack(2, 6, 8, 1.0), [2, 4, 6]) == Level(1.5, 1.5)
    # Only support slices hold the organ: they have to do.
    assert calibrate(own, Stack(2, 2, 8, 1.0), [2, 2, 2]).centre > 3.0
    assert calibrate(own[:, 2:7], Stack(0, 4, 5, 1.0), [0, 2, 4]) == Level(0.0, 3.0)


def test_evidence_is_the_mean_of_the_best_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    margins = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    found = evidence(margins, [8.0, 1.0])
    for z in range(3):
        best = sorted(margins[0, z].flatten().tolist(), reverse=True)
        assert float(found[0, z]) == pytest.approx(sum(best[:4]) / 4)
        assert float(found[1, z]) == pytest.approx(float(margins[1, z].max()))
    inside = torch.zeros(4, 5, dtype=torch.bool)
    inside[1, 1:3] = True
    limited = evidence(margins, [8.0, 1.0], inside)
    assert float(limited[0, 1]) == pytest.approx(float(margins[0, 1, 1, 1:3].mean()))
    monkeypatch.setattr(slice_range, "SHARE", 1.0)
    assert float(evidence(margins, [20.0, 1.0])[0, 0]) == pytest.approx(float(margins[0, 0].mean()))


def test_no_allowed_pixel_is_said() -> None:
    with pytest.raises(ValueError, match="quadrants: no pixel lies in those that the support's organ occupies"):
        evidence(torch.zeros(3, 4, 8, 8), [2.0, 2.0, 2.0], torch.zeros(8, 8, dtype=torch.bool))
