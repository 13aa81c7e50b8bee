"""``sslmed analyse`` on a tiny run: every analysis against a number that is known another way."""

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslmed_dist import cli, randomness
from sslmed_dist.analysis import curvature
from sslmed_dist.cli_parser import ANALYSES
from sslmed_dist.report.panels import Panel, curve, svg
from sslmed_dist.training import build, job
from sslmed_dist.verbs.analyse import tool
from sslmed_dist.verbs.analyse.subject import subjects
from sslmed_dist.verbs.reproduce.closed_form import FIGURES
from tests import tiny

Row = dict[str, str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 steps with the checkpoints 2, 4, 5 and 6."""
    settings = tiny.settings(tmp_path_factory.mktemp("analyse"), plan={"keep_every": 2, "epochs": 2})
    job.train(settings)
    return settings.folder


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def rows(run: Path, name: str) -> list[Row]:
    with (run / "analysis" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_is_that_of_the_command_line() -> None:
    assert tuple(tool.ANALYSES) == ANALYSES


def test_hessian(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["analyse", str(run), "hessian", "which=step_2,last", "samples=12", "ritz=4", "precision=float64"]
    assert cli.main(asked) == 0
    said = capsys.readouterr()
    assert "MiB on top" in said.err and "of 1/lr (lr " in said.out and "hessian.svg" in said.out
    found = rows(run, "hessian")
    assert [row["step"] for row in found] == ["2"] * 4 + ["6"] * 4
    # v^T H v of the keyed start vector, from two gradients instead of two derivatives.
    (subject,) = subjects([run])
    point = subject.point(subject.files("last")[0], 12, "float64")
    size = sum(it.numel() for it in point.parameters)
    way = randomness.normal(point.seed, "lanczos", torch.arange(size))
    way /= way.norm()
    slopes = []
    for step in (1e-5, -2e-5):
        start = 0
        for it in point.parameters:
            it.data += step * way[start : start + it.numel()].view_as(it)
            start += it.numel()
        slopes.append(curvature.gradient(point.loss(), point.parameters))
    expected = float((slopes[0] - slopes[1]) @ way / 2e-5)
    of_last = found[4:]
    assert sum(float(row["weight"]) * float(row["value"]) for row in of_last) == pytest.approx(expected, rel=1e-4)
    for row in of_last:
        assert float(row["factor"]) == pytest.approx((1 - float(row["times_lr"])) ** 2)
    # Asked again, nothing is computed; another question is.
    monkeypatch.setattr(curvature, "lanczos", lambda *_: pytest.fail("computed again"))
    assert cli.main(asked) == 0 and rows(run, "hessian") == found
    with pytest.raises(pytest.fail.Exception):
        cli.main([*asked[:4], "samples=13"])


def test_landscape(run: Path) -> None:
    assert cli.main(["analyse", str(run), "landscape", "samples=12", "points=5", "precision=float64"]) == 0
    found = rows(run, "landscape")
    points = {int(row["step"]): row for row in found if row["kind"] == "checkpoint"}
    assert list(points) == [2, 4, 5, 6]
    losses = {step: float(row["loss"]) for step, row in points.items()}
    steps = list(losses)
    for now, after in zip(steps, steps[1:], strict=False):
        cut = [row for row in found if row["kind"] == "to_next" and int(row["step"]) == now]
        assert float(cut[0]["loss"]) == pytest.approx(losses[now], rel=1e-12)
        assert float(cut[-1]["loss"]) == pytest.approx(losses[after], rel=1e-12)
    for step, row in points.items():
        cut = [it for it in found if it["kind"] == "along_gradient" and int(it["step"]) == step]
        assert float(cut[2]["at"]) == 0 and float(cut[2]["loss"]) == pytest.approx(losses[step], rel=1e-12)
        squared, floor = float(row["squared_gradient"]), float(row["floor"])
        assert float(row["ratio_floor"]) == pytest.approx(0.5 * squared / (losses[step] - floor))
        if losses[step] == min(losses.values()):
            assert row["ratio_lowest"] == ""
        else:
            assert float(row["ratio_lowest"]) >= float(row["ratio_floor"])


@pytest.mark.parametrize("method", ["moco_v2", "byol"])
def test_a_loss_with_a_state_of_its_own_has_no_lowest_one(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A queue or a teacher belongs to its checkpoint: the way to the next one ends at another loss than its own."""
    leaf = {"moco_v2": {"name": "moco_v2", "queue": 32}, "byol": {"name": "byol"}}[method]
    settings = tiny.settings(tmp_path, method=leaf, plan={"keep_every": 2, "epochs": 2})
    job.train(settings)
    assert cli.main(["analyse", str(settings.folder), "landscape", "samples=12", "points=3"]) == 0
    assert "each has a loss of its own: no ratio to the lowest of them" in capsys.readouterr().out
    found = [row for row in rows(settings.folder, "landscape") if row["kind"] == "checkpoint"]
    assert len(found) > 2 and {row["ratio_lowest"] for row in found} == {""}
    assert "with the state of the first" in (settings.folder / "analysis" / "landscape.svg").read_text()


def test_a_kept_answer_is_of_its_data(run: Path, tmp_path: Path) -> None:
    """Data elsewhere that hold other images are asked anew; a copy of the same ones gives the same figures."""
    asked = ["analyse", str(run), "landscape", "samples=12", "points=2"]
    assert cli.main(asked) == 0
    own, (subject,) = rows(run, "landscape"), subjects([run])
    with np.load(str(subject.settings.data["root"])) as stored:
        arrays = dict(stored)
    copy, other = tmp_path / "copy.npz", tmp_path / "other.npz"
    np.savez(copy, **arrays)
    np.savez(other, **{name: it[::-1] if "images" in name else it for name, it in arrays.items()})
    for root, same in ((other, False), (copy, True)):
        assert cli.main([*asked, f"data.root={root}"]) == 0
        assert (rows(run, "landscape") == own) == same


def test_temperature(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["analyse", str(run), "temperature", "samples=16", "bins=10"]) == 0
    assert "in units of that on the positive ones" in capsys.readouterr().out
    found = rows(run, "temperature")
    curves = [row for row in found if row["kind"] == "temperature"]
    assert {row["tau"] for row in curves} == {"0.2"} and len(curves) == 201
    pulls = [row for row in found if row["kind"] != "temperature"]
    # A softmax only moves weight about: pull and push cancel, and all ordered pairs are there.
    assert sum(float(row["sum"]) for row in pulls) == pytest.approx(0.0, abs=1e-12)
    assert sum(int(row["pairs"]) for row in pulls) == 32 * 31
    assert sum(int(row["pairs"]) for row in pulls if row["kind"] == "positive") == 32


def test_similarity(run: Path) -> None:
    assert cli.main(["analyse", str(run), "similarity", "which=step_2,last", "samples=20", "bins=8"]) == 0
    found = rows(run, "similarity")
    names = list(dict.fromkeys(row["run"] for row in found))
    assert names == ["tiny, initial weights", "tiny, step 2", "tiny, step 6"]
    for name in names:
        assert sum(int(row["pairs"]) for row in found if row["run"] == name) == 20 * 20
    # The first ones are those of the weights that the run began with.
    (subject,) = subjects([run])
    encoder, batch = build.build_method(subject.settings).encoder.eval(), subject.batch(20)
    with torch.no_grad():
        first, second = (torch.nn.functional.normalize(encoder(batch[f"views_{n}"]).double()) for n in (0, 1))
    place = (((first * second).sum(1) + 1) * 4).long().clamp(max=7)
    kept = [row["pairs"] for row in found if row["run"] == names[0] and row["kind"] == "true_positive"]
    assert [int(count) for count in kept] == torch.bincount(place, minlength=8).tolist()


def test_gradcam(run: Path) -> None:
    assert cli.main(["analyse", str(run), "gradcam"]) == 0
    assert (run / "analysis" / "gradcam.png").read_bytes().startswith(b"\x89PNG")
    assert len(rows(run, "gradcam")) == 4


@pytest.mark.parametrize(
    "words, line",
    [
        (["hessian", "ritz=0"], "ritz: expected a number >= 1, got 0"),
        (["hessian", "samples=1000"], "samples: expected 2 to 48, those of "),
        (["hessian", "samples=8", "ritz=100000"], "ritz: expected 1 to "),
        (["landscape", "samples=8", "points=100000000"], "points: expected 2 to 1001, each of them a pass"),
        (["hessian", "which=step_2,last,step_2"], "which: step_000000002 twice; each checkpoint once"),
        (["hessian", "precision=half"], "hessian.precision: expected one of 'float32', 'float64'"),
        (["hessian", "which=step_3"], "no checkpoint 'step_3'; allowed: last, step_2, step_4, step_5, step_6"),
        (
            ["landscape", "steps=3"],
            "landscape.steps: unknown key; allowed: which, samples, points, precision, ",
        ),
        (["similarity", "data.name=x"], "data: allowed here: data.root, got {'name': 'x'}"),
        (["similarity", "data.root=gone.npz"], "gone.npz"),
        (["gradcam", "which=all"], "gradcam: draws one run at one checkpoint; allowed: no --beside, and which=last"),
    ],
)
def test_bad_input_is_one_line(run: Path, words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["analyse", str(run), *words]) == 2
    said = capsys.readouterr().err
    assert line in said and len(said.strip().splitlines()) == 1


def test_no_run_and_the_same_run_twice(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["analyse", str(tmp_path), "similarity"]) == 2
    assert "expected a run folder with checkpoints" in capsys.readouterr().err
    assert cli.main(["analyse", str(run), "similarity", "--beside", str(run)]) == 2
    assert "--beside: names a run twice" in capsys.readouterr().err


def test_too_large_for_the_memory_is_refused_before_it_starts(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sslmed_dist.verbs.analyse import hessian

    monkeypatch.setattr(hessian, "free_memory", lambda: 1000)
    assert cli.main(["analyse", str(run), "hessian", "samples=10", "ritz=3"]) == 2
    assert "10 samples and 3 Ritz values need" in capsys.readouterr().err


@pytest.mark.parametrize("name", FIGURES)
def test_figures_that_are_closed_forms(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["reproduce", name, f"run.dir={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert "published: " in said and "ours: " in said
    with (tmp_path / name / "figure.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    if name == "figure-6.2":  # every point solves tau = c / ln(delta K c - k')
        for row in found[::37]:
            strength, constant = float(row["panel"].split("= ")[1]), float(row["curve"].split()[1])
            c, tau = float(row["c"]), float(row["tau"])
            assert math.exp(c / tau) == pytest.approx(strength * c - constant, rel=0.02, abs=0.01 * abs(constant))
    else:
        ends = [row for row in found if row["panel"] == "temperature" and abs(float(row["c"])) == 1]
        assert len(ends) == 2 * len({row["curve"] for row in found}) and all(float(row["tau(c)"]) > 0 for row in ends)
    assert cli.main(["reproduce", name, "--seeds", "3"]) == 2
    assert "a closed form, no run is behind it; allowed: run.dir=PATH" in capsys.readouterr().err


def test_labels_tell_runs_apart(tmp_path: Path) -> None:
    folders = [tmp_path / row / "small" / f"seed-{seed}" for row in ("a", "b") for seed in (0, 1)]
    for folder in folders:
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "config.yaml").touch()
    assert [it.label for it in subjects(folders)] == ["a/seed-0", "a/seed-1", "b/seed-0", "b/seed-1"]
    assert [it.label for it in subjects(folders[::2])] == ["a", "b"]
    assert [it.label for it in subjects(folders[:1])] == ["seed-0"]


def test_the_same_numbers_are_the_same_picture() -> None:
    panels: list[Any] = [Panel("p", "x", "y", [curve("a", [(0, 1), (1, 3)]), curve("b", [(0, 2)])], level=0.0)]
    first = svg(panels, "heading")
    assert first == svg(panels, "heading") and first != svg(panels[:1] * 2, "heading")
    assert b"<svg" in first and b"heading" in first and b"<dc:date>" not in first
