"""The figures that a site may give of its own held-out part: a closed form of numbers, read strictly at both ends.

A figure is one measure of one arm by one protocol. It travels as a list of eight plain values:

    [arm, protocol, metric, value, low, high, samples, patients]

``arm`` and ``metric`` come from the tables below, ``protocol`` is a place in the run's own list ``evaluate.protocols``.
So a figure holds no text that a site could have written. ``value``, ``low`` and ``high`` are finite numbers, or null
where a measure is undefined or has no interval; notes, and names of classes, stay at the site.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from sslmed_dist.config import Config
from sslmed_dist.downstream import FLOORS, Row
from sslmed_dist.downstream.metrics import Score
from sslmed_dist.downstream.predictions import Predictions, measure
from sslmed_dist.federation.messages import HEALTH, Unreadable, field, only
from sslmed_dist.training.build import build_evaluators

FEDERATED, BEST = "federated", "best_round"
ARMS = (*FLOORS, "random", "local", FEDERATED)  # those that a site can measure alone; pooled data it has not
# All measures of these evaluators but those of single labels, whose names are the data's.
METRICS = (
    *("accuracy", "balanced_accuracy", "auc", "top5"),
    *("uniformity", "inter_class_uniformity", "tolerance"),
)
MOST = 256  # figures of one answer
MOST_PROTOCOLS = 32
MOST_SAMPLES = 1 << 40
MOST_TEXT = 1 << 17  # letters of all figures of one answer


@dataclass(frozen=True)
class Figure:
    """One measure of one arm: where it comes from, its value and interval, on how many samples of how many patients."""

    arm: str
    protocol: int
    metric: str
    value: float | None
    low: float | None
    high: float | None
    samples: int
    patients: int

    def to_list(self) -> list[Any]:
        """As it travels."""
        return list(astuple(self))

    @classmethod
    def from_list(cls, values: Any) -> "Figure":
        """What ``to_list`` gave. ``ValueError`` for anything else."""
        if not isinstance(values, (list, tuple)) or len(values) != 8:
            raise ValueError("a figure has not its eight values")
        arm, protocol, metric, *numbers, samples, patients = values
        if arm not in ARMS or metric not in METRICS:
            raise ValueError("a figure has an unknown arm or metric")
        if not all(number is None or (type(number) is float and math.isfinite(number)) for number in numbers):
            raise ValueError("a figure's value or interval is no finite number")
        if (numbers[1] is None) != (numbers[2] is None) or (numbers[0] is None and numbers[1] is not None):
            raise ValueError("a figure has half an interval, or one without a value")
        whole = all(type(number) is int for number in (protocol, samples, patients))
        if not (whole and 0 <= protocol < MOST_PROTOCOLS and 1 <= patients <= samples <= MOST_SAMPLES):
            raise ValueError("a figure's protocol or counts are no whole numbers that can be")
        value, low, high = numbers
        return cls(arm, protocol, metric, value, low, high, samples, patients)


def read(values: Any) -> list[Figure]:
    """The figures of a message. ``ValueError`` for none, too many, one that is none, or the same measure twice."""
    if not isinstance(values, list) or not 1 <= len(values) <= MOST:
        raise ValueError(f"expected 1 to {MOST} figures")
    figures = [Figure.from_list(item) for item in values]
    if len({(figure.arm, figure.protocol, figure.metric) for figure in figures}) < len(figures):
        raise ValueError("a figure comes twice")
    return figures


def are_figures(value: Any) -> bool:
    """Whether a field of a message holds figures."""
    try:
        return bool(read(value))
    except ValueError:
        return False


@dataclass(frozen=True)
class Told:
    """What a site answers to "evaluate": its name, after how many rounds, the digest of the tensors that it measured,
    the figures, and the health of that encoder (``federation.health``) as far as it may be told."""

    site: str
    round: int
    model: str
    figures: Sequence[Figure]
    scalars: Mapping[str, float]

    def to_record(self) -> dict[str, Any]:
        """As one record of plain values; the figures are JSON."""
        tree = {"figures": [figure.to_list() for figure in self.figures], "scalars": dict(self.scalars)}
        return {"site": self.site, "round": self.round, "model": self.model, "told": json.dumps(tree)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Told":
        """What ``to_record`` wrote. ``Unreadable`` for anything else."""
        only(record, ("site", "round", "model", "told"), "the record of figures")
        site, number, model = field(record, "site", str), field(record, "round", int), field(record, "model", str)
        try:
            tree = json.loads(str(record["told"])[:MOST_TEXT])
            only(tree, ("figures", "scalars"), "what is told")
            return cls(site, number, model, read(tree["figures"]), health_in(tree["scalars"]))
        except (ValueError, TypeError, RecursionError) as error:
            raise Unreadable(f"its figures are not of the closed form ({type(error).__name__})") from None


def health_in(values: Any) -> dict[str, float]:
    """The scalars beside figures. ``ValueError`` for names other than those of ``health`` and for infinite numbers."""
    if not isinstance(values, Mapping) or not set(values) <= set(HEALTH):
        raise ValueError("scalars of unknown names")
    if not all(type(value) is float and math.isfinite(value) for value in values.values()):
        raise ValueError("a scalar is no finite number")
    return dict(values)


def figures_of(predictions: Mapping[str, Predictions], arm: str, settings: Config) -> list[Figure]:
    """The figures of one arm from its predictions by the protocols' titles, with bootstrap intervals over the site's
    own patients. Measures that are not in ``METRICS`` are left out."""
    titles, seed = list(build_evaluators(settings)), settings.run.seed
    scores = [(titles.index(title), score) for title, of in predictions.items() for score in measure(of, "", seed=seed)]
    return [
        Figure(arm, place, s.metric, s.value, s.low, s.high, s.n, s.groups)
        for place, s in scores
        if s.metric in METRICS
    ]


def rows_at(site: str, figures: Sequence[Figure], settings: Config) -> list[Row]:
    """The rows of a results file. ``ValueError`` for a protocol that the run does not have."""
    titles = list(build_evaluators(settings))
    rows = []
    for figure in figures:
        if figure.protocol >= len(titles):
            raise ValueError("a figure is of a protocol that the run does not have")
        note = "" if figure.low is not None else "no interval" if figure.value is not None else "undefined at this site"
        numbers = (figure.value, figure.low, figure.high, figure.samples, figure.patients)
        rows.append(Row(figure.arm, site, Score(titles[figure.protocol], figure.metric, *numbers, note)))
    return rows
