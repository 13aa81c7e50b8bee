"""What the segmenter computes once and in chunks, and what it leaves out, changes nothing."""

import pytest
import torch
from torch import Tensor

from sslmed_dist.downstream.oneshot.protocol import part_of
from sslmed_dist.downstream.oneshot.segmenter import REMOVED, CopiedMask, CopyMask, Found, Segmenter, valid_only
from sslmed_dist.downstream.oneshot.slice_range import Estimate
from sslmed_dist.models.prototype_heads import ALPNetHead, CoWProHead, PANetHead, Prototypes
from tests.downstream.oneshot.fake_scans import SPACING, FakeScans, Tissues

HEADS = [CoWProHead(window=2), CoWProHead(window=1, top=10.0, score="dot"), ALPNetHead(window=2), PANetHead()]


class Shrinking(Tissues):
    """Maps of half the size."""

    def maps(self, images: Tensor) -> Tensor:
        """Averages of 2 x 2 pixels."""
        return torch.nn.functional.avg_pool2d(super().maps(images), 2)


def scan(number: int) -> tuple[Tensor, Tensor]:
    images, organs = FakeScans(noise=0.35).scan(number)
    return images, organs == 1


@pytest.mark.parametrize("head", HEADS)
def test_chunks_change_nothing(head: CoWProHead) -> None:
    (shown, mask), (images, _) = scan(7), scan(2)
    found = []
    for chunk in (1, 4, 99):
        segmenter = Segmenter(Shrinking(), head, "cpu", chunk)
        learnt = segmenter.learn(segmenter.maps(shown), mask, SPACING)
        found.append(segmenter.find(learnt, segmenter.maps(images), (16, 16), SPACING))
    for other in found[1:]:
        assert other.estimate == found[0].estimate
        torch.testing.assert_close(other.margins, found[0].margins, rtol=1e-5, atol=1e-4)
    assert found[0].margins.shape == (3, 11, 16, 16) and found[0].prediction().any()


@pytest.mark.parametrize("head", HEADS)
def test_invalid_prototypes_may_go(head: CoWProHead) -> None:
    maps = torch.randn(4, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 3:13, 2:11] = 1.0
    whole = head.prototypes(maps[None, :1], mask)
    fewer = valid_only(whole)
    assert fewer.foreground_valid.all() and fewer.background_valid.all()
    torch.testing.assert_close(head.scores(fewer, maps), head.scores(whole, maps), rtol=1e-5, atol=1e-5)


def test_a_set_without_prototypes_stays() -> None:
    none = Prototypes(torch.ones(1, 2, 3), torch.zeros(1, 2).bool(), torch.ones(1, 2, 3), torch.tensor([[True, False]]))
    kept = valid_only(none)
    assert kept.foreground.shape == (1, 2, 3) and not kept.foreground_valid.any() and kept.background.shape == (1, 1, 3)


def test_several_support_slices_make_one_set() -> None:
    images, mask = scan(7)
    segmenter = Segmenter(Tissues(), PANetHead(), "cpu")
    maps = segmenter.maps(images)
    both = segmenter.prototypes(maps[4:6], mask[4:6])
    each = [segmenter.prototypes(maps[z : z + 1], mask[z : z + 1]).foreground for z in (4, 5)]
    torch.testing.assert_close(both.foreground, (each[0] + each[1]) / 2)


def test_margins_are_differences_of_resized_logits() -> None:
    (shown, mask), (images, _) = scan(7), scan(5)
    segmenter = Segmenter(Shrinking(), HEADS[0], "cpu")
    maps = segmenter.maps(images)
    one = segmenter.prototypes(segmenter.maps(shown)[5:6], mask[5:6])
    logits = torch.nn.functional.interpolate(HEADS[0].scores(one, maps), (16, 16), mode="bilinear")
    torch.testing.assert_close(segmenter.margins([one], maps, (16, 16))[0], logits[:, 1] - logits[:, 0])


def test_quadrants_leave_nothing_outside() -> None:
    (shown, mask), (images, _) = scan(7), scan(2)
    segmenter = Segmenter(Tissues(), HEADS[0], "cpu", quadrants=True)
    learnt = segmenter.learn(segmenter.maps(shown), mask, SPACING, (7.5, 7.5))
    assert learnt.quadrants is not None and learnt.quadrants.tolist() == [[True, False], [True, False]]
    found = segmenter.find(learnt, segmenter.maps(images), (16, 16), SPACING, (7.5, 9.5))
    assert (found.margins[..., 10:] == REMOVED).all() and (found.margins[..., :10] != REMOVED).all()


def test_each_slice_is_decided_by_its_part() -> None:
    margins = torch.randn(3, 9, 4, 4, generator=torch.Generator().manual_seed(0))
    mask = Found(margins, Estimate(0, 8, True)).mask(2, 7)
    for z in range(9):
        expected = margins[part_of(z, 2, 7), z] > 0 if 2 <= z <= 7 else torch.zeros(4, 4, dtype=torch.bool)
        assert torch.equal(mask[z], expected)


def test_areas_are_in_millimetres() -> None:
    images, mask = scan(7)
    segmenter = Segmenter(Tissues(), HEADS[0], "cpu")
    learnt = segmenter.learn(segmenter.maps(images), mask, SPACING)
    assert learnt.slices == (4, 6, 8) and learnt.areas == (30 * 6.0,) * 3 and learnt.level.spread > 0
    assert (learnt.stack.first, learnt.stack.last, learnt.stack.count, learnt.stack.length) == (3, 8, 10, 30.0)
    with pytest.raises(ValueError, match="mask: expected at least one voxel, got an empty mask"):
        segmenter.learn(segmenter.maps(images), torch.zeros_like(mask), SPACING)


def test_the_floor_takes_the_heads_place() -> None:
    segmenter = Segmenter(CopyMask(), HEADS[0], "cpu")
    assert isinstance(segmenter.head, CopiedMask) and not list(CopyMask().parameters())
    mask = torch.eye(4).bool()[None]
    margins = segmenter.margins([segmenter.prototypes(torch.zeros(1, 0, 1, 1), mask)], torch.zeros(5, 0, 1, 1), (4, 4))
    assert torch.equal(margins[0], (2.0 * torch.eye(4) - 1.0).expand(5, -1, -1))
    with pytest.raises(ValueError, match="chunk: expected an integer >= 1, got 0"):
        Segmenter(CopyMask(), HEADS[0], "cpu", 0)
