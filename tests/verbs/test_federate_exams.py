"""``sslmed federate`` on examinations: sites with scanners and labels of their own, one of them of a single exam."""

import csv
import json
import math
from pathlib import Path

import pytest

from sslmed_dist import config
from sslmed_dist.data.phantom import write_knee
from sslmed_dist.federation.sites import TooSmall
from sslmed_dist.verbs import federate

FEDERATED = {
    "rounds": 1,
    "partition": {"name": "by_site", "count": 3},
    "held_out": 0.3,
    "validation": 0.25,
    "runtime": "in_process",
    "compare": ["metadata", "random", "local", "pooled"],
}


def rewritten(path: Path, rows: list[list[str]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def recipe(folder: Path) -> config.Config:
    """24 exams at two sites, none of the second with a torn meniscus, and one exam at a third."""
    root = folder / "knees"
    write_knee(root, train=20, valid=5, size=16, slices=(3, 4), planes=("sagittal",))
    sites = [["id", "site"], *([f"{i:04d}", "2" if i == 24 else str(i % 2)] for i in range(25))]
    rewritten(root / "sites.csv", sites)
    for split, numbers in (("train", range(20)), ("valid", range(20, 25))):
        rewritten(root / f"{split}-meniscus.csv", [[f"{i:04d}", str(int(i % 2 == 0 and i % 4 == 0))] for i in numbers])
    tree = {
        "run": {"name": "knees", "dir": str(folder / "runs"), "device": "cpu"},
        "data": {"name": "mrnet", "root": str(root), "plane": "sagittal", "side": 16},
        "views": {"name": "contrastive", "size": 8, "flip": 0.0, "jitter": [0.2, 0.2, 0.0, 0.0], "grey": 0.0},
        "method": {
            "name": "contrastive",
            "encoder": {"name": "resnet", "depth": 9, "width": 4, "stem": "cifar"},
            "head": {"name": "projection", "hidden": 16, "out": 8, "batch_norm": True},
        },
        "plan": {"batch_size": 8, "steps_per_epoch": 2, "log_every": 1},
        "evaluate": {
            "data": {"clip": 4},
            "pictures": False,
            "protocols": [{"name": "exam_probe"}, {"name": "exam_probe", "label_share": 0.05}],
        },
        "federated": FEDERATED,
    }
    return config.from_tree(tree, "knees")


def test_exams_of_unequal_sites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("flwr")
    settings = recipe(tmp_path)
    folder = federate.run(settings)
    written = json.loads((folder / "evaluate" / "sites.json").read_text())
    rows = written["rows"]
    arms = {"metadata", "random", "local", "pooled", "federated"}
    titles = {"exam_probe", "exam_probe(label_share=0.05)"}
    found = {(row["arm"], row["site"], row["evaluator"]) for row in rows if not row.get("difference")}
    assert found == {(arm, site, title) for arm in arms for site in ("site-0", "site-1", "all") for title in titles}
    assert {row["arm"] for row in rows if row.get("difference")} == {
        f"federated - {arm}" for arm in arms - {"federated"}
    }
    # the one exam cannot be trained on and tested on: said, and kept beside the figures
    assert written["left_out"] == ["site-2"] and written["phantom_data"]
    assert "left out: site-2: hold_out" in capsys.readouterr().err
    assert "site-2: hold_out" in (folder / "federation.log").read_text()
    # no torn meniscus at site-1: no figure of it there, and those of the other labels stand
    torn = {
        (row["site"], row["arm"]): row for row in rows if row["metric"] == "auc/meniscus" if row["evaluator"] in titles
    }
    assert torn["site-1", "federated"]["value"] is None and "undefined" in torn["site-1", "federated"]["note"]
    means = [
        row["value"] for row in rows if row["metric"] == "auc" and row["site"] == "all" and not row.get("difference")
    ]
    assert len(means) == 2 * len(arms) and not any(math.isnan(value) for value in means)


def test_too_few_sites_are_left(tmp_path: Path) -> None:
    settings = config.replace(recipe(tmp_path), federated={"quorum": 3})
    with pytest.raises(TooSmall, match=r"^site-2: hold_out: .* of 1 groups leaves the held-out part empty$"):
        federate.check(settings)
