"""Labels that the training exams do not show: refused where there is none, said wherever there are others."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

from sslmed_dist import cli, config
from sslmed_dist.verbs.diagnose.parts import read_parts
from sslmed_dist.verbs.diagnose.unlearnt import unlearnt
from tests import knees
from tests.verbs.diagnose.conftest import recipe
from tests.verbs.diagnose.test_folds import Confounded, parts_of, settings_of


def relabelled(root: Path, label: str, split: str, value: str) -> None:
    """Give all exams of a split one value of a label."""
    path = root / f"{split}-{label}.csv"
    with path.open() as file:
        rows = [[exam, value] for exam, _ in csv.reader(file)]
    with path.open("w") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def test_a_label_of_one_value_is_said_wherever_it_is_answered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sslmed_dist.verbs.diagnose.page.curves", lambda *_: "")
    root = knees.write_exams(tmp_path / "knees", train=8, valid=4, planes=("sagittal",))
    relabelled(root, "acl", "train", "0")
    path = recipe(tmp_path, diagnose={"parts": {"axial": {"data": {"plane": "sagittal"}}}})
    said = "acl: not learnt (acl is 0 in all 6 training exams that have a value of it): its probabilities mean nothing"
    assert cli.main(["diagnose", str(path), "--check"]) == 0
    assert said in capsys.readouterr().out
    assert cli.main(["diagnose", str(path)]) == 0
    assert capsys.readouterr().err.count(said) == 1
    run = tmp_path / "runs" / "knee"
    assert said in (run / "diagnosis.html").read_text()
    assert list(json.loads((run / "evaluate" / "diagnosis.json").read_text())["unlearnt"]) == ["acl"]
    new = root / "valid"
    assert cli.main(["diagnose", "--predict", str(new), "--model", str(run), "--out", str(tmp_path / "o")]) == 0
    warnings = json.loads((tmp_path / "o" / "run.json").read_text())["warnings"]
    assert len(warnings) == 4 and all(said in lines for lines in warnings.values())


def test_missing_labels_are_told_from_those_of_one_value(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    first, second = Confounded(), Confounded(torch.arange(40, 60))
    first.labels[:, 1] = torch.nan
    second.labels[:, 1] = torch.nan
    assert unlearnt(parts_of(settings, first, second)) == {"chance": "no training exam has a value of chance"}
    first.labels[:, 0] = torch.nan
    second.labels[:, 0] = torch.nan
    with pytest.raises(ValueError, match="none of 60 training exams has a value of sent, chance"):
        unlearnt(parts_of(settings, first, second))
    first.labels[3, 0] = 1
    assert unlearnt(parts_of(settings, first))["sent"] == "sent is 1 in all 1 training exams that have a value of it"
    first.classes = second.classes = ()
    with pytest.raises(ValueError, match="these exams have no labels"):
        unlearnt(parts_of(settings, first, second))


def test_without_labels_it_is_the_labels_that_are_asked_for(tmp_path: Path) -> None:
    """And not a split, which would not help."""
    root = tmp_path / "knees"
    knees.write_exams(root, train=2, valid=1, planes=("axial", "sagittal"))
    for path in root.glob("*.csv"):
        path.unlink()
    shutil.rmtree(root / "valid")
    with pytest.raises(ValueError, match="these exams have no labels; a diagnosis is learnt from labels .*labels.csv"):
        read_parts(config.load(recipe(tmp_path)))
