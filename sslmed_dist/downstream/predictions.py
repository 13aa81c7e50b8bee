"""What an evaluator predicts for the test samples; how predictions are scored, pooled over sites and compared between
arms."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from sslmed_dist.data.dataset import Dataset
from sslmed_dist.downstream import metrics
from sslmed_dist.downstream.coverage import pooled_coverage
from sslmed_dist.downstream.features import SplitFeatures
from sslmed_dist.downstream.metrics import Interval, Score, Statistic


@dataclass(frozen=True)
class Predictions:
    """Scores of an evaluator on N test samples. All tensors are on the CPU (``representation`` alone leaves its scores
    on their device), and none holds pixels.

    ``measures`` says what is measured where ``scores`` are not the scores of classes (see ``representation``). Such
    predictions are not pooled over sites, since the sites' encoders may differ, unless they are ``by_sample``: each row
    was measured by itself (see ``oneshot``), NaN where it has no value. ``cases`` are the rows of a table of single
    cases; there may be any number of them. ``coverage`` says which classes lack samples (``downstream.coverage``).
    """

    scores: Tensor  # (N, C) float64, higher is likelier; for the task ``multi`` C labels
    labels: Tensor  # (N,) int64, or (N, C) float32 for the task ``multi``
    groups: Tensor  # (N,) int64 patients
    index: Tensor  # (N,) int64 sample ids
    task: Literal["single", "multi"]
    classes: tuple[str, ...]
    note: str = ""  # printed beside the scores
    measures: "Callable[[Predictions], Iterator[Measure]] | None" = None
    by_sample: bool = False
    cases: tuple[dict[str, Any], ...] = ()
    coverage: tuple[str, ...] = ()  # printed beside the scores and their differences


@dataclass(frozen=True)
class Measure:
    """One number to be measured."""

    name: str
    statistic: Statistic  # called as ``statistic(scores, labels, weights=...)``, see ``metrics``
    labels: Tensor
    undefined: str = ""  # the reason that is given where it has no value
    no_interval: str = ""  # the reason why no bootstrap is made of it; empty: one is made
    note: str = ""  # printed beside it


@runtime_checkable
class Evaluator(Protocol):
    """Predicts the test split of frozen features; hyper-parameters are chosen on the validation split only.

    ``floor`` names the arm (of ``downstream.FLOORS``) that every encoder must beat by this evaluator's scores.
    """

    floor: str

    def predict(self, splits: SplitFeatures, *, seed: int) -> Predictions:
        """Scores for every test sample."""
        ...

    def __call__(self, splits: SplitFeatures, *, seed: int) -> list[Score]:
        """``measure(predict(splits))``."""
        ...


@runtime_checkable
class Masking(Protocol):
    """An evaluator that leaves missing labels out, so that a sample with some of its labels can be used."""

    masks_missing: bool


@runtime_checkable
class Demanding(Protocol):
    """An evaluator that does not work on every number of samples."""

    def require(self, train: int, val: int) -> None:
        """``ValueError`` where training and validation splits of these sizes are too small."""
        ...


@runtime_checkable
class Segmenting(Protocol):
    """An evaluator that gets the encoder itself, since it needs the feature maps of complete scans (``one_shot``)."""

    floor: str

    def segment(
        self, encoder: nn.Module, dataset: Dataset, positions: Tensor, *, device: torch.device | str, seed: int
    ) -> Predictions:
        """Measures of the segmentation of the test scans, whose slices are at ``positions``."""
        ...


def measure(predictions: Predictions, evaluator: str, *, seed: int, draws: int = 1000) -> list[Score]:
    """Scores with 5-95 % bootstrap intervals over patients.

    Task ``single``: accuracy, balanced accuracy, top-5 (above ten classes), AUC (two classes: of class 1; up to ten:
    mean of one against the rest). Task ``multi``: mean AUC over labels (``auc``), and ``auc/LABEL`` of each.
    Predictions with ``measures`` of their own are measured by those.
    """
    scores = []
    for measured in measures_of(predictions):
        arrays = (predictions.scores, measured.labels)
        value = metrics.point(measured.statistic, arrays)
        if value is None:
            interval = Interval(None, None, measured.undefined or undefined(measured.name, predictions))
        elif measured.no_interval:
            interval = Interval(None, None, measured.no_interval)
        else:
            interval = metrics.bootstrap(measured.statistic, arrays, predictions.groups, draws=draws, seed=seed)
        parts = (interval.note, measured.note, predictions.note, *predictions.coverage)
        note = "; ".join(filter(None, parts))
        scores.append(score(evaluator, measured.name, value, interval, predictions, note))
    return scores


def score(evaluator: str, metric: str, value: float | None, interval: Interval, of: Predictions, note: str) -> Score:
    """A ``Score`` with the numbers of samples and patients of ``of``."""
    groups = len(torch.unique(of.groups))
    return Score(evaluator, metric, value, interval.low, interval.high, len(of.labels), groups, note)


def measures_of(predictions: Predictions) -> Iterator[Measure]:
    """The predictions' own measures, or every one that the task asks for."""
    if predictions.measures is not None:
        yield from predictions.measures(predictions)
        return
    labels, class_count = predictions.labels, predictions.scores.shape[1]
    if predictions.task == "multi":
        yield Measure("auc", metrics.mean_auc, labels)
        for column, name in enumerate(predictions.classes):
            yield Measure(f"auc/{name}", one_label(column), labels)
        return
    yield Measure("accuracy", metrics.accuracy, labels)
    yield Measure("balanced_accuracy", metrics.balanced_accuracy, labels)
    if class_count == 2:
        yield Measure("auc", metrics.binary_auc, labels)
    elif class_count <= 10:
        yield Measure("auc", metrics.macro_auc, labels)
    else:
        yield Measure("top5", metrics.top(5), labels)


