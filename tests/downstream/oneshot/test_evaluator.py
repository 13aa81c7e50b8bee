"""One-shot segmentation against a literal reading of its protocol; what it refuses."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sslmed_dist import registry
from sslmed_dist.downstream import EVALUATORS, CopyMask, OneShot, Segmenting
from sslmed_dist.downstream.oneshot.tidy import smoothed
from sslmed_dist.downstream.predictions import Predictions
from sslmed_dist.models import PROTOTYPE_HEADS
from tests.downstream.oneshot.fake_scans import EXAMS, ORGANS, SPACING, FakeScans, Tissues

HEAD = {"name": "cowpro", "window": 1, "centre": False}


def made(encoder: nn.Module | None = None, data: FakeScans | None = None, **arguments: Any) -> Predictions:
    data = data or FakeScans(noise=0.35)
    judge = OneShot(**({"organs": ORGANS, "head": HEAD, "window": 1} | arguments))
    return judge.segment(encoder or Tissues(), data, data.every(), device="cpu", seed=0)


def literal(data: FakeScans, supports: list[int], query: int, value: int) -> float:
    """Section 5 of the specification, slice by slice: every slice and support slice encoded anew."""
    encoder, head = Tissues().eval(), registry.build(PROTOTYPE_HEADS, HEAD, "head")
    shown, (images, organs) = [data.scan(number) for number in supports], data.scan(query)
    chosen = []
    for _, mask in shown:
        holding = [z for z in range(len(mask)) if (mask[z] == value).any()]
        chosen.append([holding[int(p * len(holding))] for p in (1 / 6, 1 / 2, 5 / 6)])
    inside = [z for z in range(len(images)) if (organs[z] == value).any()]
    low, high = min(inside), max(inside)
    counts = [0, 0, 0]
    for z in range(low, high + 1):
        part = min(max(math.floor((z - low) / ((high - low) / 3)), 0), 2)
        with torch.no_grad():
            mask = torch.stack([(own[s[part]] == value).float() for (_, own), s in zip(shown, chosen, strict=True)])
            slices = torch.stack([scan[s[part]] for (scan, _), s in zip(shown, chosen, strict=True)])
            prototypes = head.prototypes(encoder.maps(slices)[None], mask[None])
            logits = head.scores(prototypes, encoder.maps(images[z : z + 1]))
        logits = functional.interpolate(logits, images.shape[2:], mode="bilinear", align_corners=False)
        guess, truth = logits.argmax(dim=1)[0] == 1, organs[z] == value
        counts[0] += int((guess & truth).sum())
        counts[1] += int((guess & ~truth).sum())
        counts[2] += int((~guess & truth).sum())
    return 2 * counts[0] / (2 * counts[0] + counts[1] + counts[2])


def test_dice_is_that_of_the_protocol_read_literally() -> None:
    data = FakeScans(noise=0.35)
    found = made(data=data, supports="all")
    pairs = list(zip(found.labels.tolist(), found.groups.tolist(), strict=True))
    assert pairs == [(s, q) for s in EXAMS for q in EXAMS if s != q]
    for row, (support, query) in zip(found.scores.tolist(), pairs, strict=True):
        expected = [literal(data, [support], query, value) for value in (1, 2)]
        assert row[:2] == pytest.approx(expected, abs=1e-12) and 0.2 < min(expected) < 0.99


def test_two_supports_together_are_the_head_with_both_slices() -> None:
    data = FakeScans(noise=0.35)
    found = made(data=data, shots=2)
    assert found.groups.tolist() == [5] and found.labels.tolist() == [7]
    expected = [literal(data, [2, 7], 5, value) for value in (1, 2)]
    assert found.scores[0, :2].tolist() == pytest.approx(expected, abs=1e-12)
    assert expected != [literal(data, [7], 5, value) for value in (1, 2)]
    assert torch.isfinite(made(data=data, shots=2, quadrants=True).scores).all()


def test_the_last_exam_is_the_support() -> None:
    found = made()
    assert found.groups.tolist() == [5, 2] and found.labels.tolist() == [7, 7]
    every = made(supports="all")
    assert torch.equal(found.scores, every.scores[every.labels == 7])
    assert len(torch.unique(every.index)) == 6 and set(found.index.tolist()) < set(every.index.tolist())


def test_clear_tissues_are_found_without_an_oracle() -> None:
    found = made(data=FakeScans(), surface=True)
    assert found.scores[:, :-1].tolist() == [[1.0] * 4 + [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]] * 2
    for case in found.cases:
        assert (case["estimated_first"], case["estimated_last"]) == (case["true_first"], case["true_last"])
        assert case["range_seen"] and case["volume_error_whole"] == 0.0
        place = EXAMS[case["query"]][1 + ORGANS.index(case["organ"])]
        assert (case["true_first"], case["true_last"]) == place[:2]
        voxels = case["slices"] * (30 if case["organ"] == "liver" else 9)
        assert case["reference_ml"] == pytest.approx(voxels * math.prod(SPACING) / 1000)


def test_the_floor_copies_the_support_mask_of_its_part() -> None:
    found, data = made(CopyMask()), FakeScans()
    for query, row in ((5, 0), (2, 1)):
        shown, truth = data.scan(7)[1] == 1, data.scan(query)[1] == 1
        first, last = EXAMS[query][1][:2]
        mask = shown[4].expand(last - first + 1, -1, -1)  # the fake liver has one shape in all slices
        both = int((mask & truth[first : last + 1]).sum())
        assert float(found.scores[row, 0]) == pytest.approx(2 * both / int(mask.sum() + truth.sum()))
    assert not any(case["range_seen"] for case in found.cases)


def test_every_slice_is_encoded_once_and_modes_come_back() -> None:
    encoder = Tissues()
    encoder.train()
    encoder.norm.eval()
    made(encoder, supports="all")
    assert encoder.seen == sum(exam[0] for exam in EXAMS.values())
    assert encoder.training and not encoder.norm.training


def test_quadrants_remove_what_lies_elsewhere() -> None:
    """A second spleen, anterior on the right, is found unless quadrants are masked."""
    data = FakeScans()
    data.images[(data.groups == 5) & (data.labels[:, 1] == 1), 0, 2:4, 2:4] = 3.0
    plain, masked = (made(data=data, quadrants=quadrants) for quadrants in (False, True))
    assert plain.scores[0, 1] == pytest.approx(2 * 27 / (2 * 27 + 12)) and masked.scores[0, 1] == 1.0
    assert masked.scores[0, 3] == 1.0 and torch.equal(plain.scores[:, 0], masked.scores[:, 0])
    data.records[3]["oriented"] = data.records[0]["oriented"] = False
    with pytest.raises(ValueError, match="exam 5: its file does not say where left is, so quadrants cannot be masked"):
        made(data=data, quadrants=True)


def test_an_organ_that_is_not_there() -> None:
    data = FakeScans(EXAMS | {5: (9, EXAMS[5][1], None)})
    found = made(data=data, surface=True)
    assert found.scores.isnan().tolist() == [[False, True] * 5 + [False], [False] * 11]
    assert found.note == "not there, so not scored: spleen of exam 5"
    missing = [case for case in found.cases if "dice" not in case]
    assert missing == [{"support": 7, "query": 5, "organ": "spleen", "slices": 0, "reference_ml": 0.0}]
    with pytest.raises(ValueError, match="exam 5: the support holds no voxel of spleen"):
        made(data=data, supports="all")


def test_pictures_show_what_is_scored() -> None:
    data = FakeScans()
    shown = OneShot(ORGANS, HEAD, 1).pictures(Tissues(), data, data.every(), device="cpu", seed=0)
    assert [(one.organ, one.part) for one in shown] == [(organ, part) for organ in ORGANS for part in range(3)]
    assert {(one.support, one.query) for one in shown} == {(7, 5)}
    assert [one.support_slice for one in shown] == [4, 6, 8] * 2
    assert [one.query_slice for one in shown] == [3, 4, 6, 3, 4, 5]  # liver 2 to 6: parts 0 0 1 2 2; spleen 3 to 5
    for one in shown:
        value = ORGANS.index(one.organ) + 1
        for number, z, image, mask in (
            (7, one.support_slice, one.support_image, one.support_mask),
            (5, one.query_slice, one.query_image, one.truth),
        ):
            assert torch.equal(image, data.scan(number)[0][z, 0])
            assert torch.equal(mask, data.scan(number)[1][z] == value)
        assert torch.equal(one.prediction, one.truth)


def test_the_table_builds_it() -> None:
    leaf = {"name": "one_shot", "organs": ["liver"], "window": 4, "supports": "all", "tolerance_mm": 2}
    judge = registry.build(EVALUATORS, leaf, "evaluate.protocols")
    assert isinstance(judge, Segmenting) and judge.floor == "copy_mask"
    assert judge.head == {"name": "cowpro", "window": 4} and OneShot(("liver",)).head["window"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"organs": ()}, "one_shot.organs: expected organs"),
        ({"organs": ("liver", "liver")}, "one_shot.organs: expected organs, none of them twice"),
        ({"organs": ("heart",)}, "one_shot.organs: no organ 'heart'; allowed: liver, spleen"),
        ({"tolerance_mm": -1.0}, "one_shot.tolerance_mm: expected a number >= 0, got -1"),
        ({"shots": 0}, "one_shot.shots: expected at least 1, and 1 with supports all, got 0"),
        ({"shots": 2, "supports": "all"}, "one_shot.shots: expected at least 1, and 1 with supports all, got 2"),
        ({"shots": 3}, "one_shot: the test part holds 3 exams; it needs a query and a support, at least 4"),
        ({"tidy": True, "neighbours": True}, "one_shot.neighbours: tidy masks have their neighbours already"),
        ({"supports": "first"}, "one_shot.supports: expected one of last, all, got 'first'"),
        ({"head": {"name": "cowpro", "windows": 2}}, "one_shot.head.windows: unknown key"),
        ({"head": {"name": "unet"}}, "one_shot.head.name: 'unet' is unknown; allowed: alpnet, cowpro, panet"),
        ({"encoder": nn.Flatten()}, r"encoder: segmentation needs feature maps, Flatten has none"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**arguments)


def segment(data: FakeScans, positions: Tensor, encoder: nn.Module | None = None) -> Predictions:
    return OneShot(ORGANS, HEAD, 1).segment(encoder or Tissues(), data, positions, device="cpu", seed=0)


def test_scans_that_are_not_whole_are_refused() -> None:
    data = FakeScans()
    every = data.every()
    with pytest.raises(ValueError, match="the test part holds 1 exam; it needs a query and a support, at least 2"):
        segment(data, every[:9])
    with pytest.raises(ValueError, match="exam 5: slice 3 follows 1; a scan has to be given whole"):
        segment(data, torch.cat([every[:2], every[3:]]))
    with pytest.raises(ValueError, match="exam 5: slice 7 follows 8; a scan has to be given whole"):
        segment(data, torch.cat([every[:9].flip(0), every[9:]]))
    with pytest.raises(ValueError, match="exam 5: its slices do not lie together"):
        segment(data, torch.cat([every[:4], every[9:], every[4:9]]))


def test_data_without_masks_or_records_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = FakeScans()
    data.records = []
    with pytest.raises(ValueError, match="segmentation needs scans with slice, spacing_mm, oriented in their records"):
        segment(data, data.every())
    data = FakeScans()
    monkeypatch.setattr(data, "fetch", lambda positions, **keys: {"images": data.images[positions]})
    with pytest.raises(ValueError, match="scored against organ masks"):
        segment(data, data.every())


def test_an_encoder_gone_bad_is_named() -> None:
    encoder = Tissues()
    with torch.no_grad():
        encoder.norm.weight[0] = torch.nan
    with pytest.raises(ValueError, match="exam 5: encoder: non-finite features for 9 of 9 slices"):
        segment(FakeScans(), FakeScans().every(), encoder)


def test_tidy_masks_come_with_their_reliability() -> None:
    """Of the encoder's masks; the floor stays what it is, the copied mask."""
    data = FakeScans(noise=0.35)

    def cases(encoder: nn.Module, tidy: bool) -> list[dict[str, Any]]:
        head = {"name": "cowpro", "score": "dot"}
        evaluator = OneShot(ORGANS, head, window=1, tidy=tidy)
        return list(evaluator.segment(encoder, data, data.every(), device="cpu", seed=0).cases)

    plain, tidy = cases(Tissues(), False), cases(Tissues(), True)
    assert all("reliability" not in case for case in plain)
    assert all(0 < case["reliability"] < 1 for case in tidy)
    assert [case["dice_whole"] for case in plain] != [case["dice_whole"] for case in tidy]
    assert cases(CopyMask(), False) == cases(CopyMask(), True)


def test_neighbours_alone_are_the_mean_of_margins_and_nothing_else() -> None:
    data, seen = FakeScans(noise=0.35), {}
    for neighbours in (False, True):
        judge = OneShot(ORGANS, {"name": "cowpro", "score": "dot"}, window=1, neighbours=neighbours)
        scans, segmenter = judge.prepare(Tissues(), data, data.every(), "cpu")
        support, query = (judge.load(segmenter, data, scan, 0) for scan in (scans[-1], scans[0]))
        seen[neighbours] = judge.find(segmenter, judge.show(segmenter, data, [support], "liver"), query)
    assert torch.equal(smoothed(seen[False].margins), seen[True].margins) and not seen[True].one_piece
    assert made(CopyMask(), data).cases == made(CopyMask(), data, neighbours=True).cases
