"""Every table of the thesis has its file, every cell of it resolves, names only what exists, and can be built."""

import inspect
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from sslmed_dist import config, registry
from sslmed_dist.config import Config
from sslmed_dist.data import DATASETS, SUBSETS
from sslmed_dist.downstream import EVALUATORS
from sslmed_dist.losses import LOSSES
from sslmed_dist.losses.temperature import TEMPERATURES
from sslmed_dist.methods import METHODS
from sslmed_dist.models import ENCODERS, HEADS, PROTOTYPE_HEADS
from sslmed_dist.training import optim
from sslmed_dist.verbs.reproduce import read_table, table
from sslmed_dist.verbs.reproduce.table import Table
from sslmed_dist.views import VIEWS
from tests.verbs.reproduce import test_knee_tables

FOLDER = Path(__file__).parents[3] / "configs" / "thesis"
NAMES = [f"table-5.{number}" for number in range(2, 12)] + [f"table-6.{number}" for number in range(1, 16)]
NAMES += [f"table-7.{number}" for number in range(1, 5)]
NAMES += [f"figure-{number}" for number in ("5.1", "5.3", "5.4", "5.5", "6.1", "6.4", "6.5", "6.7", "6.8")]
PICTURES = ("figure-5.3", "figure-5.4", "figure-5.5", "figure-6.1")  # the thesis prints no number of theirs
SUBSET_GIVEN = ("labels", "groups", "ids", "names", "seed")
VIEWS_GIVEN = {"channels": 3, "value_range": (0.0, 255.0)}


@cache
def load(name: str) -> Table:
    """A table of the thesis."""
    return read_table.load(FOLDER / f"{name}.yaml")


@cache
def cells(name: str) -> list[tuple[str, str, Config]]:
    """Row, column and configuration of every cell that can be run."""
    found = load(name)
    return [(row, column, found.settings(row, column)) for row in found.rows for column in found.columns]


def every_cell() -> Iterator[tuple[str, Config]]:
    """All cells of all tables, by a readable name."""
    for name in NAMES:
        yield from ((f"{name} {row} {column}", settings) for row, column, settings in cells(name))


