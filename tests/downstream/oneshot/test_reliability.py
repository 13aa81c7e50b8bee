"""The signs of a mask that can, and of one that cannot be trusted."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sslmed_dist.downstream.oneshot import reliability
from sslmed_dist.downstream.oneshot.reliability import FITTED, SPEAKS, Signs, signs
from sslmed_dist.downstream.oneshot.segmenter import Found, Segmenter, Shown
from sslmed_dist.downstream.oneshot.slice_range import Estimate
from sslmed_dist.models.prototype_heads import CoWProHead
from tests.downstream.oneshot.fake_scans import SPACING, FakeScans, Tissues

CENTRE = (7.5, 7.5)


def scan(number: int) -> tuple[Tensor, Tensor]:
    images, organs = FakeScans().scan(number)
    return images, organs == 1


def learnt() -> tuple[Segmenter, Shown]:
    segmenter = Segmenter(Tissues(), CoWProHead(window=1), "cpu")
    images, mask = scan(7)
    return segmenter, segmenter.learn(segmenter.maps(images), mask, SPACING, CENTRE)


def signs_of(query: int, found: Found | None = None) -> Signs | None:
    segmenter, shown = learnt()
    maps = segmenter.maps(scan(query)[0])
    found = found or segmenter.find(shown, maps, (16, 16), SPACING, CENTRE)
    return signs(segmenter, shown, found, maps, SPACING, CENTRE)


def drawn(mask: Tensor) -> Found:
    """A mask as if it had been found."""
    where = torch.nonzero(mask.flatten(1).any(1))[:, 0]
    margins = torch.where(mask, 4.0, -4.0)[None].expand(3, -1, -1, -1)
    return Found(margins, Estimate(int(where[0]), int(where[-1]), True))


def test_the_right_organ() -> None:
    found = signs_of(5)
    assert found is not None and found.agreement == 1.0 and found.cycle > 0.9
    # the liver of 7: slices 3 to 8 of 10, rows 4 to 9, columns 2 to 6; of 5: 2 to 6 of 9, rows 4 to 9, columns 3 to 7
    assert found.away == pytest.approx(3.0) and found.height == pytest.approx(abs(4.5 / 9 - 6 / 10))


def test_another_organ_does_not_lead_back() -> None:
    right = signs_of(5, drawn(scan(5)[1]))
    images, organs = FakeScans().scan(5)
    wrong = signs_of(5, drawn(organs == 2))
    assert right is not None and wrong is not None
    assert right.cycle > 0.9 and wrong.cycle < 0.1 and wrong.away > 20
    assert [right.confidence, wrong.confidence] == pytest.approx([torch.tensor(4.0).sigmoid().item()] * 2)
    assert wrong.figure < reliability.THRESHOLD and wrong.figure < right.figure


def test_nothing_found_has_no_signs() -> None:
    nothing = Found(torch.full((3, 9, 16, 16), -1.0), Estimate(2, 5, True))
    assert signs_of(5, nothing) is None


@pytest.mark.parametrize("name", FITTED)
def test_every_sign_moves_the_figure_the_right_way(name: str) -> None:
    middle = Signs(cycle=0.9, **{sign: mean for sign, (mean, _, _) in FITTED.items()})
    better = SPEAKS[name]
    moved = replace(middle, **{name: getattr(middle, name) + better * FITTED[name][1]})
    assert 0.5 < middle.figure < moved.figure < 1
    far = replace(middle, **{name: getattr(middle, name) + 2 * better * FITTED[name][1]})
    assert far.figure == replace(middle, **{name: getattr(middle, name) + 9 * better * FITTED[name][1]}).figure
    assert middle.figure == pytest.approx(1 / (1 + 2.718281828**-reliability.CONSTANT))
    assert replace(middle, cycle=0.3).figure == 0.3 < replace(middle, cycle=reliability.RETURNS).figure


@pytest.mark.parametrize(
    ("figure", "digits", "said"),
    [(0.7996, 2, 0.79), (0.7996, 3, 0.799), (0.8, 2, 0.8), (0.9961, 2, 0.99), (0.29, 2, 0.29)],
)
def test_no_figure_is_said_higher_than_it_is(figure: float, digits: int, said: float) -> None:
    """Below the threshold it never reads as the threshold, and it never reads as 1."""
    assert reliability.rounded_down(figure, digits) == said
