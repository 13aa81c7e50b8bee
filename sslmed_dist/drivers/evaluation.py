"""Measuring a run's encoder, beside the floors: a random encoder of the same shape and the raw pixels."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sslmed_dist import checkpoint, randomness, registry
from sslmed_dist.config import Config
from sslmed_dist.data.dataset import Dataset
from sslmed_dist.data.joined import Joined
from sslmed_dist.data.partition import hold_out
from sslmed_dist.downstream import EVALUATORS, RawPixels, compared_rows, predict, rows_of
from sslmed_dist.downstream.predictions import Evaluator, Predictions
from sslmed_dist.drivers import encoder as encoders
from sslmed_dist.drivers import job
from sslmed_dist.run_folder import write_json

Rows = list[dict[str, Any]]


def build_evaluators(settings: Config) -> dict[str, Evaluator]:
    """The evaluators of ``evaluate.protocols`` by name; a name that comes twice gets its arguments appended."""
    built: dict[str, Evaluator] = {}
    names = [leaf["name"] for leaf in settings.evaluate.protocols]
    for name, leaf in zip(names, settings.evaluate.protocols, strict=True):
        arguments = ", ".join(f"{k}={v}" for k, v in leaf.items() if k != "name")
        title = f"{name}({arguments})" if names.count(name) > 1 else name
        built[title] = registry.build(EVALUATORS, leaf, "evaluate.protocols")
    return built


def splits(settings: Config) -> tuple[Dataset, dict[str, Tensor]]:
    """The evaluation data of a plain run: its train split less ``evaluate.val_fraction`` of it (val), and its test."""
    train = job.load_data(settings, "train", settings.evaluate.data)
    test = job.load_data(settings, settings.evaluate.test, settings.evaluate.data)
    dataset = Joined([train, test])
    facts = {"labels": train.labels, "groups": train.groups, "ids": train.ids}
    seed = randomness.key(settings.run.seed, "validation")
    rest, val = hold_out(**facts, fraction=settings.evaluate.val_fraction, groups_per_site=None, seed=seed)
    return dataset, {"train": rest, "val": val, "test": dataset.positions(1)}


def predictions(
    settings: Config, encoder: nn.Module, dataset: Dataset, parts: Mapping[str, Tensor]
) -> dict[str, Predictions]:
    """Test predictions of every protocol on ``encoder``'s features."""
    device = job.choose_device(settings)
    views = job.standard_views(settings, dataset).to(device)
    evaluators, seed = build_evaluators(settings), settings.run.seed
    return predict(encoder.to(device), dataset, parts, evaluators=evaluators, views=views, device=device, seed=seed)


def evaluate_run(folder: Path, which: str = "last") -> Path:
    """Write ``evaluate/WHICH.json``: rows of the run's encoder, a random encoder of the same shape, the raw pixels,
    and the paired difference of the first two. Returns the file. ``ValueError`` if ``folder`` is none of a run."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a run folder; the results go into it")
    found = encoders.load(folder, which)
    settings = found.settings
    dataset, parts = splits(settings)
    arms = {"encoder": found.encoder, "random": encoders.untrained(settings), "raw_pixels": RawPixels()}
    rows: Rows = []
    made: dict[str, dict[str, Predictions]] = {}
    for arm, network in arms.items():
        made[arm] = predictions(settings, network, dataset, parts)
        rows += rows_of(made[arm], arm=arm, site="all", seed=settings.run.seed)
    names = ("encoder", "random")
    rows += compared_rows(made["encoder"], made["random"], arms=names, site="all", seed=settings.run.seed)
    out = folder / "evaluate" / f"{which}.json"
    write_json(out, {"encoder": {"file": found.file.name, "sha256": found.sha256}, "rows": rows})
    return out


def embed(source: Path, images: Path, out: Path, which: str = "last") -> int:
    """Features of every picture in the folder ``images`` (any layout), in sorted order, written to ``out`` (.npz).

    The archive holds ``features`` float32 (N, D) and ``index`` int64 (N,); file names stay with the person who ran it.
    """
    import io

    import numpy as np

    from sslmed_dist.data import DATASETS
    from sslmed_dist.downstream import extract

    found = encoders.load(source, which)
    settings = found.settings
    given = {"channels": settings.method["channels"], "size": settings.views["size"]}
    dataset = DATASETS["image_folder"](root=str(images), split="all", **given)
    device = job.choose_device(settings)
    views = job.standard_views(settings, dataset).to(device)
    features = extract(found.encoder.to(device), dataset, torch.arange(len(dataset)), views=views, device=device)
    stream = io.BytesIO()
    np.savez_compressed(stream, features=features.x.numpy(), index=features.index.numpy())
    checkpoint.write_atomically(out, stream.getvalue())
    return len(features)
