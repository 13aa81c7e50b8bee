"""Draws of slices: against slow references, keyed by content, whatever company an exam keeps."""

import math
from typing import Any

import pytest
import torch

from sslmed_dist import randomness
from sslmed_dist.downstream.diagnosis.sampling import Sampling, content_key


@pytest.mark.parametrize("count", [1, 5, 16, 24, 61])
def test_the_normal_draw_is_the_thesis_one(count: int) -> None:
    """floor of a normal with mean N/2 and deviation N/4, one number at a time, clipped to the scan."""
    numbers = Sampling("normal", 8, 16).numbers(count, 77)
    assert numbers.shape == (8, 16)
    for draw in range(8):
        expected = []
        for k in range(16):
            normal = float(randomness.normal(77, "slices", draw, k))
            expected.append(min(max(math.floor(count / 2 + count / 4 * normal), 0), count - 1))
        assert numbers[draw].tolist() == sorted(expected)


def test_the_normal_draw_has_its_mean_and_deviation() -> None:
    numbers = Sampling("normal", 200, 100).numbers(1000, 3).double()
    inside = numbers[(numbers > 0) & (numbers < 999)]
    assert numbers.mean().item() == pytest.approx(500, abs=6)
    # A normal cut at two deviations has 0.88 of its deviation.
    assert inside.std().item() == pytest.approx(250 * 0.8796, rel=0.02)


def test_fifths_are_3_10_3_without_repeats() -> None:
    for count in (20, 33, 60):
        numbers, fifth = Sampling("fifths", 5, 16).numbers(count, 1), math.ceil(count / 5)
        for row in numbers.tolist():
            parts = [[n for n in row if n < fifth], [n for n in row if n >= count - fifth]]
            assert [len(part) for part in parts] == [3, 3] and len(row) == 16
            middle = [n for n in row if fifth <= n < count - fifth]
            assert len(middle) == 10
            assert all(len(set(part)) == len(part) for part in parts)
            if count - 2 * fifth >= 10:
                assert len(set(middle)) == 10
    assert Sampling("fifths", 2, 16).numbers(1, 1).tolist() == [[0] * 16] * 2
    assert Sampling("fifths", 1, 2).numbers(9, 1).shape == (1, 2)


def test_uniform_draws_differ_and_all_is_one_draw() -> None:
    numbers = Sampling("uniform", 4, 5).numbers(9, 2)
    assert numbers.shape == (4, 5) and len({tuple(row) for row in numbers.tolist()}) > 1
    assert all(len(set(row)) == 5 and row == sorted(row) for row in numbers.tolist())
    assert Sampling("uniform", 4, 36).numbers(7, 2).tolist() == [list(range(7))]


def test_the_key_is_the_content() -> None:
    slices = torch.arange(60, dtype=torch.uint8).view(3, 1, 4, 5)
    assert content_key(slices, 0) == content_key(slices.clone(), 0)
    changed = slices.clone()
    changed[1, 0, 2, 2] += 1
    assert len({content_key(slices, 0), content_key(changed, 0), content_key(slices, 1)}) == 3
    sampling = Sampling()
    draws = [sampling.numbers(40, content_key(x, 0)) for x in (slices, changed)]
    assert not torch.equal(*draws)


@pytest.mark.parametrize(
    "arguments, said",
    [({"kind": "all"}, "sampling: expected one of normal, fifths, uniform"), ({"draws": 0}, "draws:")],
)
def test_a_bad_field_is_named(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}"):
        Sampling(**arguments)
