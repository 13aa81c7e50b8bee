"""What ``sslmed evaluate`` says of a run: a classifier's own predictions, rows of several protocols, similarities."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from sslmed_dist import cli, config
from sslmed_dist.data.images.files import ImageFiles
from sslmed_dist.training import build, job, pretrained
from sslmed_dist.training.evaluation_data import evaluation_splits, overridden
from sslmed_dist.verbs.evaluate import all_rows, evaluate, evaluate_run, own_predictions
from sslmed_dist.verbs.measurement import measurement
from sslmed_dist.verbs.similarities import similarities
from tests import tiny

METHOD = {"name": "classify", "encoder": {"name": "resnet", "depth": 9, "stem": "cifar", "width": 4}}


def fine_tuned(folder: Path, **sections: dict[str, Any]) -> job.Job:
    """A tiny fine-tuning, trained to its end."""
    tree = tiny.tree(folder, plan={"epochs": 3}, evaluate={"protocols": [{"name": "knn", "k": 5}]})
    tree["method"] = METHOD
    tree["views"] = tree["views"] | {"views": 1, "flip": 0.0, "crop_scale": [0.6, 1.0]}
    return job.train(config.from_tree(config.merge(tree, sections), "fine"))


def noise(root: Path, classes: str) -> list[str]:
    """A folder of images, 12 to train on and 6 to test on, the classes in turn; returns the overrides that name it."""
    from PIL import Image

    for split, count in (("train", 12), ("test", 6)):
        for number in range(count):
            path = root / split / classes[number % len(classes)] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.effect_noise((12, 12), 20 * (1 + number % len(classes))).save(path)
    return ["data.name=image_folder", f"data.root={root}", "data.size=12"]


def rows_of(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
    return rows


def test_a_classifier_is_scored_by_its_own_predictions_beside_the_protocols(tmp_path: Path) -> None:
    done = fine_tuned(tmp_path)
    rows = rows_of(evaluate_run(done.settings.folder))
    own = [row for row in rows if row["evaluator"] == "classifier"]
    assert own == rows[:3] and {row["arm"] for row in own} == {"encoder"}
    assert [row["metric"] for row in own] == ["accuracy", "balanced_accuracy", "auc"]
    assert {row["evaluator"] for row in rows} == {"classifier", "knn"}
    test = build.load_data(done.settings, "test")
    batch = test.fetch(torch.arange(len(test)), seed=0, epoch=0, draw=torch.zeros(len(test), dtype=torch.int64))
    views = build.standard_views(done.settings, test)(batch, seed=0, epoch=0)
    with torch.no_grad():
        right = done.method.eval().predict(views["views_0"]).argmax(dim=1) == views["labels"]  # type: ignore[operator]
    assert own[0]["value"] == pytest.approx(float(right.double().mean())) and own[0]["n"] == 24
    assert own[0]["low"] <= own[0]["value"] <= own[0]["high"]


def test_several_labels_are_scored_by_the_area_under_each_curve(tmp_path: Path) -> None:
    import numpy as np

    with np.load(tiny.write_images(tmp_path / "tiny.npz")) as archive:
        arrays = dict(archive)
    for name in ("train", "val", "test"):
        labels = arrays[f"{name}_labels"]
        arrays[f"{name}_labels"] = np.concatenate([labels, 1 - labels], axis=1)
    np.savez(tmp_path / "tiny.npz", **arrays)
    done = fine_tuned(tmp_path, method={"class_weights": [1.5, 0.5]})
    assert done.settings.method["task"] == "multi" and done.settings.method["classes"] == 2
    own = [row for row in rows_of(evaluate_run(done.settings.folder)) if row["evaluator"] == "classifier"]
    assert [row["metric"] for row in own] == ["auc", "auc/0", "auc/1"] and own[0]["value"] > 0.6


def test_other_data_than_the_classifier_knows_is_refused(tmp_path: Path) -> None:
    done = fine_tuned(tmp_path)
    found = pretrained.load(done.settings.folder)
    dataset, parts = evaluation_splits(done.settings)
    dataset.classes = ("0", "1", "2")
    with pytest.raises(ValueError, match="tiny: has 3 classes, the classifier was trained for 2"):
        own_predictions(found, dataset, parts)


def test_protocols_of_one_name_get_names_of_their_own(tmp_path: Path) -> None:
    """The long-tail protocol beside the usual one."""
    nearest = [{"name": "knn", "k": k, "metric": "l2"} for k in (1, 10)]
    protocols: list[dict[str, Any]] = [*nearest, {"name": "knn", "k": 5}, {"name": "representation"}]
    done = job.train(tiny.settings(tmp_path, evaluate={"protocols": protocols}))
    rows = rows_of(evaluate_run(done.settings.folder))
    names = list(dict.fromkeys(row["evaluator"] for row in rows))
    assert names == ["knn(k=1, metric=l2)", "knn(k=10, metric=l2)", "knn(k=5)", "representation"]
    measured = {row["metric"] for row in rows if row["evaluator"] == "representation" and not row.get("difference")}
    assert measured == {"uniformity", "inter_class_uniformity", "tolerance"}
    keys = [(row["arm"], row["evaluator"], row["metric"]) for row in rows]
    assert len(keys) == len(set(keys))
    with pytest.raises(ValueError, match=r"^evaluate.protocols: knn\(k=5\) stands there twice$"):
        build.build_evaluators(tiny.settings(tmp_path, evaluate={"protocols": [protocols[2]] * 2}))


def test_similarities_are_written_beside_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = job.train(tiny.settings(tmp_path)).settings.folder
    assert cli.main(["evaluate", str(folder), "--histogram"]) == 0
    written = [folder / "evaluate" / name for name in ("last.json", "similarity.json")]
    assert capsys.readouterr().out.splitlines()[-2:] == [str(path) for path in written]
    found = json.loads(written[1].read_text())
    assert len(found["bins"]) == 101 and found["n"] == 24
    assert {kind: sum(row) for kind, row in found["counts"].items()} == {
        "true_positive": 24, "false_negative": 24 * 11, "true_negative": 24 * 12
    }  # fmt: skip
    assert found["alignment"] == pytest.approx(2 - 2 * found["means"]["true_positive"])
    assert found["encoder"]["file"] == "step_000000006.pt"
    before = written[1].read_bytes()
    assert similarities(measurement(folder)).read_bytes() == before


def test_one_view_makes_no_pairs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="need two training views per image; this run's views give one"):
        similarities(measurement(fine_tuned(tmp_path).settings.folder))
    with pytest.raises(ValueError, match="absent: expected a run folder"):
        measurement(tmp_path / "absent")


def pretraining(folder: Path) -> Path:
    """The run folder of a tiny pretraining."""
    return job.train(tiny.settings(folder)).settings.folder


def test_a_result_says_what_it_was_measured_on(tmp_path: Path) -> None:
    tree = json.loads(evaluate_run(pretraining(tmp_path)).read_text())
    measured = tree["measured_on"]
    assert (
        measured["data"] == {"name": "medmnist"}
        and measured["folder"] == "tiny.npz"
        and measured["samples"] == {"train": 43, "val": 5, "test": 24}
    )
    assert len(measured["sha256"]) == 64 and str(tmp_path) not in json.dumps(tree)


def test_data_that_moved_is_measured_under_the_run_s_own_name(tmp_path: Path) -> None:
    run = pretraining(tmp_path)
    before = rows_of(evaluate_run(run))
    (tmp_path / "tiny.npz").rename(tmp_path / "moved.npz")
    with pytest.raises(ValueError, match=r"tiny\.npz"):
        evaluate_run(run)
    out = evaluate_run(run, overrides=[f"data.root={tmp_path / 'moved.npz'}"])
    assert out == run / "evaluate" / "last.json" and rows_of(out) == before


def test_another_question_gets_a_file_of_its_own(tmp_path: Path) -> None:
    run = pretraining(tmp_path)
    own = evaluate_run(run)
    content = own.read_bytes()
    tiny.write_images(tmp_path / "other.npz", train=40, test=10)
    asked = [[f"data.root={tmp_path / 'other.npz'}"], ["evaluate.protocols=[{name: knn, k: 3}]"], ["evaluate.test=val"]]
    results = [evaluate_run(run, overrides=overrides) for overrides in asked]
    assert own.read_bytes() == content and len({own, *results}) == 4
    assert all(path.name.startswith("last@") for path in results)
    assert [rows_of(path)[0]["n"] for path in results] == [10, 24, 12]
    assert [evaluate_run(run, overrides=overrides) for overrides in asked] == results


def test_another_dataset_replaces_the_section_and_keeps_the_run_s_normalisation(tmp_path: Path) -> None:
    run = pretraining(tmp_path)
    overrides = noise(tmp_path / "set", "xyz")
    with pytest.raises(ValueError, match=r"set has images of 3 channels, the encoder takes 1"):
        evaluate_run(run, overrides=overrides)
    out = evaluate_run(run, overrides=[*overrides, "data.channels=1"])
    assert json.loads(out.read_text())["measured_on"]["data"] == {"name": "image_folder", "size": 12, "channels": 1}
    assert rows_of(out)[0]["n"] == 6 and out.name.startswith("last@")


@pytest.mark.parametrize("override", ["data=3", "data=null", "data=[1]"])
def test_data_that_is_no_section_is_refused(override: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="^evaluate: data: expected mapping, got "):
        overridden(tiny.settings(tmp_path), [override])


@pytest.mark.parametrize("override", ["method.loss.temperature=0.5", "views.size=8", "plan.epochs=3", "run.name=x"])
def test_what_the_checkpoint_decides_is_no_question_of_an_evaluation(tmp_path: Path, override: str) -> None:
    run = pretraining(tmp_path)
    allowed = r"an evaluation may set data, evaluate, run\.device, run\.threads"
    with pytest.raises(ValueError, match=f"^{override.split('=')[0]}: is decided by the checkpoint; {allowed}"):
        evaluate_run(run, overrides=[override])
    assert not (run / "evaluate").exists()


@pytest.mark.parametrize(
    ("section", "line"),
    [
        (
            {"evaluate": {"protocols": [{"name": "knn", "k": 44}]}},
            r"evaluate\.protocols: knn.*: knn\.k: 44 neighbours asked of n = 43 .*; allowed: 1 to 43 \(5 of 48",
        ),
        ({"evaluate": {"protocols": [{"name": "linear"}], "val_fraction": 0.0}}, r"fraction 0\.0 of 48 groups"),
        ({"evaluate": {"data": {"root": "nowhere.npz"}}}, r"nowhere\.npz"),
    ],
)
def test_check_tries_what_the_evaluation_will_need(tmp_path: Path, section: dict[str, Any], line: str) -> None:
    from sslmed_dist.training.evaluation_data import check_evaluation

    with pytest.raises(ValueError, match=line):
        check_evaluation(tiny.settings(tmp_path, **section))
    assert check_evaluation(tiny.settings(tmp_path)) == ["evaluate  knn: 43 train, 5 val, 24 test"]


def test_other_samples_in_the_old_place_are_another_question(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = pretraining(tmp_path)
    own = evaluate_run(run)
    before = own.read_bytes()
    tiny.write_images(tmp_path / "tiny.npz", train=46)
    out = evaluate_run(run)
    assert out != own and out.name.startswith("last@") and own.read_bytes() == before
    assert "tiny holds other samples than the run was trained on" in capsys.readouterr().err


def test_other_data_is_measured_where_the_training_samples_are_not_at_hand(tmp_path: Path) -> None:
    run = pretraining(tmp_path)
    other = (tmp_path / "tiny.npz").rename(tmp_path / "other.npz")
    assert evaluate_run(run, overrides=[f"evaluate.data.root={other}"]).name.startswith("last@")


def test_what_reading_left_aside_stands_beside_the_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = pretraining(tmp_path)
    overrides = noise(tmp_path / "set", "xy")
    (tmp_path / "set" / "test" / "x" / "0.png").write_bytes((tmp_path / "set" / "train" / "x" / "0.png").read_bytes())
    notices = json.loads(evaluate_run(run, overrides=[*overrides, "data.channels=1"]).read_text())["notices"]
    assert len(notices) == 1 and "1 training image is a copy" in notices[0]
    assert f"note: data: {notices[0]}" in capsys.readouterr().err


def test_nothing_to_measure_is_no_result(tmp_path: Path) -> None:
    run = pretraining(tmp_path)
    with pytest.raises(ValueError, match="evaluate.protocols: is empty, so there is nothing to measure"):
        evaluate_run(run, overrides=["evaluate.protocols=[]"])
    assert not (run / "evaluate").exists()


def test_a_slow_copy_has_no_predictions_of_the_classifier(tmp_path: Path) -> None:
    done = fine_tuned(tmp_path)
    trained = pretrained.load(done.settings.folder)
    dataset, parts = evaluation_splits(done.settings)
    for part, own in (("encoder", True), ("momentum", False)):
        rows, _ = all_rows(trained, done.settings, dataset, parts, part)  # type: ignore[arg-type]
        assert any(row.score.evaluator == "classifier" for row in rows) == own


def test_every_arm_is_shown_images_that_were_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = job.train(tiny.settings(tmp_path)).settings.folder
    overrides = [*noise(tmp_path / "set", "ab"), "data.channels=1", "evaluate.protocols=[{name: knn, k: 3}]"]
    decode, decoded = ImageFiles.decode, Counter[str]()

    def counted(self: ImageFiles, position: int) -> torch.Tensor:
        decoded[self.files[position]] += 1
        return decode(self, position)

    monkeypatch.setattr(ImageFiles, "decode", counted)
    asked = measurement(run, overrides=overrides)
    assert sum(dict(decoded).values()) == 0 and asked.data[1]["test"].tolist()
    tried = sum(decoded.values())  # the first image of each split is read as a test
    kept = rows_of(evaluate(asked))
    assert sum(decoded.values()) - tried == 18
    monkeypatch.setattr("sslmed_dist.verbs.evaluate.MOST_KEPT", 0)
    assert rows_of(evaluate(measurement(run, overrides=overrides))) == kept and sum(decoded.values()) - 2 * tried == 72


def test_what_is_measured_before_the_end_of_a_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = job.train(tiny.settings(tmp_path)).settings.folder
    said = "measured at step 5 of 6: before the end of its run"
    assert cli.main(["evaluate", str(run), "--which", "step_5"]) == 0
    assert "note: step_000000005.pt is of step 5 of 6: before the end of its run" in capsys.readouterr().err
    assert cli.main(["report", str(run)]) == 0 and said in (run / "report.html").read_text()
    assert said in (run / "report.md").read_text()
    (run / "evaluate" / "step_5.json").unlink()
    assert cli.main(["evaluate", str(run)]) == 0 and cli.main(["report", str(run)]) == 0
    assert "before the end" not in capsys.readouterr().err + (run / "report.html").read_text()
