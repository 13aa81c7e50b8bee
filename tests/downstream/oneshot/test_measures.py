"""Means over pairs, patients and organs, their intervals and notes; sites pooled, arms compared, rows written."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sslmed_dist.downstream import CopyMask, OneShot, compared_rows, pooled_rows, rows_of
from sslmed_dist.downstream.metrics import Score
from sslmed_dist.downstream.oneshot.measures import Columns, column_means, deviation, mean_over, measures
from sslmed_dist.downstream.predictions import Predictions, pool
from sslmed_dist.downstream.rows import predict
from tests.downstream.oneshot.fake_scans import EXAMS, ORGANS, FakeScans, Tissues

NAN = float("nan")
HEAD = {"name": "cowpro", "window": 1, "centre": False}


def made(encoder: Any = None, exams: Any = None, **arguments: Any) -> Predictions:
    data = FakeScans(exams, noise=0.35)
    judge = OneShot(ORGANS, HEAD, 1, **arguments)
    return judge.segment(encoder or Tissues(), data, data.every(), device="cpu", seed=0)


def rows(predictions: Predictions) -> dict[str, Score]:
    made_of = rows_of({"one_shot": predictions}, arm="encoder", site="all", seed=0)
    return {row.score.metric: row.score for row in made_of}


def test_what_is_measured() -> None:
    names = ["dice", "dice/liver", "dice/spleen"]
    whole = ["dice_whole", "dice_whole/liver", "dice_whole/spleen"]
    families = ("hd95", "surface_dice", "hd95_whole")
    surface = [f"{family}{organ}" for family in families for organ in ("", "/liver", "/spleen")]
    assert list(rows(made(whole=False))) == names
    assert list(rows(made(surface=True))) == names + whole + surface
    assert list(rows(made(supports="all"))) == [*names, *whole, "dice_last_support", "dice_sd_supports"]


def test_values_are_means_over_queries_then_organs() -> None:
    found = made()
    measured = rows(found)
    liver, spleen = (found.scores[:, column].tolist() for column in (0, 1))
    assert measured["dice/liver"].value == pytest.approx(sum(liver) / 2)
    assert measured["dice"].value == pytest.approx((sum(liver) + sum(spleen)) / 4)
    assert (measured["dice"].n, measured["dice"].groups) == (2, 2)
    assert measured["dice/liver"].low == pytest.approx(min(liver))  # of two patients, 5 % draw the worse one twice
    assert {case["organ"]: case["dice"] for case in found.cases if case["query"] == 2}["spleen"] == spleen[1]


def test_every_support() -> None:
    found = made(supports="all")
    measured, dice = rows(found), found.scores[:, :2].mean(dim=1)
    means = torch.stack([dice[found.labels == support].mean() for support in EXAMS])
    assert measured["dice"].value == pytest.approx(float(means.mean()))
    assert measured["dice_sd_supports"].value == pytest.approx(float(means.std()))
    assert measured["dice_sd_supports"].note == "no interval: one number for each support"
    assert measured["dice_last_support"].value == pytest.approx(rows(made())["dice"].value)
    assert (measured["dice"].n, measured["dice"].groups) == (6, 3)


def test_weighted_means_leave_out_what_is_undefined() -> None:
    scores = torch.tensor([[0.2, NAN, NAN], [0.4, 0.9, NAN], [0.6, NAN, NAN]], dtype=torch.float64)
    weights = torch.tensor([[1, 1, 1], [2, 1, 0], [1, 0, 2]], dtype=torch.float64)
    means = column_means(scores, weights)
    assert means[:, 0].tolist() == pytest.approx([0.4, 0.8 / 3, 1.4 / 3])
    assert means[:2, 1].tolist() == pytest.approx([0.9, 0.9]) and math.isnan(means[2, 1])
    found = mean_over([0, 1, 2])(scores, torch.zeros(3), weights=weights)
    assert found[:2].tolist() == pytest.approx([0.65, (0.8 / 3 + 0.9) / 2])  # the third organ is nowhere
    assert math.isnan(found[2])  # the second is in none of the patients drawn
    assert mean_over([2])(scores, torch.zeros(3), weights=weights).isnan().all()
    assert deviation([0])(scores, torch.zeros(3), weights=weights).isnan().all()
    by_support = deviation([0])(scores, torch.tensor([4, 4, 9]), weights=weights[:1])
    assert float(by_support) == pytest.approx(float(torch.tensor([0.3, 0.6]).std()))


def test_undefined_numbers_are_counted() -> None:
    measured = rows(made(exams=EXAMS | {5: (9, EXAMS[5][1], None)}))
    absent = "not there, so not scored: spleen of exam 5"
    assert measured["dice/spleen"].note.endswith(f"undefined in 1 of 2: a mask is empty; {absent}")
    assert "undefined in 1 of 4: a mask is empty" in measured["dice"].note
    assert measured["dice/liver"].note == absent
    assert measured["dice/spleen"].value is not None
    gone = rows(made(exams={5: (9, EXAMS[5][1], None), 7: EXAMS[7]}))["dice/spleen"]
    assert gone.value is None and gone.note.startswith("undefined: a mask is empty in every pair")


def other_site() -> dict[int, Any]:
    return {number + 100: exam for number, exam in list(EXAMS.items())[1:]}


def test_sites_are_pooled() -> None:
    north, south = made(), made(exams=other_site())
    both = pool([north, south])
    assert both.groups.tolist() == [5, 2, 102] and both.by_sample
    assert [case["query"] for case in both.cases] == [5, 5, 2, 2, 102, 102]
    dice = {row.score.metric: row for row in pooled_rows([{"o": north}, {"o": south}], arm="federated", seed=0)}["dice"]
    assert dice.score.value == pytest.approx(float(torch.cat([north.scores, south.scores])[:, :2].mean()))
    assert (dice.site, dice.score.n, dice.score.groups) == ("all", 3, 3)


def test_arms_are_compared_over_pairs_that_both_have() -> None:
    """The second arm finds no spleen in exam 2: its distance is undefined there, and that pair counts for neither."""
    first, second = made(surface=True), made(surface=True)
    column = Columns(ORGANS, True, True, False).of("hd95")[1]
    second.scores[1, column] = NAN
    second.scores[0, column] += 2.5
    found = compared_rows({"o": first}, {"o": second}, arms=("a", "b"), site="all", seed=0)
    by_name = {row.score.metric: row for row in found}
    assert by_name["hd95/spleen"].score.value == pytest.approx(-2.5)
    assert "undefined in 1 of 2: a mask is empty" in by_name["hd95/spleen"].score.note
    assert by_name["dice"].score.value == 0.0 and by_name["dice"].score.note == ""
    assert not first.scores.isnan().any()
    floor = {row.score.metric: row for row in compared_rows(
        {"o": made()}, {"o": made(CopyMask())}, arms=("encoder", "copy_mask"), site="all", seed=0
    )}  # fmt: skip
    expected = rows(made())["dice"].value - rows(made(CopyMask()))["dice"].value
    assert floor["dice"].score.value == pytest.approx(expected) and floor["dice"].arm == "encoder - copy_mask"


def test_it_runs_beside_other_evaluators() -> None:
    """``predict`` hands it the encoder and the test part; an error gets the dataset's name."""
    data = FakeScans({3: EXAMS[2], **EXAMS}, noise=0.35)
    parts = {"train": data.every()[:11], "val": data.every()[:0], "test": data.every()[11:]}
    given: dict[str, Any] = {"views": torch.nn.Identity(), "device": "cpu", "seed": 0}
    found = predict(Tissues(), data, parts, evaluators={"one_shot": OneShot(ORGANS, HEAD, 1)}, **given)
    assert found["one_shot"].groups.tolist() == [5, 2]
    with pytest.raises(ValueError, match="fake: one_shot.organs: no organ 'heart'"):
        predict(Tissues(), data, parts, evaluators={"one_shot": OneShot(("heart",))}, **given)


def test_rows_of_scores_hold_what_columns_say() -> None:
    columns = Columns(ORGANS, True, False, True)
    cases = [{"dice": 0.5, "dice_whole": 0.25}, {"slices": 0}]
    row = columns.row(cases, last=True)
    assert row[0] == 0.5 and row[2] == 0.25 and row[4] == 1.0 and math.isnan(row[1]) and math.isnan(row[3])
    scores: Tensor = torch.tensor([row], dtype=torch.float64)
    one = Predictions(scores, torch.tensor([1]), torch.tensor([2]), torch.tensor([3]), "single", ORGANS)
    assert [measure.name for measure in measures(one, columns)][-2:] == ["dice_last_support", "dice_sd_supports"]
