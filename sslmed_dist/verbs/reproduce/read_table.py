"""Reading a table's file strictly, and finding it by name. No torch."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from sslmed_dist import config, installation, plain_yaml, registry
from sslmed_dist.verbs.reproduce import claims
from sslmed_dist.verbs.reproduce.table import Column, Folds, Metric, Table, Tree

# Names of rows and columns are folder names and words of a command line (where "=" makes an override).
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_@-]*")
FOLDER = Path("configs") / "thesis"
FIGURE = ("message", "claims", "draw")  # keys of a table that is a figure


def find(text: str) -> Path:
    """The file of ``table-5.2`` (in configs/thesis here or among those that come with the program), or the path
    ``text`` itself. ``ValueError`` lists the tables there are."""
    path = Path(text)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ValueError(f"{text}: no such table file")
        return path
    folders = [folder for folder in (FOLDER, installation.root() / FOLDER) if folder.is_dir()]
    for folder in folders:
        if (folder / f"{text}.yaml").is_file():
            return folder / f"{text}.yaml"
    if not folders:
        raise ValueError(f"table {text!r}: there is no folder {FOLDER} here; give a .yaml path")
    raise ValueError(f"table {text!r}: not in {folders[0]}; allowed: a .yaml path, {', '.join(known(folders[0]))}")


def shipped() -> list[str]:
    """The names of the tables that come with the program."""
    return known(installation.root() / FOLDER)


def known(folder: Path) -> list[str]:
    """The names of the tables in a folder."""
    return sorted((file.stem for file in folder.glob("*.yaml")), key=natural)


def natural(text: str) -> list[tuple[int, str]]:
    """Sort key in which table-5.10 comes after table-5.9."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]


def load(path: Path) -> Table:
    """Read the file of a table strictly. ``ValueError`` is one line: file, key, what is allowed."""
    tree = plain_yaml.read(path)
    require_keys(path, tree)
    tree.setdefault("tolerance", 1.0)
    expect(path, "title", tree["title"], str)
    expect(path, "tolerance", tree["tolerance"], float)
    for key in ("note", "ours", "message"):
        expect(path, key, tree.get(key, ""), str)
    if not tree["tolerance"] > 0:
        raise ValueError(f"{path}: tolerance: expected a number > 0, got {tree['tolerance']}")
    rows = {name: nested(path, f"rows.{name}", value) for name, value in named(path, "rows", tree["rows"]).items()}
    named(path, "not_ours", tree.get("not_ours", {}))
    measured = tree.get("measured", {})
    table = Table(
        path=path,
        title=tree["title"],
        rows=rows,
        columns=columns_of(path, tree),
        published={},
        tolerance=float(tree["tolerance"]),
        note=" ".join(tree.get("note", "").split()),
        ours=" ".join(tree.get("ours", "").split()),
        not_ours=texts(path, "not_ours", tree.get("not_ours", {})),
        start_from=texts(path, "start_from", tree.get("start_from", {})),
        folds=folds_of(path, tree.get("folds")),
        means=means_of(path, tree.get("means", {})),
        measured={row: nested(path, f"measured.{row}", it) for row, it in named(path, "measured", measured).items()},
    )
    # A row is run or it is not ours, never both; what is said of single rows must be said of rows that are run.
    in_both = [name for name in table.not_ours if name in rows]
    by_row = {"start_from": table.start_from, "measured": table.measured}
    unknown = [(key, name) for key, mapping in by_row.items() for name in mapping if name not in rows]
    for key, name in [*(("not_ours", name) for name in in_both), *unknown]:
        raise ValueError(f"{path}: {key}.{name}: expected {'a row not in rows' if in_both else 'a name of rows'}")
    if table.means:
        complete(path, "means", table.means, (*rows, *table.not_ours))
    quoted = {key: expect(path, "quoted", text, str) for key, text in by_cell(table, tree, "quoted").items()}
    cells = {key: nested(path, f"cells.{key[0]}", value) for key, value in by_cell(table, tree, "cells").items()}
    table = dataclasses.replace(table, quoted=quoted, cells=cells, **figure_of(table, tree))
    return dataclasses.replace(table, published=published_of(table, tree.get("published")))