def test_every_table_and_sweep_is_there() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {*NAMES, *test_knee_tables.NAMES}
    assert all(
        f"sslmed reproduce {path.stem}" in path.read_text().split("\ntitle:")[0] for path in FOLDER.glob("*.yaml")
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_table_loads_and_its_cells_resolve(name: str) -> None:
    found = load(name)
    folders = set()
    for row, column, settings in cells(name):
        folders.add(settings.folder)
        fold = "" if found.folds is None else f"fold-{found.folds.values[0]}"
        assert settings.folder == Path("runs").resolve() / name / row / column / fold / "seed-0"
        assert "root" in settings.data
        assert settings.plan.epochs >= (10 if name in PICTURES or column.endswith("-5k") else 50)
    assert len(folders) == len(found.rows) * len(found.columns)
    assert any(found.published.values()) == (name not in PICTURES)
    assert found.tolerance == (2.0 if name.startswith("table-7") else 1.0)
    keys = {(row, column, metric) for row in (*found.rows, *found.not_ours) for column in found.columns
            for metric in found.columns[column].metrics}  # fmt: skip
    assert set(found.published) == keys
    own = {json.dumps([config.essential(one), one.run.start_from], sort_keys=True) for _, _, one in cells(name)}
    assert len(own) == len(folders), "two cells are the same run"


@pytest.mark.parametrize("name", NAMES)
def test_a_table_names_only_what_exists(name: str) -> None:
    for row, column, settings in cells(name):
        where = f"{name} {row} {column}"
        data = dict(settings.data)
        subset = data.pop("subset", None)
        registry.check(DATASETS, data, f"{where}: data", ("split",))
        if subset is not None:
            registry.check(SUBSETS, subset, f"{where}: data.subset", SUBSET_GIVEN)
        registry.check(VIEWS, settings.views, f"{where}: views", tuple(VIEWS_GIVEN))
        check_method(settings.method, f"{where}: method")
        for leaf in settings.evaluate.protocols:
            registry.check(EVALUATORS, leaf, f"{where}: evaluate.protocols")
        for metric in load(name).columns[column].metrics.values():
            assert metric.evaluator["name"] in (*EVALUATORS, *table.BESIDE), where


def check_method(leaf: Mapping[str, Any], where: str) -> None:
    """The method's leaf and the leaves inside it."""
    registry.check(METHODS, leaf, where)
    heads = (PROTOTYPE_HEADS, ()) if leaf["name"] == "cowpro" else (HEADS, ("in_dim",))
    inner = {"encoder": (ENCODERS, ("channels",)), "head": heads, "predictor": (HEADS, ("in_dim",))}
    for key, (known, given) in inner.items():
        if key in leaf:
            registry.check(known, leaf[key], f"{where}.{key}", given)
    for loss in [leaf["loss"], *leaf["loss"].get("terms", ())] if "loss" in leaf else ():
        registry.check(LOSSES, loss, f"{where}.loss")
        if isinstance(loss.get("temperature"), Mapping):
            registry.check(TEMPERATURES, loss["temperature"], f"{where}.loss.temperature")


def distinct(key: str) -> dict[str, tuple[str, Config]]:
    """One cell for each distinct leaf of the section ``key`` (the method's with its optimiser)."""
    found: dict[str, tuple[str, Config]] = {}
    for where, settings in every_cell():
        tree = config.to_tree(settings)
        found.setdefault(json.dumps([tree[key], tree["optim"] if key == "method" else None]), (where, settings))
    return found


def test_every_method_and_its_optimiser_can_be_built() -> None:
    """On the meta device: shapes without numbers, so that a ResNet-50 costs nothing."""
    cases = distinct("method")
    assert len({where.split()[1] for where, _ in cases.values()}) > 30
    for where, settings in cases.values():
        classes = {"classes": 4} if isinstance(settings.method.get("class_weights"), list | tuple) else {}
        # A weighted sum looks at its weights as tensors, which have no values on the meta device.
        with torch.device("cpu" if "terms" in settings.method.get("loss", {}) else "meta"):
            method = registry.build(METHODS, {**settings.method, **classes}, where)
        encoder = settings.method["encoder"]
        if encoder["name"] == "se_net":
            assert method.encoder.feature_dim == encoder["segmenter"], where
        else:
            features = 2048 if encoder["depth"] == 50 else 8 * encoder.get("width", 64)
            assert method.encoder.feature_dim == encoder.get("out", features), where
        plan = settings.plan
        built = optim.build(settings.optim, method, batch_size=plan.batch_size, epochs=plan.epochs, per_epoch=10)
        assert built.learning_rate(10 * plan.epochs // 2) > 0, where


def test_all_views_can_be_built_and_give_what_the_method_takes() -> None:
    for where, settings in distinct("views").values():
        given = VIEWS_GIVEN if settings.views["name"] != "episode" else {"channels": 1, "value_range": (0.0, 1.0)}
        views = registry.build(VIEWS, settings.views, where, **given)
        side = 36
        images = torch.arange(2 * 3 * side * side).view(2, 3, side, side).to(torch.uint8)
        batch = {"images": images, "index": torch.arange(2), "draw": torch.zeros(2, dtype=torch.int64)}
        if settings.views["name"] == "episode":
            side = settings.views["size"]
            batch["images"], batch["mask"] = torch.rand(2, 1, side, side), torch.ones(2, side, side, dtype=torch.uint8)
            made = views(batch, seed=0, epoch=0)
            assert made["query"].shape == made["support"].shape == (2, 1, side, side), where
            continue
        made = views(batch, seed=0, epoch=0)
        wanted = 1 if settings.method["name"] == "classify" else 2
        assert [key for key in made if key.startswith("views_")] == [f"views_{i}" for i in range(wanted)], where
        assert all(made[f"views_{i}"].shape[-1] == settings.views["size"] for i in range(wanted)), where


def test_every_loss_accepts_its_batch_and_its_head() -> None:
    """W-MSE wants twice as many samples as dimensions; at most 256 dimensions, for time."""
    done = set()
    for where, settings in every_cell():
        if "loss" not in settings.method:
            continue
        loss, shape = settings.method["loss"], (settings.plan.batch_size, min(settings.method["head"]["out"], 256))
        if (key := (json.dumps(config.plain(loss)), shape)) in done:
            continue
        done.add(key)
        generator = torch.Generator().manual_seed(1)
        z0, z1 = torch.randn(2, *shape, generator=generator)
        value = registry.build(LOSSES, loss, where)(z0, z1)
        assert value.ndim == 0 and bool(value.isfinite()), where
    assert {json.loads(loss)["name"] for loss, _ in done} >= {"nt_xent", "dcl", "macl", "mio_v3", "wmse", "sum", "arb"}


def test_what_a_table_starts_from_is_a_cell_of_another_of_the_same_encoder() -> None:
    starting = [name for name in NAMES if load(name).start_from]
    assert starting == ["table-5.6", "table-5.7", "table-6.11", "table-6.12"]
    for name in starting:
        assert set(load(name).start_from) == set(load(name).rows)
        for row, column, settings in cells(name):
            other, start_row, start_column = load(name).start_from[row].split("/")
            source = load(other).settings(start_row, start_column)
            assert settings.run.start_from == f"runs/{other}/{start_row}/{start_column}/seed-0"
            assert source.method["encoder"] == settings.method["encoder"], (name, row, column)
            assert list(source.views["mean"]) == list(settings.views["mean"])


def test_the_ranges_that_the_thesis_contradicts_itself_with_are_printed_whole() -> None:
    both = {
        ("table-5.2", "SimCLR", "CIFAR-10"): {81.23, 83.65},
        ("table-6.1", "SimCLR", "CIFAR-10"): {81.23, 83.65},
        ("table-5.2", "MIOv3", "CIFAR-10"): {86.36, 86.28},
        ("table-5.10", "MIOv3", "CIFAR-100@128"): {58.18, 56.97, 58.2},
        ("table-5.8", "MIOv3@0.2", "STL-10"): {80.50, 75.83},
        ("table-6.13", "Cosine", "CIFAR-10"): {85.68, 85.85},
        ("table-5.9", "DCL", "CIFAR-100@200"): {54.24, 56.02},
        ("table-6.11", "SimCLR", "ISIC2016"): {84.70, 85.49},
    }
    for (name, row, column), values in both.items():
        assert set(load(name).published[row, column, "accuracy"]) == values


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"titel": "x"},
            "titel: unknown key; allowed: title, base, metric, rows, columns, published, tolerance, note,",
        ),
        ({"title": 3}, "title: expected text, got 3; write it in quotes"),
        ({"tolerance": 0}, "tolerance: expected a number > 0, got 0"),
        ({"rows": {"a b": {}}}, "rows: 'a b': expected a name of letters, digits and"),
        ({"rows": {"a": 3}}, "rows.a: expected overrides such as plan.epochs: 3, got 3"),
        ({"metric": {"evaluator": "knn"}}, "columns.c.metric.None: expected {evaluator, name, percent}"),
        ({"metric": None}, "columns.c.metric: expected {evaluator, name, percent} or several by name, got None"),
        ({"published": {"a": {"c": 101}}}, "published.a.c.accuracy: expected per cent, 0 to 100, got 101"),
        ({"published": {"a": {"c": "x"}}}, "published.a.c.accuracy: expected float, got 'x'"),
        ({"published": {"b": {"c": 1}}}, "published: expected exactly a, got b"),
        ({"published": {"a": {"c": 1, "d": 1}}}, "published.a: expected exactly c, got c, d"),
        ({"not_ours": {"a": "x"}}, "not_ours.a: expected a row not in rows"),
        ({"start_from": {"b": "x"}}, "start_from.b: expected a name of rows"),
        ({"quoted": {"a": {"d": "x"}}}, "quoted.a.d: there is no such cell"),
        ({"cells": {"b": {"c": {}}}}, "cells.b.c: there is no such cell"),
        ({"folds": [1]}, "folds: expected one key with its values, such as data.fold: [0, 1], got [1]"),
        ({"folds": {"data.fold": [0, 0]}}, "folds.data.fold: expected different integers, at least one, got [0, 0]"),
        ({"measured": {"b": {"k": 3}}}, "measured.b: expected a name of rows"),
        ({"means": {"b": 1.0}}, "means: expected exactly a, got b"),
    ],
)
def test_mistakes_in_a_table_are_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    tree = {
        "title": "t", "base": "b.yaml", "metric": {"evaluator": "knn", "name": "accuracy"}, "rows": {"a": {}},
        "columns": {"c": {}}, "published": {"a": {"c": None}}, "tolerance": 1,
    }  # fmt: skip
    path = tmp_path / "table-1.yaml"
    path.write_text(json.dumps(tree))
    assert read_table.load(path).published == {("a", "c", "accuracy"): ()}
    path.write_text(json.dumps({**tree, **changes}))
    with pytest.raises(ValueError) as caught:
        read_table.load(path)
    assert str(caught.value).startswith(f"{path}: {message}") and "\n" not in str(caught.value)


def test_a_base_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "table-1.yaml"
    path.write_text((FOLDER / "table-5.2.yaml").read_text())
    with pytest.raises(ValueError, match=r"columns.CIFAR-10: base: .*base/small.yaml: no such recipe"):
        read_table.load(path).settings("SimCLR", "CIFAR-10")


def test_a_row_that_names_another_method_keeps_what_the_column_says_of_it(tmp_path: Path) -> None:
    found = load("table-5.2").settings("BYOL", "STL-10")
    assert found.method["encoder"] == {"name": "resnet", "depth": 18, "stem": "imagenet", "width": 64}
    assert found.optim["lr"] == 0.0075 and found.views["size"] == 96
    assert "loss" not in found.method and "loss" in inspect.signature(METHODS["contrastive"]).parameters
    given = load("table-5.2").settings(
        "SimCLR", "CIFAR-10", ["plan.epochs=2", "run.dir=elsewhere", "run.seed=4"], "here"
    )
    assert given.plan.epochs == 2 and given.data["root"] == "here"
    assert given.folder == Path("elsewhere/table-5.2/SimCLR/CIFAR-10/seed-4").resolve()
