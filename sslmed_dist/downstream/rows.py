"""One frozen encoder, all evaluators: features once, predictions, scores, one JSON file."""

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sslmed_dist.atomic_files import write_atomically
from sslmed_dist.data.dataset import Dataset
from sslmed_dist.downstream.features import SplitFeatures, check, extract_splits
from sslmed_dist.downstream.predictions import Evaluator, Predictions, Segmenting, compare, measure, pool

# The site of rows that hold the samples of every site (and of runs that know no sites).
ALL_SITES = "all"

Row = dict[str, Any]


def evaluate(
    encoder: nn.Module,
    dataset: Dataset,
    splits_positions: Mapping[str, Tensor],
    *,
    evaluators: Mapping[str, Evaluator | Segmenting],
    views: nn.Module,
    device: torch.device | str,
    seed: int,
    out: Path | None = None,
    arm: str = "encoder",
    site: str = ALL_SITES,
) -> list[Row]:
    """Features of ``encoder`` once, then every evaluator; one row per measure.

    ``splits_positions`` holds int64 positions for ``train``, ``val`` and ``test``. A row is ``{arm, site, evaluator,
    metric, value, low, high, n, groups, note}``; with ``out`` the rows are also written there as ``{"rows": [...]}``.
    """
    predictions = predict(
        encoder, dataset, splits_positions, evaluators=evaluators, views=views, device=device, seed=seed
    )
    rows = rows_of(predictions, arm=arm, site=site, seed=seed)
    if out is not None:
        write_rows(out, rows)
    return rows


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
    measure. An evaluator's ``ValueError`` gets the dataset's name."""
    facts: dict[str, Any] = {"device": device, "seed": seed}
    check(dataset, splits_positions)
    splits: SplitFeatures | None = None
    if not all(isinstance(evaluator, Segmenting) for evaluator in evaluators.values()):
        splits = extract_splits(encoder, dataset, splits_positions, views=views, **facts).to(device)
    predictions = {}
    for name, evaluator in evaluators.items():
        try:
            if isinstance(evaluator, Segmenting):
                predictions[name] = evaluator.segment(encoder, dataset, splits_positions["test"], **facts)
            else:
                assert splits is not None
                predictions[name] = evaluator.predict(splits, seed=seed)
        except ValueError as error:
            raise ValueError(f"{dataset.name}: {error}") from None
    return predictions


def rows_of(predictions: Mapping[str, Predictions], *, arm: str, site: str, seed: int) -> list[Row]:
    """Rows of one arm at one site, evaluators in the order of ``predictions``."""
    scores = [score for name, made in predictions.items() for score in measure(made, name, seed=seed)]
    return [{"arm": arm, "site": site, **dataclasses.asdict(score)} for score in scores]


def pooled_rows(sites: Sequence[Mapping[str, Predictions]], *, arm: str, seed: int) -> list[Row]:
    """Rows of one arm over the test samples of all sites together, the bootstrap going over all their patients.

    Each site's samples are predicted by its own probe; an AUC therefore also asks that the sites' probabilities
    agree on a scale.
    """
    return rows_of(pooled(sites), arm=arm, site=ALL_SITES, seed=seed)


def pooled(sites: Sequence[Mapping[str, Predictions]]) -> dict[str, Predictions]:
    """The predictions of all sites put together, by evaluator. Those with measures of their own are left out unless
    ``by_sample``, for they compare samples with each other, and the sites' features may be of different encoders."""
    if not sites:
        raise ValueError("pooled rows: there are no sites")
    kept = [name for name, made in sites[0].items() if made.measures is None or made.by_sample]
    return {name: pool([site[name] for site in sites]) for name in kept}


def compared_rows(
    first: Mapping[str, Predictions],
    second: Mapping[str, Predictions],
    *,
    arms: tuple[str, str],
    site: str,
    seed: int,
) -> list[Row]:
    """Rows of the paired difference ``first - second`` at one site; their arm is ``"FIRST - SECOND"`` and they carry
    ``"difference": true``. Both must be predictions of the same test samples."""
    scores = [score for name in first for score in compare(first[name], second[name], name, seed=seed)]
    arm = f"{arms[0]} - {arms[1]}"
    return [{"arm": arm, "site": site, **dataclasses.asdict(score), "difference": True} for score in scores]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write ``{"rows": [...]}`` at once or not at all; NaN is refused."""
    write_atomically(path, (json.dumps({"rows": list(rows)}, indent=1, allow_nan=False) + "\n").encode())


def write_cases(path: Path, arms: Mapping[str, Mapping[str, Predictions]]) -> None:
    """One line per arm, query scan and organ, as CSV, where an evaluator has cases; else nothing. Exams are numbers."""
    cases = [
        {"arm": arm, "evaluator": name, **case}
        for arm, made in arms.items()
        for name, found in made.items()
        for case in found.cases
    ]
    if not cases:
        return
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(dict.fromkeys(key for case in cases for key in case)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(cases)
    write_atomically(path, stream.getvalue().encode())
