"""Random folds and folds by scanner, where the scanner tells the label, and what a model by heart is worth there."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sslmed_dist import cli, config
from sslmed_dist.config import Config
from sslmed_dist.data.exams.exam_dataset import ExamDataset
from sslmed_dist.downstream import Row
from sslmed_dist.downstream.diagnosis.folded import folded, within_folds
from sslmed_dist.downstream.diagnosis.inference import ExamScores
from sslmed_dist.verbs.diagnose import folds
from sslmed_dist.verbs.diagnose.folds_page import fold_section
from sslmed_dist.verbs.diagnose.parts import Part
from tests import knees
from tests.verbs.diagnose.conftest import recipe

SCANNERS, EACH = 6, 8


class Confounded(ExamDataset):
    """Six scanners of eight exams. On every other scanner seven of them have the label, on the others one."""

    def __init__(self, ids: Tensor | None = None, scanners: Tensor | None = None) -> None:
        ids = torch.arange(SCANNERS * EACH) if ids is None else ids
        own = ids // EACH
        odd = (ids % EACH == 0).long()
        labels = torch.stack([((own % 2) ^ odd).float(), (ids % 2).float()], 1)
        facts: dict[str, Any] = {"labels": labels, "ids": ids, "classes": ("sent", "chance"), "channels": 1}
        counts = torch.full((len(ids),), 5)
        super().__init__(name="confounded", counts=counts, scanners=own if scanners is None else scanners, **facts)

    def slices(self, position: int, numbers: Tensor) -> Tensor:
        raise AssertionError("the pixels are not asked for")

    def value_range(self) -> tuple[float, float]:
        return (0.0, 1.0)


def parts_of(settings: Config, *datasets: ExamDataset) -> list[Part]:
    """Parts that are trained on all of their data."""
    none = torch.zeros(0, dtype=torch.int64)
    facts: list[Any] = [(settings, settings.folder / name, data) for name, data in zip("ab", datasets, strict=False)]
    return [
        Part(name, own, folder, data, data, torch.arange(len(data)), none, none)
        for name, (own, folder, data) in zip("ab", facts, strict=False)
    ]


def by_heart(part: Part) -> ExamScores:
    """What a model says that has learnt each scanner's share of positives; one half of a scanner it has not seen."""
    data = part.train
    assert isinstance(data, ExamDataset) and data.scanners is not None
    answers = []
    for position in part.val.tolist():
        same = part.rest[data.scanners[part.rest] == data.scanners[position]]
        answers.append(data.labels[same].double().mean(0) if len(same) else torch.full((2,), 0.5).double())
    table = torch.stack(answers)
    return ExamScores(table, torch.zeros_like(table), data.ids[part.val], data.classes)


def settings_of(tmp_path: Path, **diagnose: Any) -> Config:
    knees.write_exams(tmp_path / "knees", train=2, valid=1, planes=("sagittal",))
    own = {"folds": ["random", "scanner"], "fold_count": 3, "parts": {}, **diagnose}
    return config.load(recipe(tmp_path, diagnose=own))


