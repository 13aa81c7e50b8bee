"""The protocol's worked examples, and its Dice coefficient beside MONAI's."""

import math

import pytest
import torch

from sslmed_dist.downstream.oneshot.protocol import Overlap, overlap, part_of, parts_of, support_slices, true_range


def test_support_slices_of_the_worked_examples() -> None:
    picks = {1: [0, 0, 0], 2: [0, 1, 1], 3: [0, 1, 2], 4: [0, 2, 3], 8: [1, 4, 6], 9: [1, 4, 7], 10: [1, 5, 8]}
    picks[20] = [3, 10, 16]
    for count, expected in picks.items():
        assert support_slices(range(count)) == expected


def test_support_slices_are_those_of_the_formula_in_any_order() -> None:
    for count in range(1, 300):
        slices = [3 * z + 7 for z in range(count)]
        expected = [slices[int(p * count)] for p in (1 / 6, 1 / 2, 5 / 6)]
        assert support_slices(slices[::-1]) == expected
    assert support_slices(range(6)) == [1, 3, 5] and support_slices(range(12)) == [2, 6, 10]
    assert support_slices([4, 9, 11], parts=1) == [9]


def test_parts_of_the_worked_examples() -> None:
    assert parts_of(4, 13).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert parts_of(5, 5).tolist() == [0]
    assert parts_of(5, 6).tolist() == [0, 2]
    assert parts_of(5, 7).tolist() == [0, 1, 2]
    assert [part_of(z, 10, 19) for z in (0, 9, 20, 99)] == [0, 0, 2, 2]


def test_parts_are_those_of_the_formula() -> None:
    for last in range(1, 120):
        for z in range(last + 1):
            assert part_of(z, 0, last) == min(max(math.floor(z / (last / 3)), 0), 2)


def test_dice_of_a_volume_is_no_mean_over_slices() -> None:
    """The notes' toy: 0.706 over the volume, 0.571 as the mean over its slices."""
    slices = [Overlap(3, 1, 0), Overlap(3, 0, 1), Overlap(0, 3, 0)]
    total = slices[0] + slices[1] + slices[2]
    assert total.dice == pytest.approx(12 / 17) and round(12 / 17, 3) == 0.706
    assert sum(one.dice or 0.0 for one in slices) / 3 == pytest.approx(4 / 7) and round(4 / 7, 3) == 0.571


def test_counts_and_their_limits() -> None:
    truth = torch.tensor([[[1, 1, 0, 0]]])
    guess = torch.tensor([[[True, False, True, True]]])
    assert overlap(guess, truth) == Overlap(1, 2, 1)
    assert overlap(truth, truth).dice == 1.0
    assert overlap(truth, torch.zeros_like(truth)).dice == 0.0
    assert overlap(torch.zeros_like(truth), torch.zeros_like(truth)).dice is None


def test_the_range_of_a_mask() -> None:
    mask = torch.zeros(6, 2, 2, dtype=torch.uint8)
    assert true_range(mask) is None
    mask[2, 0, 1] = mask[4, 1, 1] = 1
    assert true_range(mask) == (2, 4)
    assert true_range(mask[2:3]) == (0, 0)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="slices: expected at least one slice"):
        support_slices([])
    with pytest.raises(ValueError, match="parts: expected an integer >= 1, got 0"):
        support_slices([1], parts=0)
    with pytest.raises(ValueError, match="last: expected a slice number >= first = 4, got 3"):
        part_of(3, 4, 3)
    with pytest.raises(ValueError, match=r"prediction: expected the truth's shape \(2, 1, 1\), got \(1, 1, 1\)"):
        overlap(torch.zeros(1, 1, 1), torch.zeros(2, 1, 1))


def test_dice_equals_monai() -> None:
    monai = pytest.importorskip("monai.metrics")
    generator = torch.Generator().manual_seed(0)
    for share in (0.1, 0.5, 0.9):
        guess, truth = (torch.rand(2, 5, 7, 6, generator=generator) < share).float()
        found = overlap(guess, truth).dice
        assert found == pytest.approx(float(monai.DiceMetric()(guess[None, None], truth[None, None])), abs=1e-7)
    empty = torch.zeros(1, 1, 2, 3, 3)
    assert math.isnan(float(monai.DiceMetric()(empty, empty))) and overlap(empty, empty).dice is None
