"""From a frozen encoder to rows of results: features are computed once, every evaluator predicts from them, the
predictions are scored, and the scores become rows of one JSON file."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sslmed_dist.atomic_files import write_atomically, write_csv
from sslmed_dist.data.dataset import Dataset
from sslmed_dist.downstream.coverage import remarks_in
from sslmed_dist.downstream.features import SplitFeatures, check, extract_splits
from sslmed_dist.downstream.metrics import Score
from sslmed_dist.downstream.predictions import Evaluator, Masking, Predictions, Segmenting, compare, measure, pool
from sslmed_dist.printable import printable

# The site of rows that hold the samples of every site (and of runs that know no sites).
ALL_SITES = "all"


@dataclass(frozen=True)
class Row:
    """One measure of one arm at one site, or over all sites. ``difference``: the paired difference of two arms."""

    arm: str
    site: str
    score: Score
    difference: bool = False

    def to_tree(self) -> dict[str, Any]:
        """As it stands in ``evaluate/*.json``: the score's fields beside ``arm`` and ``site``."""
        tree = {"arm": self.arm, "site": self.site, **asdict(self.score)}
        return tree | {"difference": True} if self.difference else tree


def predict(
    encoder: nn.Module,
    dataset: Dataset,
    splits_positions: Mapping[str, Tensor],
    *,
    evaluators: Mapping[str, Evaluator | Segmenting],
    views: nn.Module,
    device: torch.device | str,
    seed: int,
) -> dict[str, Predictions]:
    """The test predictions of every evaluator by its name: what ``rows_of``, ``pooled_rows`` and ``compared_rows``
    measure. ``splits_positions`` are the samples (int64 (N,)) of train, val and test. An evaluator's ``ValueError`` is
    raised again with the dataset's name in front."""
    missing = all(isinstance(evaluator, Masking) for evaluator in evaluators.values())
    check(dataset, splits_positions, missing)
    splits: SplitFeatures | None = None
    if not all(isinstance(evaluator, Segmenting) for evaluator in evaluators.values()):
        splits = extract_splits(
            encoder, dataset, splits_positions, views=views, device=device, seed=seed, missing=missing
        )
        splits = splits.to(device)
    predictions = {}
    for name, evaluator in evaluators.items():
        try:
            if isinstance(evaluator, Segmenting):
                predictions[name] = evaluator.segment(
                    encoder, dataset, splits_positions["test"], device=device, seed=seed
                )
            else:
                assert splits is not None
                predictions[name] = evaluator.predict(splits, seed=seed)
        except ValueError as error:
            raise ValueError(f"{dataset.name}: {error}") from None
    return predictions


def rows_of(predictions: Mapping[str, Predictions], *, arm: str, site: str, seed: int) -> list[Row]:
    """Rows of one arm at one site, evaluators in the order of ``predictions``."""
    scores = [score for name, prediction in predictions.items() for score in measure(prediction, name, seed=seed)]
    return [Row(arm, site, score) for score in scores]


def pooled_rows(sites: Sequence[Mapping[str, Predictions]], *, arm: str, seed: int) -> list[Row]:
    """Rows of one arm over the test samples of all sites together; the bootstrap draws from the patients of all sites.

    Each site's samples are predicted by its own probe. An AUC over all of them therefore also depends on
    whether the sites' probabilities are on one scale.
    """
    return rows_of(pooled(sites), arm=arm, site=ALL_SITES, seed=seed)


def pooled(sites: Sequence[Mapping[str, Predictions]]) -> dict[str, Predictions]:
    """The predictions of all sites put together, by evaluator. Predictions with measures of their own compare samples
    with each other, and the sites' features may be of different encoders; so they are left out, unless they are
    ``by_sample``. ``ValueError`` for no sites."""
    if not sites:
        raise ValueError("pooled rows: there are no sites")
    poolable = [name for name, prediction in sites[0].items() if prediction.measures is None or prediction.by_sample]
    return {name: pool([site[name] for site in sites]) for name in poolable}


def compared_rows(
    first: Mapping[str, Predictions],
    second: Mapping[str, Predictions],
    *,
    arms: tuple[str, str],
    site: str,
    seed: int,
) -> list[Row]:
    """Rows of the paired difference ``first - second`` at one site; their arm is ``"FIRST - SECOND"``. Both must be
    predictions of the same test samples."""
    scores = [score for name in first for score in compare(first[name], second[name], name, seed=seed)]
    arm = f"{arms[0]} - {arms[1]}"
    return [Row(arm, site, score, difference=True) for score in scores]


def write_rows(path: Path, rows: Sequence[Row], **facts: Any) -> None:
    """Write ``facts`` and the rows as one JSON object, completely or not at all, and say on stderr which classes lack
    samples. ``ValueError`` for a NaN."""
    tree = facts | {"rows": [row.to_tree() for row in rows]}
    write_atomically(path, (json.dumps(tree, indent=1, allow_nan=False) + "\n").encode())
    # the arms and evaluators of a site mostly share their remarks: each once
    said = dict.fromkeys((row.site, remark) for row in rows for remark in remarks_in(row.score.note))
    for site, remark in said:
        where = "" if site == ALL_SITES else f" site {printable(site)}:"
        print(f"{path.name}:{where} {remark}", file=sys.stderr, flush=True)


def write_cases(path: Path, arms: Mapping[str, Mapping[str, Predictions]]) -> None:
    """Write the cases of all predictions as CSV, one line per arm, pair of scans and organ; nothing where no evaluator
    has cases. Exams are given by number."""
    cases = [
        {"arm": arm, "evaluator": name, **case}
        for arm, by_evaluator in arms.items()
        for name, prediction in by_evaluator.items()
        for case in prediction.cases
    ]
    if not cases:
        return
    write_csv(path, cases)