def test_what_was_learnt_of_scanners_is_lost_on_another_one(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    parts = parts_of(settings, Confounded(), Confounded(torch.arange(4, SCANNERS * EACH)))
    made = folds.folds_of(settings, parts)
    assert [(fold.kind, fold.number) for fold in made] == [(k, n) for k in ("random", "scanner") for n in range(3)]
    for kind in ("random", "scanner"):  # the same exams, each asked once
        asked = torch.cat([fold.asked for fold in made if fold.kind == kind])
        assert torch.equal(asked.sort().values, torch.arange(SCANNERS * EACH))
    for fold in made:
        for part in fold.parts:
            assert torch.equal(part.train.ids[part.val], fold.asked[torch.isin(fold.asked, part.train.ids)])
            assert not len(part.asked) and len(part.rest) + len(part.val) == len(part.train)
            shared = torch.isin(part.train.ids[part.val] // EACH, part.train.ids[part.rest] // EACH)
            assert not shared.any() if fold.kind == "scanner" else shared.all()
    scores = {part.name: by_heart(part) for fold in made for part in fold.parts}
    assert len(scores) == 12 and "random-1 a" in scores
    rows = folds.rows_of_folds(settings.diagnose.folds, made, parts, scores, 0)  # type: ignore[union-attr]
    value = {(row.arm, row.score.metric): row.score for row in rows}
    # Pairs of a positive and a negative exam of other scanners are in order by (7/8)^2, out of order by (1/8)^2.
    assert value["random folds", "auc/sent"].value > 0.8  # type: ignore[operator]
    for arm in ("scanner folds", "metadata only, scanner folds"):
        assert value[arm, "auc/sent"].value == 0.5
    assert value["metadata only, random folds", "auc/sent"].value > 0.8  # type: ignore[operator]
    gap = value["random folds - scanner folds", "auc/sent"]
    assert gap.value == pytest.approx(value["random folds", "auc/sent"].value - 0.5)  # type: ignore[operator]
    assert gap.low is not None and gap.low > 0 and gap.n == SCANNERS * EACH
    said = fold_section(("random", "scanner"), rows, 0)
    for kind in ("random", "scanner"):
        assert f"In {kind} folds the diagnosis does not beat what the metadata alone say" in said
    assert "Mean AUC in random folds less that in scanner folds, same exams: +0." in said


def test_a_diagnosis_that_sees_the_finding_beats_the_metadata_in_both(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    parts = parts_of(settings, Confounded())
    made = folds.folds_of(settings, parts)
    scores = {}
    for fold in made:
        for part in fold.parts:
            truth = part.train.labels[part.val].double()
            scores[part.name] = ExamScores(truth, torch.zeros_like(truth), part.train.ids[part.val], part.train.classes)
    rows: list[Row] = folds.rows_of_folds(("random", "scanner"), made, parts, scores, 0)
    said = fold_section(("random", "scanner"), rows, 3)
    assert "In random folds the diagnosis beats its floor" in said
    assert "In scanner folds the diagnosis beats its floor" in said
    assert "same exams: +0.000 [+0.000, +0.000]" in said and "On an unknown scanner" not in said
    assert "3 training exams do not say their scanner" in said


def test_pairs_of_one_fold_alone_are_compared() -> None:
    """Against a loop over all pairs, with weights."""
    count = 40
    draws = torch.rand(count, generator=torch.Generator().manual_seed(1)).double()
    fold, labels = torch.arange(count) % 3, (torch.arange(count) % 5 < 2).float()
    labels[7] = torch.nan
    made = folded(draws[:, None], fold, labels[:, None], torch.arange(count), torch.arange(count), ("a",))
    weights = torch.stack([torch.ones(count), torch.arange(count) % 4.0]).double()
    wins = pairs = torch.zeros(2).double()
    for i in range(count):
        for j in range(count):
            if labels[i] == 1 and labels[j] == 0 and fold[i] == fold[j]:
                weight = weights[:, i] * weights[:, j]
                pairs = pairs + weight
                wins = wins + weight * float(draws[i] > draws[j])
    found = within_folds(0)(made.scores, made.labels, weights=weights)
    torch.testing.assert_close(found, wins / pairs)
    both = folded(
        draws[:, None].expand(-1, 2), fold, torch.stack([labels, labels * 0], 1), *[torch.arange(count)] * 2, ("a", "b")
    )
    assert both.measures is not None
    assert [m.note.startswith("mean over labels without b, which") for m in both.measures(both)] == [True, False, False]
    alone = folded(
        draws[:, None], torch.arange(count), labels[:, None], torch.arange(count), torch.arange(count), ("a",)
    )
    assert within_folds(0)(alone.scores, alone.labels, weights=weights).isnan().all()


@pytest.mark.parametrize(
    ("scanners", "diagnose", "said"),
    [
        (torch.zeros(48, dtype=torch.int64), {}, "diagnose.folds: scanner: all 48 training exams are of one scanner"),
        (torch.full((48,), -1), {}, "diagnose.folds: scanner: confounded does not say which scanner"),
        (None, {"fold_count": 7}, r"diagnose.fold_count: scanner folds of 48 training exams: .* allowed: 2 to 6"),
    ],
)
def test_too_few_scanners(tmp_path: Path, scanners: Tensor | None, diagnose: dict[str, Any], said: str) -> None:
    settings = settings_of(tmp_path, **diagnose)
    with pytest.raises(ValueError, match=said):
        folds.folds_of(settings, parts_of(settings, Confounded(scanners=scanners)))


def test_folds_are_trained_and_stand_on_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sslmed_dist.verbs.diagnose.page.curves", lambda *_: "")  # drawing them is most of the time
    knees.write_exams(tmp_path / "knees", train=8, valid=4, planes=("sagittal",))
    own = {"parts": {}, "folds": ["random"], "fold_count": 2}
    path = recipe(tmp_path, diagnose=own, plan={"epochs": 1})
    tree = path.read_text()
    path.write_text(tree.replace("  parts:\n    axial:\n      data:\n        plane: axial\n", "  parts:\n"))
    assert cli.main(["diagnose", str(path), "--check"]) == 0
    assert "folds     random: 2 more trainings" in capsys.readouterr().out
    assert cli.main(["diagnose", str(path)]) == 0
    run = tmp_path / "runs" / "knee"
    assert sorted(folder.name for folder in (run / "folds").iterdir()) == ["random-1", "random-2"]
    assert (run / "folds" / "random-1" / "sagittal" / "checkpoints").is_dir()
    page = (run / "diagnosis.html").read_text()
    assert "<h2>Other scanners</h2>" in page and "metadata only, random folds" in page
    assert cli.main(["diagnose", str(path), "diagnose.folds=[random, scanner]"]) == 2
    assert "diagnose.folds: scanner: knees sagittal does not say" in capsys.readouterr().err
    assert cli.main(["diagnose", str(path), "diagnose.folds=[random, random]"]) == 2
    assert "diagnose.folds: expected each kind once" in capsys.readouterr().err
