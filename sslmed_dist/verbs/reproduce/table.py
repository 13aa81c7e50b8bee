"""A published table as a recipe: rows and columns are overrides of a base recipe, and beside them stand the figures.

A cell is ``base + column + row`` (dotted or nested overrides). Where column and row set the same key, the row's value
counts. Where the row names another constructor for a leaf (another method, say), what the column says of that leaf (the
encoder's stem) still holds. A cell with a section ``federated`` is a federation, and its figures are over the held-out
samples of all sites. No torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sslmed_dist import config
from sslmed_dist.arguments import Leaf
from sslmed_dist.sections import Config
from sslmed_dist.verbs.reproduce.claims import Claim

Tree = dict[str, Any]

DECIDED = ("run.name", "evaluate.protocols", "run.start_from")  # keys that the table decides, never an override
# What a metric may name beside EVALUATORS: a fine-tuned classifier's own predictions, the alignment of two views, what
# sslmed diagnose measured (of the arm ``arm``: ensemble by default), what a pretext's validation said in training,
# and the spectrum of the loss, with the arguments of sslmed analyse RUN hessian.
BESIDE = ("classifier", "similarity", "diagnosis", "pretext", "hessian")
PLANE = "{plane}"  # in ``start_from``: the plane of each part of a diagnosis


@dataclass(frozen=True)
class Metric:
    """One figure of an evaluation: the measure ``name`` (``accuracy``, ``top5``) of ``evaluator``, a leaf of EVALUATORS
    or of ``BESIDE``. ``percent``: it is a fraction and printed times 100, as in the thesis."""

    evaluator: Leaf
    name: str
    percent: bool = True


@dataclass(frozen=True)
class Column:
    """What a column changes, the base recipe it starts from, and its metrics by name."""

    base: Path
    overrides: Mapping[str, Any]
    metrics: Mapping[str, Metric]

    @cached_property
    def recipe(self) -> Tree:
        """The base recipe as a tree, read once for all rows, folds and seeds. ``config.merge`` leaves it as it is."""
        return config.read(self.base)


@dataclass(frozen=True)
class Folds:
    """Cross-validation: the key of the configuration that says the fold (``data.fold``), and its values."""

    key: str
    values: tuple[int, ...]


@dataclass(frozen=True)
class Table:
    """One published table or sweep.

    ``published``    every (row, column, metric): all values the thesis gives for that setting, this table's own first,
                     or none
    ``quoted``       of (row, column): from whom the thesis took the figure
    ``not_ours``     rows that are printed and never run, and why
    ``start_from``   per row the cell ``TABLE/ROW/COLUMN`` whose encoder is fine-tuned. ``{plane}`` in it is the plane
                     of each part of a diagnosis
    ``cells``        what a single cell (row, column) changes beyond its row and column
    ``folds``        a cell is not one training but one for each of them, and its figure their mean
    ``means``        per row the published mean over all of its figures; where there are any, every row gets such a line
    ``measured``     what a row changes of every metric's evaluator
    ``tolerance``    in the figures' unit (points of per cent)
    ``ours``         in words what we measured, and under which conditions
    ``message``      of a figure: what the published picture says, in a sentence. A table without one is not drawn
    ``claims``       the message as statements that figures decide
    ``draw``         how the picture is drawn, a leaf of ``drawing.DRAWINGS``
    """

    path: Path
    title: str
    rows: Mapping[str, Mapping[str, Any]]
    columns: Mapping[str, Column]
    published: Mapping[tuple[str, str, str], tuple[float, ...]]
    tolerance: float
    note: str = ""
    ours: str = ""
    quoted: Mapping[tuple[str, str], str] = field(default_factory=dict)
    not_ours: Mapping[str, str] = field(default_factory=dict)
    start_from: Mapping[str, str] = field(default_factory=dict)
    cells: Mapping[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)
    folds: Folds | None = None
    means: Mapping[str, float | None] = field(default_factory=dict)
    measured: Mapping[str, Leaf] = field(default_factory=dict)
    message: str = ""
    claims: tuple[Claim, ...] = ()
    draw: Leaf = field(default_factory=lambda: {"name": "by_row"})

    @property
    def name(self) -> str:
        """``table-5.2``: the file's stem, and the folder of its runs."""
        return self.path.stem

    @property
    def decided(self) -> tuple[str, ...]:
        """Keys that no override may touch."""
        return DECIDED if self.folds is None else (*DECIDED, self.folds.key)

    def metrics(self, row: str, column: str) -> dict[str, Metric]:
        """The column's metrics by name, their evaluators changed as ``measured`` says of the row."""
        changes, metrics = self.measured.get(row, {}), self.columns[column].metrics
        return {name: replace(metric, evaluator={**metric.evaluator, **changes}) for name, metric in metrics.items()}

    def folder(self, row: str, column: str) -> str:
        """The cell's folder below ``run.dir``."""
        return f"{self.name}/{row}/{column}"

    def settings(
        self, row: str, column: str, overrides: Sequence[str] = (), root: str | None = None, fold: int | None = None
    ) -> Config:
        """The cell's configuration at its first seed: run folder ``run.dir``/TABLE/ROW/COLUMN/[fold-K/]seed-N.

        ``overrides`` are laid over the cell. ``root`` is the path of its dataset. ``fold`` is one of ``folds``; default
        is the first, where the table has folds. ``ValueError`` names the cell and the key, also for an override of a
        key that the table itself decides.
        """
        where = f"{self.path}: cell {row}/{column}"
        definition = self.columns[column]
        if not definition.base.is_file():
            raise ValueError(f"{self.path}: columns.{column}: base: {definition.base}: no such recipe")
        tree = definition.recipe
        data_path = {"data": {"root": root}} if root else {}
        folder = self.folder(row, column)
        if self.folds is not None:
            fold = self.folds.values[0] if fold is None else fold
            tree = config.merge(tree, config.parse_override(f"{self.folds.key}={fold}"))
            folder += f"/fold-{fold}"
        # The row comes twice: first so that the column meets the row's constructors, then so that its values count.
        cell_changes = self.cells.get((row, column), {})
        for above in (self.rows[row], definition.overrides, self.rows[row], cell_changes, data_path):
            tree = config.merge(tree, above)
        for override in overrides:
            if override.partition("=")[0] in self.decided:
                raise ValueError(f"override {override!r}: the table decides {', '.join(self.decided)}")
            tree = config.merge(tree, config.parse_override(override))
        protocols = [dict(leaf) for leaf in unique(metric.evaluator for metric in self.metrics(row, column).values())]
        protocols = [leaf for leaf in protocols if leaf["name"] not in BESIDE]
        settings = config.from_tree(config.merge(tree, {"evaluate": {"protocols": protocols}}), where)
        runs_folder, seed_name = settings.run.dir, f"seed-{settings.run.seed}"
        changes: dict[str, Any] = {"run": {"dir": f"{runs_folder}/{folder}", "name": seed_name}}
        if row in self.start_from:
            changes = config.merge(changes, started(settings, f"{runs_folder}/{self.start_from[row]}/{seed_name}"))
        return config.replace(settings, **changes)


def started(settings: Config, start: str) -> Tree:
    """The overrides by which a run, or every part of a diagnosis, starts from the run folder ``start``."""
    plane = str(settings.data.get("plane", ""))
    if settings.diagnose is None or not settings.diagnose.parts:
        return {"run": {"start_from": start.replace(PLANE, plane)}}
    parts = {}
    for name, part in settings.diagnose.parts.items():
        own = str(part.get("data", {}).get("plane", plane))
        parts[name] = {"run": {"start_from": start.replace(PLANE, own)}}
    return {"diagnose": {"parts": parts}}


def unique(leaves: Iterator[Leaf]) -> list[Leaf]:
    """Each leaf once, in order."""
    distinct: list[Leaf] = []
    for leaf in leaves:
        if leaf not in distinct:
            distinct.append(leaf)
    return distinct
