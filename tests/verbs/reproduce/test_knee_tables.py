"""The tables of chapters 3 and 4: pretexts, and diagnoses whose parts start from them."""

from pathlib import Path

import pytest
import torch

from sslmed_dist import cli, config, plain_yaml
from sslmed_dist.data.phantom import write_knee
from sslmed_dist.training import build
from sslmed_dist.verbs.diagnose import parts
from sslmed_dist.verbs.reproduce import read_table
from tests import knees

FOLDER = Path(__file__).parents[3] / "configs" / "thesis"
NAMES = [f"table-3.{number}" for number in (*range(3, 9), *range(10, 15), "7-pretext", "11-pretext")]
NAMES += ["table-4.2", "table-4.4", "table-4.5", "table-4.6"]
Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_builds_and_starts_from_a_cell_of_the_same_encoder(name: str) -> None:
    table = read_table.load(FOLDER / f"{name}.yaml")
    built: list[config.Leaf] = []  # cells that differ elsewhere build the same method
    for row in table.rows:
        for column in table.columns:
            settings = table.settings(row, column)
            of_parts = [settings] if settings.diagnose is None else list(parts.settings_of(settings).values())
            for one in of_parts:
                facts = {"channels": 1}
                if one.method["name"] == "diagnose":
                    facts |= {"classes": 3, "names": ["abnormal", "acl", "meniscus"], "label_counts": [[2, 1]] * 3}
                if one.method["name"] == "jigsaw":
                    facts["pretext_classes"] = one.views["arrangements"]["classes"]
                whole = config.replace(one, method=facts)
                if whole.method not in built:
                    with torch.device("meta"):
                        build.build_method(whole)
                    built.append(whole.method)
                if row in table.start_from:
                    assert one.run.start_from is not None
                    other, source_row, source_column, seed = Path(one.run.start_from).parts[1:]
                    source = read_table.load(FOLDER / f"{other}.yaml").settings(source_row, source_column)
                    assert seed == "seed-0" and source.data["plane"] == one.data["plane"]
                    assert source.method["encoder"] == one.method["encoder"], (name, row, one.run.name)


def test_table_3_3_lists_its_cell_and_what_it_needs(capsys: Capture) -> None:
    assert cli.main(["reproduce", "table-3.3", "--dry-run"]) in (0, 2)
    said = capsys.readouterr().out
    assert (
        "SKID / MRNet / seed-0: not run: needs the finished runs runs/table-3.12/v3-1000-noise/sagittal/seed-0" in said
    )
    assert "v3-1000-noise/coronal/seed-0" in said and "v3-1000-noise/axial/seed-0" in said


def test_a_pretext_and_the_diagnosis_that_starts_from_it_are_cells(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_knee(tmp_path / "knees", train=12, valid=6, size=24, slices=(3, 5), planes=("axial", "sagittal"))
    tree = knees.tree(tmp_path, plan={"epochs": 1}, data={"side": 24})
    encoder = {"name": "skid", "width": 0.02}
    pretext = {
        "run": {"device": "cpu"},
        "data": {"name": "mrnet", "root": "knees", "side": 24, "plane": "sagittal"},
        "views": {"name": "jumbled", "size": 24, "arrangements": {"rule": "uniform", "classes": 6}},
        "method": {"name": "jigsaw", "encoder": encoder, "head": {"name": "projection", "hidden": 4}},
        "plan": {"epochs": 1, "batch_size": 6, "validate": "val", "patience": 3},
        "evaluate": {"test": "val", "protocols": []},
    }
    diagnosis = {key: value for key, value in tree.items() if key != "run"} | {"run": {"device": "cpu"}}
    diagnosis["data"] = {**diagnosis["data"], "root": "knees"}
    planes = ("axial", "sagittal")
    diagnosis["diagnose"] = {"parts": {p: {"data": {"plane": p}} for p in planes}, "draws": 1, "slices": 3}
    columns = {plane: {"data.plane": plane} for plane in planes}
    accuracy = {"evaluator": "pretext", "name": "val_accuracy_at_lowest_loss"}
    metrics = {
        "acl": {"evaluator": "diagnosis", "name": "accuracy/acl"},
        "axial": {"evaluator": {"name": "diagnosis", "arm": "axial"}, "name": "accuracy/acl"},
    }
    files = {
        "pretext.yaml": pretext,
        "diagnosis.yaml": diagnosis,
        "table-8.yaml": {
            "title": "pretext", "base": "pretext.yaml", "metric": accuracy, "rows": {"A": {}}, "columns": columns,
        },
        "table-9.yaml": {
            "title": "diagnosis", "base": "diagnosis.yaml", "rows": {"A": {}}, "start_from": {"A": "table-8/A/{plane}"},
            "columns": {"K": {"metric": metrics}},
        },
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_text(plain_yaml.write(content))
    assert cli.main(["reproduce", "table-8.yaml"]) == 0
    assert cli.main(["reproduce", "table-9.yaml"]) == 0
    folder = tmp_path / "runs" / "table-9"
    lines = plain_yaml.read(folder / "table.json")
    assert isinstance(lines, dict)
    text = (folder / "table.md").read_text()
    run = folder / "A" / "K" / "seed-0"
    assert (run / "diagnosis.html").is_file() and "not measured" not in text and "not run" not in text
    own = config.load(run / "parts" / "axial" / "config.yaml").run.start_from
    assert own == "runs/table-8/A/axial/seed-0"
    capsys.readouterr()
    assert cli.main(["reproduce", "table-9.yaml", "--dry-run"]) == 0
    assert "A / K / seed-0: finished" in capsys.readouterr().out
