"""From rows to cells: means over seeds and sites, order, and what the curves are made of."""

from pathlib import Path
from typing import Any

import pytest

from sslmed_dist.report import facts, tables, wording
from sslmed_dist.report.results import mean_over_sites
from sslmed_dist.report.runs import Experiment, Run, is_phantom
from sslmed_dist.report.series import Key, Series


def row(site: str, value: float | None, arm: str = "local", metric: str = "accuracy", n: int = 200) -> dict[str, Any]:
    return {
        "arm": arm, "site": site, "evaluator": "knn", "metric": metric, "value": value, "low": None, "high": None,
        "n": n, "groups": n, "note": "", "file": "encoder",
    }  # fmt: skip


def experiment(*runs: list[dict[str, Any]], metrics: Any = ()) -> Experiment:
    series: dict[Key, Series] = {}
    for place, line in enumerate(metrics):
        series.setdefault(Key(line["name"], None, line["site"], None), Series()).add(line, place)
    made = tuple(Run(Path(f"run-{i}"), {}, None, series, rows, [], 0) for i, rows in enumerate(runs))
    return Experiment("made-up", made, tuple(f"seed {i}" for i in range(len(runs))))


def test_mean_and_deviation_over_seeds_leave_undefined_values_out() -> None:
    runs = ([row("a", value)] for value in (0.5, 0.7, None))
    cell = tables.site_tables(experiment(*runs))[0].cells["local", ("knn", "accuracy")]
    assert cell.value == pytest.approx(0.6) and cell.sd == pytest.approx(0.02**0.5)
    assert tables.cell_text(cell, "accuracy") == ("60.0", "± 14.1")
    assert [label for label, _ in cell.each] == ["seed 0", "seed 1", "seed 2"]


def test_mean_over_sites_weighs_sites_alike_and_counts_the_undefined() -> None:
    found = tables.site_tables(
        experiment([row("a", 0.5, n=1000), row("b", 0.9, n=10), row("c", None), row("all", 0.1)])
    )
    assert [table.title for table in found] == ["all", "a", "b", "c"]
    mean = mean_over_sites(found)
    assert mean is not None
    cell = mean.cells["local", ("knn", "accuracy")]
    assert cell.value == pytest.approx(0.7) and cell.samples == (1210, 1210)
    assert cell.each[0][1]["note"] == "over 2 of 3 sites"
    assert mean_over_sites(found[:2]) is None


def test_arms_and_sites_come_in_a_sensible_order() -> None:
    arms = ["zebra", "pooled", "federated", "local", "random", "raw_pixels"]
    found = tables.site_tables(experiment([row(s, 0.5, arm) for s in ("site-10", "site-2") for arm in arms]))
    assert [table.title for table in found] == ["site-2", "site-10"]
    assert found[0].arms == ("raw_pixels", "random", "local", "federated", "pooled", "encoder", "zebra")


def test_a_raised_number_in_a_name_is_a_letter() -> None:
    found = tables.site_tables(experiment([row(site, 0.5) for site in ("m² 10", "m² 2", "²")]))
    assert [table.title for table in found] == ["m² 2", "m² 10", "²"]


def test_caution_counts_patients_and_samples() -> None:
    assert tables.site_tables(experiment([row("a", 0.5)]))[0].caution() is None
    few = tables.site_tables(experiment([row("a", 0.5) | {"groups": 8}]))[0]
    assert few.counts() == "200 test samples of 8 patients or exams"
    assert few.caution() == "descriptive: few patients (8 patients or exams, 200 test samples)"
    assert tables.site_tables(experiment([row("a", 0.5, n=99)]))[0].caution() is not None


def test_numbers_as_printed() -> None:
    assert wording.number(0.8412, "accuracy") == "84.1"
    assert wording.number(0.8412, "auc/liver") == "0.841"
    assert wording.number(-0.012, "accuracy", signed=True) == "−1.2"
    assert wording.number(0.012, "auc", signed=True) == "+0.012"
    assert tables.cell_text(None, "auc") == ("not run", "")
    assert wording.column_name(("knn", "auc/liver")) == "kNN AUC liver"
    assert wording.number(-2.3456, "uniformity") == "−2.346"
    assert wording.number(0.25, "tolerance", signed=True) == "+0.250"
    column = ("representation", "inter_class_uniformity")
    assert wording.column_name(column) == "representation inter-class uniformity"
    assert wording.column_name(("knn(k=1, metric=l2)", "top5")) == "kNN(k=1, metric=l2) top-5, %"


def test_geometry_is_printed_as_it_is_and_not_plotted_as_accuracy() -> None:
    rows = [row("all", value, metric=metric) for metric, value in (("uniformity", -3.5), ("accuracy", 0.5))]
    table = tables.site_tables(experiment(rows))[0]
    assert tables.cell_text(table.cells["local", ("knn", "uniformity")], "uniformity") == ("−3.500", "")
    assert table.columns == (("knn", "accuracy"), ("knn", "uniformity"))
    assert tables.plotted_columns(table.columns) == (("knn", "accuracy"),)


def test_curves_use_the_finest_abscissa_and_are_thinned() -> None:
    lines = [{"name": "loss", "value": float(i), "step": i, "round": i // 10, "site": None} for i in range(1000)]
    (line,), x_name = facts.curve_lines(experiment([], metrics=lines), "loss")
    xs, ys = line.runs[0]
    assert x_name == "step" and len(xs) == 250 and xs[0] == ys[0] == 1.5
    rounds = [{"name": "loss", "value": 1.0, "step": None, "round": 3, "site": "north"}]
    (line,), x_name = facts.curve_lines(experiment([], metrics=rounds), "loss")
    assert (x_name, line.label, line.runs[0][0]) == ("round", "north", [3.0])
    assert facts.curve_lines(experiment([]), "loss") == ([], "step")


def test_paths_are_shortened_everywhere() -> None:
    tree = {"data": {"root": "/home/x/scans", "more": ["~/y/z.npz", 3]}}
    text = facts.config_text(tree)
    assert "home" not in text and "…/scans" in text and "…/z.npz" in text


def test_phantoms_are_recognised_by_name_root_or_flag() -> None:
    assert is_phantom({"data": {"name": "phantom_knee"}}) and is_phantom({"data": "phantom_knee"})
    assert is_phantom({"data": {"name": "abdominal", "root": "x/phantom-abdomen"}})
    assert is_phantom({"data": {"name": "abdominal", "phantom": True}})
    assert is_phantom({}, {"phantom_data": True}) and not is_phantom({}, {"phantom_data": False})
    assert not is_phantom({"data": {"name": "abdominal", "phantom": False}}) and not is_phantom({})
