"""Whether a diagnosis would hold on other scanners: the same training exams in random folds and in folds of scanners.

Each fold is answered by models that were trained, as the parts are, on the training exams of the other folds. Random
folds deal patients. Folds of scanners keep all exams of a scanner together, so that no model has seen those that it is
asked about. What the metadata alone say is learnt and asked in the same folds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from sslmed_dist import randomness
from sslmed_dist.config import Config
from sslmed_dist.data import subsets
from sslmed_dist.data.dataset import Subset
from sslmed_dist.data.exams.metadata import MetadataColumns, places_of
from sslmed_dist.downstream import ALL_SITES, Row, compared_rows, rows_of
from sslmed_dist.downstream.diagnosis import ensemble, floors
from sslmed_dist.downstream.diagnosis.folded import folded
from sslmed_dist.downstream.diagnosis.inference import ExamScores
from sslmed_dist.downstream.predictions import Predictions
from sslmed_dist.verbs.diagnose import scoring
from sslmed_dist.verbs.diagnose.parts import Part, first_of_each, section

EVALUATOR, FOLDER = "diagnosis, folds", "folds"
BY: Mapping[str, Literal["patient", "scanner"]] = {"random": "patient", "scanner": "scanner"}


@dataclass(frozen=True)
class Fold:
    """One fold: its kind and number, the ids (int64, ascending) of its exams and of all others, and a model a part.
    A part that has none of the exams on one side has no model."""

    kind: str
    number: int
    asked: Tensor
    rest: Tensor
    parts: tuple[Part, ...]


def folds_of(settings: Config, parts: Sequence[Part]) -> list[Fold]:
    """The folds that ``diagnose.folds`` asks for, of the training exams of all parts. ``ValueError`` where there are
    too few patients or scanners, or the data do not say the scanner."""
    diagnosis = section(settings)
    ids, first = first_of_each(torch.cat([part.train.ids for part in parts]))
    labels = torch.cat([part.train.labels for part in parts])[first]
    groups = torch.cat([part.train.groups for part in parts])[first]
    scanners = scanners_of(parts, ids) if "scanner" in diagnosis.folds else None
    seed = randomness.key(settings.run.seed, "diagnosis folds")
    found = []
    for kind in diagnosis.folds:
        for number in range(diagnosis.fold_count):
            try:
                asked = subsets.fold(
                    labels, groups, ids, seed=seed, folds=diagnosis.fold_count, index=number, part="val", by=BY[kind],
                    scanners=scanners,
                )  # fmt: skip
            except ValueError as error:
                said = str(error).removeprefix("subset fold: ")
                raise ValueError(f"diagnose.fold_count: {kind} folds of {len(ids)} training exams: {said}") from None
            is_asked = torch.zeros(len(ids), dtype=torch.bool)
            is_asked[asked] = True
            found.append(fold_of(settings, parts, kind, number, ids[is_asked], ids[~is_asked]))
    return found


def fold_of(settings: Config, parts: Sequence[Part], kind: str, number: int, asked: Tensor, rest: Tensor) -> Fold:
    """The fold of the exams ``asked``, with a part that is trained on those of ``rest`` for each of ``parts``."""
    name = f"{kind}-{number + 1}"
    own = []
    for part in parts:
        learnt, held = (torch.nonzero(torch.isin(part.train.ids, chosen))[:, 0] for chosen in (rest, asked))
        if len(learnt) and len(held):
            folder = settings.folder / FOLDER / name / part.name
            none = torch.zeros(0, dtype=torch.int64)
            made = replace(part, name=f"{name} {part.name}", folder=folder, rest=learnt, val=held, asked=none)
            own.append(made)
    return Fold(kind, number, asked, rest, tuple(own))


def scanners_of(parts: Sequence[Part], ids: Tensor) -> Tensor:
    """The scanner of each exam, int64; -1 is one of its own, that of exams of which no part knows it. ``ValueError``
    where none is known, or all are the same."""
    scanners = places_of([part.train for part in parts], ids, "scanner")
    if bool((scanners < 0).all()):
        name = parts[0].train.name
        raise ValueError(f"diagnose.folds: scanner: {name} does not say which scanner an exam is from; allowed: random")
    if len(torch.unique(scanners)) < 2:
        raise ValueError(f"diagnose.folds: scanner: all {len(ids)} training exams are of one scanner; allowed: random")
    return scanners


def unknown_scanners(parts: Sequence[Part]) -> int:
    """How many training exams are of a scanner that is not known."""
    ids = first_of_each(torch.cat([part.train.ids for part in parts]))[0]
    return int((places_of([part.train for part in parts], ids, "scanner") < 0).sum())


def predictions_of(
    kind: str, folds: Sequence[Fold], parts: Sequence[Part], scores: Mapping[str, ExamScores], seed: int
) -> tuple[Predictions, Predictions]:
    """(diagnosis, metadata only) of all training exams by the folds of one kind; ``scores`` are by the parts' names.

    The parts of a fold answer by their plain mean, for weights would have to be learnt on further exams."""
    classes = tuple(dict.fromkeys(name for fold in folds for part in fold.parts for name in scores[part.name].labels))
    ids, first = first_of_each(torch.cat([part.train.ids for part in parts]))
    labels = torch.cat([scoring.labels_of(part.train, torch.arange(len(part.train)), classes) for part in parts])[first]
    groups = torch.cat([part.train.groups for part in parts])[first]
    number = torch.zeros(len(ids), dtype=torch.int64)
    answers = torch.full((2, len(ids), len(classes)), torch.nan, dtype=torch.float64)
    for fold in (fold for fold in folds if fold.kind == kind):
        asked, rest = torch.isin(ids, fold.asked), torch.isin(ids, fold.rest)
        number[asked] = fold.number
        said = torch.full((len(fold.parts), len(ids), len(classes)), torch.nan, dtype=torch.float64)
        for k, part in enumerate(fold.parts):
            score = scores[part.name]
            columns = torch.tensor([classes.index(name) for name in score.labels])
            said[k][torch.searchsorted(ids, score.index)[:, None], columns] = score.probabilities
        if len(said):
            answers[0][asked] = ensemble.plain_mean(said)[asked]
        learnt = {
            part.name: Subset(part.train, torch.nonzero(torch.isin(part.train.ids, fold.rest))[:, 0])
            for part in parts
            if bool(torch.isin(part.train.ids, fold.rest).any())
        }
        columns_of = MetadataColumns(learnt, fold.rest)
        floor = floors.Metadata(columns_of(learnt, fold.rest), labels[rest], groups[rest], seed=seed)
        others = {part.name: part.train for part in parts if part.name in learnt}
        answers[1][asked] = floor.predict(columns_of(others, fold.asked))
    diagnosis, metadata = (folded(values, number, labels, groups, ids, classes) for values in answers)
    return diagnosis, metadata


def arm(kind: str) -> str:
    """What the diagnosis in folds of a kind is called."""
    return f"{kind} folds"


def metadata_arm(kind: str) -> str:
    """What the metadata alone are called there."""
    return f"{scoring.METADATA}, {kind} folds"


def rows_of_folds(
    kinds: Sequence[str], folds: Sequence[Fold], parts: Sequence[Part], scores: Mapping[str, ExamScores], seed: int
) -> list[Row]:
    """Rows of every kind of folds, of the diagnosis and of the metadata alone; then their paired differences, and those
    of the first kind with each other one: what an unknown scanner costs."""
    arms: dict[str, Predictions] = {}
    for kind in kinds:
        arms[arm(kind)], arms[metadata_arm(kind)] = predictions_of(kind, folds, parts, scores, seed)
    rows: list[Row] = []
    for name, predictions in arms.items():
        rows += rows_of({EVALUATOR: predictions}, arm=name, site=ALL_SITES, seed=seed)
    pairs = [(arm(kind), metadata_arm(kind)) for kind in kinds]
    pairs += [(of(kinds[0]), of(kind)) for kind in kinds[1:] for of in (arm, metadata_arm)]
    for first, second in pairs:
        both = ({EVALUATOR: arms[first]}, {EVALUATOR: arms[second]})
        rows += compared_rows(*both, arms=(first, second), site=ALL_SITES, seed=seed)
    return rows
