"""The copied mask beside what the network finds: known answers."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslmed_dist import randomness
from sslmed_dist.downstream import OneShot
from sslmed_dist.downstream.oneshot import copying
from sslmed_dist.downstream.oneshot.copying import HEIGHTS, REACH, Weighing, at_heights, copy_of, distances, mixed
from sslmed_dist.downstream.oneshot.segmenter import Found, Segmenter, Shown
from sslmed_dist.downstream.oneshot.slice_range import Estimate
from sslmed_dist.downstream.oneshot.weighing import weighed
from sslmed_dist.models.prototype_heads import CoWProHead

SPACING, CENTRE, SIDE = (1.0, 1.0, 5.0), (15.5, 15.5), 32


class Given(nn.Module):
    """Feature maps are there already."""

    def maps(self, images: Tensor) -> Tensor:
        """As they are."""
        return images


def organ(row: int, column: int) -> Tensor:
    """Six slices of nine, 10 x 8 pixels."""
    mask = torch.zeros(9, SIDE, SIDE, dtype=torch.bool)
    mask[2:8, row : row + 10, column : column + 8] = True
    return mask


def noise(key: int, shape: tuple[int, ...]) -> Tensor:
    """Keyed normal numbers."""
    return randomness.normal(key, torch.arange(torch.Size(shape).numel()).view(shape)).float()


def search(support: Tensor, query: Tensor, mask: Tensor, way: str = "auto") -> tuple[Shown, Found, Found]:
    """(what was learnt, what was found, the same with the copied mask beside it) of maps (S, D, h, w)."""
    segmenter = Segmenter(Given(), CoWProHead(window=1, score="dot"), "cpu", tidy=True, copying=way)
    shown = segmenter.learn(support, mask, SPACING, CENTRE)
    found = segmenter.find(shown, query, (SIDE, SIDE), SPACING, CENTRE)
    found = replace(found, estimate=Estimate(2, 7, seen=True, given=True))
    return shown, found, weighed(segmenter, shown, found, query, SPACING, CENTRE)


def test_noise_on_the_supports_own_place_gives_the_copied_mask() -> None:
    """A query whose maps, all noise to the organ's other slices, are the support's own: only its place tells."""
    slices = noise(1, (9, 8, SIDE, SIDE))
    slices[:, 0] += 0.2 * organ(8, 12)
    shown, found, both = search(slices, slices, organ(8, 12))
    assert shown.copy is not None and shown.copy.own < copying.LOST
    assert both.weighing is not None and both.weighing.weight > 0.9, both.weighing
    mask = both.mask(2, 7)
    assert torch.equal(mask, organ(8, 12)) and not torch.equal(found.mask(2, 7), mask)


def test_an_organ_that_is_found_keeps_its_bits() -> None:
    """Features tell the organ well, and the query has it elsewhere."""
    support, query = (noise(key, (9, 8, SIDE, SIDE)) * 0.05 for key in (1, 2))
    support[:, 0] += 2.0 * organ(8, 12) - 1.0
    query[:, 0] += 2.0 * organ(16, 4) - 1.0
    _, found, both = search(support, query, organ(8, 12))
    assert both.weighing is not None and both.weighing.weight == 0.0 and both.laid is None
    assert torch.equal(found.within(2, 7), both.within(2, 7)) and found.estimate == both.estimate


def test_scans_that_do_not_lie_on_each_other_keep_their_bits() -> None:
    """The network is poor on the support's own slices, but the query's maps are another noise: nothing leads back."""
    support, query = (noise(key, (9, 8, SIDE, SIDE)) for key in (1, 2))
    shown, found, both = search(support, query, organ(8, 12))
    assert shown.copy is not None and copying.need(shown.copy.own) > 0.9
    assert both.weighing is not None and both.weighing.copied is not None and "not aligned" in both.weighing.why
    assert both.weighing.weight == 0.0 and torch.equal(found.within(2, 7), both.within(2, 7))


def test_without_copying_nothing_is_weighed() -> None:
    maps = noise(1, (9, 8, SIDE, SIDE))
    shown, found, both = search(maps, maps, organ(8, 12), "off")
    assert shown.copy is None and both is found


@pytest.mark.parametrize(
    ("own", "found", "copied", "weight"),
    [
        (0.9, 0.2, 0.9, 0.0),  # the network is sure of itself
        (0.45, 0.3, 0.45, 1.0),
        (0.65, 0.5, 0.65, 0.5),  # half of the need
        (0.45, 0.50, 0.475, 0.5),  # half way between too bad and good enough beside what is found
        (0.45, 0.6, 0.45, 0.0),
        (0.4, 0.0, 0.28125, 0.5),  # half way by its own way back: nothing was found, which is no proof
        (0.4, 0.0, 0.1, 0.0),
        (0.845, 0.5, 0.8, 0.0),  # 0.0125 is no weight
        (0.5, None, None, 0.0),
    ],
)
def test_the_weight(own: float, found: float | None, copied: float | None, weight: float) -> None:
    weighing = Weighing(own, found, copied)
    assert weighing.weight == pytest.approx(weight, abs=1e-9)
    assert ("aligned with the support: " in weighing.why) == (weight > 0)


def test_what_is_copied_has_mm_and_heights() -> None:
    mask = torch.zeros(40, 12, 30, dtype=torch.bool)
    mask[3:38, 4:8, 6:10] = True
    margins = torch.where(mask, 1.0, -1.0).expand(3, -1, -1, -1)
    copy = copy_of(mask, margins, [8, 20, 32], (3, 37), (2.0, 3.0))
    assert copy.own == 1.0 and copy.distances.shape == (HEIGHTS, 12, 30)
    assert copy.distances[0, 4, 10] == 3.0 and copy.distances[0, 3, 6] == 2.0 and copy.distances[0, 4, 6] == -2.0
    assert copy.distances[0, 4, 29] == REACH
    assert (distances(torch.zeros(1, 4, 4, dtype=torch.bool), (1.0, 1.0)) == REACH).all()
    of = torch.tensor([0.0, 1.0, 2.0])[:, None, None]
    assert at_heights(of, 3).flatten().tolist() == [0, 1, 2]
    assert at_heights(of, 6).flatten().tolist() == [0.0, 0.25, 0.75, 1.25, 1.75, 2.0] and at_heights(of, 1).item() == 1


def test_margins_are_mixed() -> None:
    margins, laid = torch.full((2, 1, 2), 4.0), torch.tensor([[[-10.0, 10.0]]])
    assert mixed(margins, laid, 0.0) is margins
    assert mixed(margins, laid, 1.0).flatten().tolist() == pytest.approx([3.0, -3.0, 3.0, -3.0])
    assert mixed(margins, laid, 0.5).flatten().tolist() == pytest.approx([3.5, 0.5, 3.5, 0.5])


@pytest.mark.parametrize("way", ["on", "", True])
def test_another_way_is_one_line(way: Any) -> None:
    with pytest.raises(ValueError, match="one_shot.copying: expected one of auto, off, got"):
        OneShot(("liver",), copying=way)
    with pytest.raises(ValueError, match="copying: expected one of auto, off, got"):
        Segmenter(Given(), None, "cpu", copying=way)