def one_label(column: int) -> Statistic:
    """The statistic "AUC of the label ``column``"; scores and labels (N, L) -> (R,)."""

    def area(scores: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
        return metrics.label_auc(scores[:, column], labels[:, column], weights=weights)

    return area


def undefined(metric: str, predictions: Predictions) -> str:
    """Why a measure of classes or labels has no value on these predictions."""
    if not len(predictions.labels):
        return "undefined: no test samples"
    label = metric.partition("/")[2]
    if label:
        values = predictions.labels[:, predictions.classes.index(label)]
        known = values[~values.isnan()]
        return f"undefined: every test sample is {label} = {int(known[0])}" if len(known) else f"undefined: no {label}"
    if predictions.task == "multi":
        return "undefined: no label has both values among the test samples"
    names = [predictions.classes[int(class_number)] for class_number in torch.unique(predictions.labels)]
    return f"undefined: all test samples are of class {', '.join(names)}"


def pool(parts: Sequence[Predictions]) -> Predictions:
    """The predictions of several sites as one set. A patient number means the same patient at every site.
    ``ValueError`` for no predictions, or sites with different classes."""
    if not parts:
        raise ValueError("pool: there are no predictions to pool")
    first = parts[0]
    for part in parts:
        if (part.task, part.classes) != (first.task, first.classes):
            raise ValueError(f"pool: the sites differ in their classes: {part.classes} and {first.classes}")
    notes = list(dict.fromkeys(part.note for part in parts))
    return replace(
        first,
        scores=torch.cat([part.scores for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        groups=torch.cat([part.groups for part in parts]),
        index=torch.cat([part.index for part in parts]),
        note=notes[0] if len(notes) == 1 else "; ".join(filter(None, notes)) if first.by_sample else "",
        cases=tuple(case for part in parts for case in part.cases),
        coverage=pooled_coverage([part.coverage for part in parts]),
    )


def compare(first: Predictions, second: Predictions, evaluator: str, *, seed: int, draws: int = 1000) -> list[Score]:
    """``first`` minus ``second`` in every measure, with the paired 5-95 % interval over patients.

    ``ValueError`` if the two are not predictions of the same samples in the same order.
    """
    same = torch.equal(first.index, second.index) and first.labels.shape == second.labels.shape
    if not same or not torch.allclose(first.labels, second.labels, rtol=0.0, atol=0.0, equal_nan=True):
        raise ValueError(f"{evaluator}: only predictions of the same test samples can be compared")
    if first.by_sample:  # only over the entries for which both have a number
        missing = first.scores.isnan() | second.scores.isnan()
        first, second = (replace(of, scores=of.scores.masked_fill(missing, torch.nan)) for of in (first, second))
    scores = []
    for measured in measures_of(first):
        arrays = (first.scores, second.scores, measured.labels)
        if measured.no_interval:
            value = metrics.point(metrics.gap(measured.statistic), arrays)
            interval = Interval(None, None, measured.no_interval)
        else:
            value, interval = metrics.difference(measured.statistic, *arrays, first.groups, draws=draws, seed=seed)
        remarks = [interval.note, measured.note]
        if value is None:
            remarks = [measured.undefined or undefined(measured.name, first)]
        note = "; ".join(filter(None, [*remarks, *dict.fromkeys(first.coverage + second.coverage)]))
        scores.append(score(evaluator, measured.name, value, interval, first, note))
    return scores
