"""What the trials of a sweep are compared by: its name is known before the first one trains."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sslmed_dist import cli, config
from sslmed_dist.downstream import EVALUATORS
from sslmed_dist.report.wording import METRIC_NAMES
from sslmed_dist.run_folder import Metrics
from sslmed_dist.training import job
from sslmed_dist.verbs import evaluate
from sslmed_dist.verbs.sweep import names, tool
from sslmed_dist.verbs.sweep.direction import HIGHER, LOWER, direction
from sslmed_dist.verbs.sweep.grid import Trial
from sslmed_dist.verbs.sweep.table import table_of
from sslmed_dist.verbs.sweep.trial import Worth
from sslmed_dist.verbs.verdict.tool import MEANT
from tests.verbs.test_sweep import recipe

Capture = pytest.CaptureFixture[str]
ENCODER = {"name": "resnet", "depth": 9, "stem": "cifar", "width": 4}
CLASSIFY: dict[str, Any] = {
    "views": {"views": 1},
    "method": {"name": "classify", "encoder": ENCODER, "head": None, "loss": None},
    "plan": {"validate": "val", "epochs": 1},
    "evaluate": {"every": 1, "protocols": [{"name": "linear", "epochs": 2}, {"name": "representation"}]},
}


def classifier(folder: Path) -> config.Config:
    """A tiny run with a classifier of its own, a validation and a guide."""
    sections = {**CLASSIFY, "method": {key: value for key, value in CLASSIFY["method"].items() if value is not None}}
    return config.load(recipe(folder, **sections), [])


def test_the_names_are_those_that_the_run_will_have(tmp_path: Path) -> None:
    settings = classifier(tmp_path)
    scalars, figures = names.scalars(settings), names.figures(settings)
    assert not settings.folder.exists() and scalars[0] == "loss"
    job.train(settings)
    assert set(scalars) == {row["name"] for row in Metrics(settings.folder / "metrics.jsonl").read()}
    assert {"knn_accuracy", "val_loss", "val_accuracy_at_lowest_loss"} < set(scalars)
    rows = json.loads(evaluate.evaluate_run(settings.folder).read_text())["rows"]
    assert figures == [f"{row['evaluator']}/{row['metric']}" for row in rows if row["arm"] == "encoder"]
    assert "classifier/auc" in figures and "representation/tolerance" in figures


def test_an_evaluator_says_its_measures_on_made_up_features() -> None:
    for name in ("knn", "linear", "exam_probe", "representation"):
        evaluator = EVALUATORS[name]()
        for task, classes in (("single", ("a", "b", "c")), ("multi", ("a", "b"))):
            made = names.made_up(evaluator, task, classes)  # type: ignore[arg-type]
            assert len(made.train) == (256 if name == "knn" else 8)  # 200 neighbours
            assert evaluator.predict(made, seed=0).classes == classes  # type: ignore[union-attr]
    assert list(names.of_classes("multi", ("a", "b"))) == ["auc", "auc/a", "auc/b"]
    assert list(names.of_classes("single", tuple("abcdefghijkl")))[-1] == "top5"


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("metric", "allowed"),
    [
        ("knn/mae", "knn/accuracy, knn/balanced_accuracy, knn/auc, loss, "),
        ("linear/accuracy", "knn/accuracy, "),
        ("knn", "loss, embedding_std, effective_rank, uniformity, alignment, lr, "),
        ("val_loss", "loss, "),
    ],
)
def test_an_unknown_metric_is_refused_before_the_first_trial(
    tmp_path: Path, capsys: Capture, metric: str, allowed: str, dry: list[str]
) -> None:
    assert cli.main(["sweep", str(recipe(tmp_path)), "optim.lr=0.1,0.2", "--metric", metric, *dry]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"sslmed sweep: --metric: {metric}: unknown in optim.lr=0.1; allowed: {allowed}")
    assert len(said.splitlines()) == 1 and "knn/auc" in said and not list(tmp_path.glob("runs/*"))


@pytest.mark.parametrize("metric", ["knn/auc", "alignment", "loss", "gradient_norm", None])
def test_a_known_one_is_taken(tmp_path: Path, metric: str | None) -> None:
    assert tool.request(recipe(tmp_path), ["optim.lr=0.1,0.2"], metric=metric).trials


def test_every_trial_has_to_have_it(tmp_path: Path) -> None:
    words = ["evaluate.protocols=[{name: knn, k: 5}],[{name: linear}]"]
    with pytest.raises(ValueError, match=r"knn/auc: unknown in evaluate.protocols=\[\{name: linear\}\]; allowed: line"):
        tool.request(recipe(tmp_path), words, metric="knn/auc")


def test_of_scans_the_evaluator_is_checked_and_the_rest_is_said(tmp_path: Path) -> None:
    protocols = [{"name": "one_shot", "organs": ["liver"], "window": window} for window in (2, 4)]
    settings = config.load(recipe(tmp_path, evaluate={"protocols": protocols}), [])
    assert names.figures(settings) == ["one_shot(window=2)/MEASURE", "one_shot(window=4)/MEASURE"]
    names.require_known("one_shot(window=4)/dice", {Trial(()): settings})
    with pytest.raises(ValueError, match="one_shot/dice: unknown"):
        names.require_known("one_shot/dice", {Trial(()): settings})
    (line,) = names.unchecked("one_shot(window=4)/dice", settings)
    assert line.startswith("whether one_shot(window=4) has one_shot(window=4)/dice is known only when")
    assert names.unchecked("loss", settings) == []


def test_of_data_without_labels_only_scalars_are_named(tmp_path: Path) -> None:
    for number in range(12):
        Image.new("L", (8, 8), number).save(tmp_path / f"{number}.png")
    path = recipe(tmp_path, data={"name": "image_folder", "root": str(tmp_path), "size": 8}, plan={"batch_size": 4})
    with pytest.raises(ValueError, match=r"--metric: lost: unknown in optim.lr=1; allowed: loss, .*, wait_share$"):
        tool.request(path, ["optim.lr=1,2"], metric="lost")


@pytest.mark.parametrize(
    ("metric", "lower", "first", "said"),
    [
        ("loss", False, True, "lower is better."),
        ("loss", True, True, "lower is better."),
        ("loss_image", False, True, "lower is better."),
        ("val_loss_at_lowest_loss", False, True, "lower is better."),
        ("representation/inter_class_uniformity", False, True, "lower is better."),
        ("alignment", False, True, "lower is better, unless all features are one point (uniformity 0)."),
        ("one_shot/hd95/liver", False, True, "lower is better."),
        ("one_shot/dice_sd_supports", False, True, "lower is better."),
        ("one_shot/dice/liver", False, False, "higher is better."),
        ("val_accuracy_at_lowest_loss", False, False, "higher is better."),
        ("knn_accuracy", False, False, "higher is better."),
        ("knn(k=5)/auc/mass_loss", False, False, "higher is better."),
        ("knn/accuracy", True, True, "the lowest comes first, as --lower asks, though higher is better."),
        ("wait_share", True, True, "lower is better, as --lower says."),
        ("tolerance", False, False, "not known which is better; higher was taken as better (--lower: lower)."),
    ],
)
def test_the_better_end_comes_first_and_the_table_says_which_it_is(
    metric: str, lower: bool, first: bool, said: str
) -> None:
    rows = [(f"trial-{value}", [str(value)], Worth(value, metric=metric)) for value in (2.0, 1.0, 3.0)]
    for asked in (metric, None):  # also where it is the first measure that nobody asked for by name
        table = table_of(Path("s"), ["k"], rows, asked, lower)
        assert [row[0] for row in table.rows[1:]] == (["1.0", "2.0", "3.0"] if first else ["3.0", "2.0", "1.0"])
        assert table.lower == first and table.notes[1] == f"{metric}: {said}"


def test_what_is_printed_elsewhere_has_the_same_direction() -> None:
    for name, (_, where) in MEANT.items():
        if where.startswith(("lower is better", "more is better")):
            metric = "knn/accuracy" if name == "knn" else name
            assert direction(metric, False).lower == where.startswith("lower"), name
            assert "not known" not in direction(metric, False).said
    # A trade against uniformity: neither end is better.
    assert set(METRIC_NAMES) - {"tolerance"} <= {*HIGHER, *LOWER} and not set(HIGHER) & set(LOWER)


def test_the_budget_says_what_trials_are_compared_by(tmp_path: Path, capsys: Capture) -> None:
    path = str(recipe(tmp_path))
    assert cli.main(["sweep", path, "optim.lr=0.1,0.2", "--metric", "loss", "--dry-run"]) == 0
    assert "loss: lower is better." in capsys.readouterr().out.splitlines()
