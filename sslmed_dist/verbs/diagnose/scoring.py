"""From the probabilities of the parts to one answer, its floors, and rows of results."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sslmed_dist.data.dataset import Dataset
from sslmed_dist.data.exams.metadata import MetadataColumns
from sslmed_dist.downstream import ALL_SITES, Row, Score, compared_rows, rows_of
from sslmed_dist.downstream.diagnosis import calibration, ensemble, floors, measures
from sslmed_dist.downstream.diagnosis.inference import ExamScores
from sslmed_dist.downstream.predictions import Predictions
from sslmed_dist.verbs.diagnose.parts import Part, first_of_each

EVALUATOR = "diagnosis"
ENSEMBLE, SCALED, MEAN = "ensemble", "ensemble, calibrated", "plain mean"
MAJORITY, RANDOM, METADATA = "majority answer", "random answer", "metadata only"


@dataclass(frozen=True)
class Exams:
    """N exams of all parts together: ids and groups int64 (N,), labels (N, L) with NaN where missing, and what each
    part says, float64 (P, N, L), NaN where it does not."""

    ids: Tensor
    groups: Tensor
    labels: Tensor
    probabilities: Tensor
    spread: Tensor


@dataclass(frozen=True)
class Combination:
    """How the parts become one answer, learnt on held-out training exams: weights (P, L) and temperatures (L,)."""

    classes: tuple[str, ...]
    accuracies: Tensor
    weights: Tensor
    temperatures: Tensor


def label_names(scores: Sequence[ExamScores]) -> tuple[str, ...]:
    """The labels of all parts, in the order in which they first occur."""
    return tuple(dict.fromkeys(name for part in scores for name in part.labels))


def join(datasets: Sequence[Dataset], positions: Sequence[Tensor], scores: Sequence[ExamScores]) -> Exams:
    """The exams at ``positions`` of the parts' datasets with the parts' ``scores``."""
    classes = label_names(scores)
    ids, first = first_of_each(torch.cat([score.index for score in scores]))
    groups = torch.cat([dataset.groups[own] for dataset, own in zip(datasets, positions, strict=True)])[first]
    labels = torch.full((len(ids), len(classes)), torch.nan)
    answers = torch.full((2, len(scores), len(ids), len(classes)), torch.nan, dtype=torch.float64)
    for part, (dataset, own, score) in enumerate(zip(datasets, positions, scores, strict=True)):
        rows = torch.searchsorted(ids, score.index)
        columns = torch.tensor([classes.index(name) for name in score.labels])
        for kind, values in enumerate((score.probabilities, score.spread)):
            answers[kind, part][rows[:, None], columns] = values
        labels[rows[:, None], columns] = labels_of(dataset, own, score.labels)
    return Exams(ids, groups, labels, answers[0], answers[1])


def labels_of(dataset: Dataset, positions: Tensor, names: Sequence[str]) -> Tensor:
    """The labels ``names`` of exams, float32 (n, len(names)), NaN where missing; of exclusive classes whether it is the
    exam's."""
    labels = dataset.labels[positions]
    columns = [dataset.classes.index(name) for name in names]
    if dataset.task == "single":
        return torch.stack([(labels == column).float() for column in columns], 1)
    return labels[:, columns]


def combine(val: Exams, classes: tuple[str, ...]) -> Combination:
    """Weights by the accuracies on ``val``, then a temperature for each label of the weighted answers there."""
    accuracies = torch.full((len(val.probabilities), len(classes)), torch.nan, dtype=torch.float64)
    for part, probabilities in enumerate(val.probabilities):
        for column in range(len(classes)):
            known = ~val.labels[:, column].isnan() & ~probabilities[:, column].isnan()
            if known.any():
                right = (probabilities[known, column] > measures.THRESHOLD) == (val.labels[known, column] > 0.5)
                accuracies[part, column] = right.double().mean()
    weights = ensemble.weights(accuracies)
    answers = ensemble.combined(val.probabilities, weights)
    temperatures = torch.ones(len(classes), dtype=torch.float64)
    for column in range(len(classes)):
        known = ~val.labels[:, column].isnan() & ~answers[:, column].isnan()
        temperatures[column] = calibration.temperature(answers[known, column], val.labels[known, column])
    return Combination(classes, accuracies, weights, temperatures)


