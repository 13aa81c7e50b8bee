"""Histograms of similarity in the report; the run folders are made up."""

import json
from pathlib import Path

import pytest

from sslmed_dist import plain_yaml
from sslmed_dist.report import write_report


def fabricate(folder: Path, seed: int) -> Path:
    """A run folder with one row."""
    (folder / "evaluate").mkdir(parents=True)
    (folder / "config.yaml").write_text(plain_yaml.write({"run": {"name": "fabricated", "seed": seed}}))
    row = {"arm": "encoder", "site": "all", "evaluator": "representation", "metric": "uniformity", "value": -2.5}
    row |= {"low": None, "high": None, "n": 3, "groups": 3, "note": ""}
    (folder / "evaluate" / "last.json").write_text(json.dumps({"rows": [row]}))
    return folder


@pytest.mark.usefixtures("undrawn")
def test_similarities_are_shown_where_they_were_measured(tmp_path: Path) -> None:
    runs = [fabricate(tmp_path / f"seed-{seed}", seed) for seed in range(2)]
    assert "Similarity of pairs" not in write_report(runs)[0].read_text()
    counts = {"true_positive": [0, 3], "false_negative": [4, 2], "true_negative": [0, 0]}
    means = {"true_positive": 0.75, "false_negative": -0.125, "true_negative": None}
    found = {"bins": [-1.0, 0.0, 1.0], "counts": counts, "means": means, "alignment": 0.5, "n": 3}
    file = runs[1] / "evaluate" / "similarity.json"
    file.write_text(json.dumps(found))
    html, markdown = write_report(runs)
    said = (
        "training views of 3 test images: true positives (two views of an image) 0.750, false negatives (two images "
        "of a class) −0.125, true negatives (two classes) none; alignment 0.500 (seed 1)."
    )
    for document in (html.read_text(), markdown.read_text()):
        assert said in document
    page = html.read_text()
    assert "Similarity of pairs, seed 1" in page and "seed 0</figcaption>" not in page
    del found["bins"]
    file.write_text(json.dumps(found))
    with pytest.raises(ValueError, match="similarity.json: has no bins"):
        write_report(runs)
