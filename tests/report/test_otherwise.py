"""Results of another question (``evaluate/last@HASH.json``) stand in tables of their own, never beside the run's."""

import json
import re
from pathlib import Path

import pytest

from sslmed_dist.report import write_report
from sslmed_dist.report.runs import read_run
from sslmed_dist.training import job
from sslmed_dist.verbs.evaluate import evaluate_run
from tests import tiny

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, measured on its own data and on another file."""
    folder = tmp_path_factory.mktemp("otherwise")
    run = job.train(tiny.settings(folder)).settings.folder
    tiny.write_images(folder / "other.npz", train=40, test=10)
    evaluate_run(run)
    evaluate_run(run, overrides=[f"data.root={folder / 'other.npz'}"])
    (run / "notices.txt").write_text("left aside: 2 hidden\n")
    return run


def test_rows_are_kept_apart(run: Path) -> None:
    read = read_run(run)
    assert {row["file"] for row in read.rows} == {"last"} and {row["n"] for row in read.rows} == {24}
    (title,) = read.others
    assert title.startswith("measured otherwise, on medmnist (10 test samples): last@")
    assert {row["n"] for row in read.others[title]} == {10}
    assert read.remarks == ["data: left aside: 2 hidden"]


def test_the_page_says_what_was_measured_on_what(run: Path, tmp_path: Path) -> None:
    page, markdown = write_report([run], tmp_path / "report.html")
    for text in (page.read_text(), markdown.read_text()):
        shown = re.sub(r"<[^>]*>", "", text)
        assert shown.count("easured otherwise, on medmnist (10 test samples)") == 1
        assert "left aside: 2 hidden" in text
        assert str(run.parent) not in text
    own, other = markdown.read_text().split("### Measured otherwise")
    assert "10 test samples" not in own and "24 test" not in other.split("\n\n")[1]


def test_a_result_that_does_not_say_what_it_measured_is_named(run: Path, tmp_path: Path) -> None:
    file = run / "evaluate" / "last@0123456789ab.json"
    file.write_text(json.dumps({"rows": []}))
    with pytest.raises(ValueError, match="last@0123456789ab.json: has no measured_on"):
        read_run(run)
    file.unlink()


def test_seeds_that_were_measured_on_different_samples_are_told(tmp_path: Path) -> None:
    runs = []
    for seed in (0, 1):
        tiny.write_images(tmp_path / "tiny.npz", test=24 + 2 * seed)
        settings = tiny.settings(tmp_path, run={"name": f"seed-{seed}", "seed": seed})
        runs.append(job.train(settings).settings.folder)
        evaluate_run(runs[-1])
    caution = "the runs were measured on different samples"
    for text in (path.read_text() for path in write_report(runs, tmp_path / "both.html")):
        assert text.count(caution) == 1
    for text in (path.read_text() for path in write_report(runs[:1], tmp_path / "one.html")):
        assert caution not in text