def arms_of(parts: Sequence[Part], test: Exams, combination: Combination, seed: int) -> dict[str, Predictions]:
    """The predictions of every arm: the parts, their combinations, and the floors."""
    weighted = ensemble.combined(test.probabilities, combination.weights)
    answers = {part.name: test.probabilities[k] for k, part in enumerate(parts)}
    answers |= {
        ENSEMBLE: weighted,
        SCALED: calibration.scaled(weighted, combination.temperatures),
        MEAN: ensemble.plain_mean(test.probabilities),
    }
    ids, labels = training_labels(parts, combination.classes)
    answers[MAJORITY] = floors.majority(labels, len(test.ids))
    answers[RANDOM] = floors.random(test.ids, len(combination.classes), seed)
    groups = torch.cat([part.train.groups[part.rest] for part in parts])
    groups = groups[first_of_each(torch.cat([part.train.ids[part.rest] for part in parts]))[1]]
    trained = {part.name: part.learnt() for part in parts}
    columns = MetadataColumns(trained, ids)
    floor = floors.Metadata(columns(trained, ids), labels, groups, seed=seed)
    answers[METADATA] = floor.predict(columns({part.name: part.test for part in parts}, test.ids))
    facts = (test.labels, test.groups, test.ids, combination.classes)
    return {name: measures.as_predictions(probabilities, *facts) for name, probabilities in answers.items()}


def training_labels(parts: Sequence[Part], classes: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Ids (M,) and labels (M, L) of the exams that any part was trained on."""
    ids, first = first_of_each(torch.cat([part.train.ids[part.rest] for part in parts]))
    labels = torch.cat([labels_of(part.train, part.rest, classes) for part in parts])
    return ids, labels[first]


def rows_of_arms(arms: dict[str, Predictions], *, published: bool, seed: int) -> list[Row]:
    """Rows of every arm, then the paired differences of the ensemble with the plain mean and with the metadata."""
    rows: list[Row] = []
    for arm, predictions in arms.items():
        rows += rows_of({EVALUATOR: predictions}, arm=arm, site=ALL_SITES, seed=seed)
        if published and arm not in (MAJORITY, RANDOM, METADATA):
            rows += published_rows(arm, predictions, seed)
    for other in (MEAN, METADATA):
        pair = ({EVALUATOR: arms[ENSEMBLE]}, {EVALUATOR: arms[other]})
        rows += compared_rows(*pair, arms=(ENSEMBLE, other), site=ALL_SITES, seed=seed)
        rows += delong_rows(arms[ENSEMBLE], arms[other], f"{ENSEMBLE} - {other}")
    return rows


def published_rows(arm: str, predictions: Predictions, seed: int) -> list[Row]:
    """Accuracy, sensitivity, specificity and AUC of each label with the thesis's intervals, under their own name."""
    rows = []
    for column, label in enumerate(predictions.classes):
        scores, labels, groups = measures.known_rows(predictions, column)
        for name in ("accuracy", "sensitivity", "specificity", "auc"):
            found = measures.published_way(measures.STATISTICS[name], scores, labels, seed=seed)
            if found is not None:
                score = Score(
                    f"{EVALUATOR}, published's way",
                    f"{name}/{label}",
                    found.value,
                    found.interval.low,
                    found.interval.high,
                    len(labels),
                    len(torch.unique(groups)),
                    found.interval.note,
                )
                rows.append(Row(arm, ALL_SITES, score))
    return rows


def delong_rows(first: Predictions, second: Predictions, arm: str) -> list[Row]:
    """The difference of two arms in AUC for each label with DeLong's interval, where each exam is a patient's only
    one."""
    rows = []
    for column, label in enumerate(first.classes):
        known = (first.labels[:, column] >= 0) & ~first.scores[:, column].isnan() & ~second.scores[:, column].isnan()
        groups = first.groups[known]
        if len(torch.unique(groups)) < len(groups):
            continue  # exams of one patient are not independent, as DeLong's variance has them
        scores = (first.scores[known, column], second.scores[known, column])
        found = measures.delong(*scores, first.labels[known, column] > 0.5)
        if found is not None:
            interval = measures.delong_interval(*found)
            ends, count = (interval.low, interval.high), len(groups)
            score = Score(f"{EVALUATOR}, DeLong", f"auc/{label}", found[0], *ends, count, count, interval.note)
            rows.append(Row(arm, ALL_SITES, score, difference=True))
    return rows