def figure_of(table: Table, tree: Tree) -> Tree:
    """The keys of a figure: its message, its claims and how it is drawn; nothing of a table that is none."""
    if not any(key in tree for key in FIGURE):
        return {}
    metrics = {name: tuple(column.metrics) for name, column in table.columns.items()}
    for key in ("message", "claims"):
        if not tree.get(key):
            raise ValueError(f"{table.path}: {key}: missing; a figure has {', '.join(FIGURE)} (draw may be left out)")
    claimed = claims.read(table.path, tree["claims"], metrics, tuple(table.rows))
    return {"message": " ".join(tree["message"].split()), "claims": claimed, "draw": tree.get("draw", table.draw)}


def require_keys(path: Path, tree: Any) -> None:
    """``ValueError`` unless the file is a mapping with the keys of a table: those that are required, and no other."""
    keys = ("title", "base", "metric", "rows", "columns", "published", "tolerance")
    allowed = (
        *keys,
        "note",
        "ours",
        "quoted",
        "not_ours",
        "start_from",
        "cells",
        "folds",
        "means",
        "measured",
        *FIGURE,
    )
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: expected the keys {', '.join(keys)}, got {type(tree).__name__}")
    for key in tree:
        if key not in allowed:
            raise ValueError(f"{path}: {key}: unknown key; allowed: {', '.join(allowed)}")
    # A table of our own has nothing published to stand beside, nor a tolerance; columns may have metrics of their own.
    optional = ("metric",) if "published" in tree else ("metric", "published", "tolerance")
    for key in keys:
        if key not in tree and key not in optional:
            raise ValueError(f"{path}: {key}: missing; it is required")


def expect(path: Path, key: str, value: Any, kind: Any) -> Any:
    """``value`` if it is of ``kind`` (as ``registry.matches`` sees it), else ``ValueError``."""
    registry.require_match(f"{path}: {key}", value, kind)
    return value


def named(path: Path, key: str, value: Any) -> dict[str, Any]:
    """``value`` if it is a mapping whose keys can be folder names, else ``ValueError``."""
    if not isinstance(value, dict):
        raise ValueError(f"{path}: {key}: expected a mapping of names, got {value!r}")
    for name in value:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ValueError(f"{path}: {key}: {name!r}: expected a name of letters, digits and . + _ @ -")
    return value


def texts(path: Path, key: str, value: Any) -> dict[str, str]:
    """``value`` if it is a mapping of names to texts, else ``ValueError``."""
    return {name: expect(path, f"{key}.{name}", text, str) for name, text in named(path, key, value).items()}


def nested(path: Path, key: str, overrides: Any) -> Tree:
    """Overrides with their dotted keys unfolded: ``{plan.epochs: 3}`` is ``{plan: {epochs: 3}}``."""
    if overrides is None:
        return {}
    if not isinstance(overrides, dict):
        raise ValueError(f"{path}: {key}: expected overrides such as plan.epochs: 3, got {overrides!r}")
    tree: Tree = {}
    for dotted, value in overrides.items():
        for part in reversed(str(dotted).split(".")):  # from the inside out
            value = {part: value}
        tree = config.merge(tree, value)
    return tree


def folds_of(path: Path, value: Any) -> Folds | None:
    """The folds from ``{data.fold: [0, 1, 2]}``: one key of the configuration and its values. None without them."""
    if value is None:
        return None
    if not isinstance(value, dict) or len(value) != 1 or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{path}: folds: expected one key with its values, such as data.fold: [0, 1], got {value!r}")
    key, values = next(iter(value.items()))
    expect(path, f"folds.{key}", values, list[int])
    if not values or len(set(values)) < len(values):
        raise ValueError(f"{path}: folds.{key}: expected different integers, at least one, got {values}")
    return Folds(key, tuple(values))


def means_of(path: Path, value: Any) -> dict[str, float | None]:
    """For each row the published mean over its figures, or None where the file says null."""
    by_row = named(path, "means", value)
    return {row: None if it is None else float(expect(path, f"means.{row}", it, float)) for row, it in by_row.items()}


def columns_of(path: Path, tree: Tree) -> dict[str, Column]:
    """The columns by name. A column's own ``base`` and ``metric`` replace those of the table."""
    columns = {}
    for name, value in named(path, "columns", tree["columns"]).items():
        overrides = nested(path, f"columns.{name}", value)
        recipe = expect(path, f"columns.{name}.base", overrides.pop("base", tree["base"]), str)
        metric = overrides.pop("metric", tree.get("metric"))
        columns[name] = Column(path.parent / recipe, overrides, metrics_of(path, f"columns.{name}.metric", metric))
    return columns


def metrics_of(path: Path, key: str, value: Any) -> dict[str, Metric]:
    """Metrics by name, from a single metric ``{evaluator, name, percent}`` or from several by name."""
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{path}: {key}: expected {{evaluator, name, percent}} or several by name, got {value!r}")
    by_name = value if not {"evaluator", "name"} & value.keys() else {str(value.get("name")): value}
    metrics = {}
    for name, leaf in named(path, key, by_name).items():
        if not isinstance(leaf, dict) or not {"evaluator", "name"} <= leaf.keys() <= {"evaluator", "name", "percent"}:
            raise ValueError(f"{path}: {key}.{name}: expected {{evaluator, name, percent}}, got {leaf!r}")
        evaluator = leaf["evaluator"] if isinstance(leaf["evaluator"], dict) else {"name": leaf["evaluator"]}
        expect(path, f"{key}.{name}.percent", leaf.get("percent", True), bool)
        metrics[name] = Metric(evaluator, str(leaf["name"]), leaf.get("percent", True))
    return metrics


def published_of(table: Table, tree: Any) -> dict[tuple[str, str, str], tuple[float, ...]]:
    """The published figures by (row, column, metric). In the file every one has a value, a list of values, or null;
    without the key ``published`` (``tree`` None) no figure has a value."""
    rows = (*table.rows, *table.not_ours)
    if tree is None:
        return {(row, name, metric): () for row in rows for name, c in table.columns.items() for metric in c.metrics}
    complete(table.path, "published", tree, rows)
    figures = {}
    for row in rows:
        complete(table.path, f"published.{row}", tree[row], table.columns)
        for name, column in table.columns.items():
            key, value = f"published.{row}.{name}", tree[row][name]
            # The only metric of a column, and null for all of them, may be given without the metric's name.
            if not isinstance(value, dict) and (len(column.metrics) == 1 or value is None):
                value = dict.fromkeys(column.metrics, value)
            complete(table.path, key, value, column.metrics)
            for metric, definition in column.metrics.items():
                numbers = value[metric] if isinstance(value[metric], list) else [value[metric]]
                numbers = [number for number in numbers if number is not None]
                where = f"{key}.{metric}"
                figures[row, name, metric] = tuple(figure(table.path, where, it, definition.percent) for it in numbers)
    return figures


def complete(path: Path, key: str, tree: Any, names: Any) -> None:
    """``ValueError`` unless ``tree`` is a mapping with exactly ``names``."""
    if not isinstance(tree, dict) or set(tree) != set(names):
        got = ", ".join(map(str, tree)) if isinstance(tree, dict) else repr(tree)
        raise ValueError(f"{path}: {key}: expected exactly {', '.join(names)}, got {got}")


def figure(path: Path, key: str, number: Any, percent: bool) -> float:
    """A published figure. ``ValueError`` for what is no number, and for per cent outside 0 ... 100."""
    expect(path, key, number, float)
    if percent and not 0 <= number <= 100:
        raise ValueError(f"{path}: {key}: expected per cent, 0 to 100, got {number}")
    return float(number)


def by_cell(table: Table, tree: Tree, key: str) -> dict[tuple[str, str], Any]:
    """What ``tree[key]`` says of each cell, by (row, column). A text in place of a row's columns holds for all of
    them."""
    cells = {}
    for row, value in named(table.path, key, tree.get(key, {})).items():
        by_column = dict.fromkeys(table.columns, value) if isinstance(value, str) else value
        for column, content in named(table.path, f"{key}.{row}", by_column).items():
            if row not in (*table.rows, *table.not_ours) or column not in table.columns:
                raise ValueError(f"{table.path}: {key}.{row}.{column}: there is no such cell")
            cells[row, column] = content
    return cells
