"""Measuring a run's encoder, beside the floors: a random encoder of the same shape and the raw pixels."""

import csv
import inspect
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sslmed_dist import checkpoint, config, randomness, registry
from sslmed_dist.config import Config
from sslmed_dist.data.dataset import Dataset
from sslmed_dist.data.joined import Joined
from sslmed_dist.data.partition import hold_out
from sslmed_dist.downstream import (
    CLASSIFIER,
    EVALUATORS,
    FLOORS,
    alignment,
    classified,
    compared_rows,
    extract,
    histogram,
    predict,
    rows_of,
)
from sslmed_dist.downstream.features import check
from sslmed_dist.downstream.oneshot import head_over
from sslmed_dist.downstream.predictions import Evaluator, Predictions, Segmenting
from sslmed_dist.drivers import encoder as encoders
from sslmed_dist.drivers import job
from sslmed_dist.methods import METHODS
from sslmed_dist.run_folder import write_json

Rows = list[dict[str, Any]]


def build_evaluators(settings: Config) -> dict[str, Evaluator | Segmenting]:
    """The evaluators of ``evaluate.protocols`` by name; a name that comes twice gets those of its arguments appended
    that are not the same in all. ``ValueError`` for the same protocol twice."""
    built: dict[str, Evaluator | Segmenting] = {}
    names = [leaf["name"] for leaf in settings.evaluate.protocols]
    for name, leaf in zip(names, settings.evaluate.protocols, strict=True):
        others = [one for one in settings.evaluate.protocols if one["name"] == name]
        own = {k: v for k, v in leaf.items() if any(one.get(k) != v for one in others)}
        title = f"{name}({', '.join(f'{k}={v}' for k, v in own.items())})" if own else name
        if others.count(leaf) > 1:
            said = ", ".join(f"{k}={v}" for k, v in leaf.items() if k != "name")
            raise ValueError(f"evaluate.protocols: {name}({said}) stands there twice")
        built[title] = registry.build(EVALUATORS, inherit(leaf, settings.method), "evaluate.protocols")
    return built


def inherit(leaf: Mapping[str, Any], method: Mapping[str, Any]) -> dict[str, Any]:
    """``leaf`` with the run's own prototype head below it, where the evaluator asks for a ``head``: a run is measured
    with what it was trained with, but for what the protocol says otherwise (another window, say)."""
    registry.check(EVALUATORS, leaf, "evaluate.protocols")
    constructor, _ = registry.split(EVALUATORS, leaf, "evaluate.protocols")
    if "head" not in inspect.signature(constructor).parameters:
        return dict(leaf)
    return {**leaf, "head": head_over(method.get("head"), leaf.get("head"))}


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
    settings: Config, encoder: nn.Module, dataset: Dataset, parts: Mapping[str, Tensor], arm: str = "encoder"
) -> dict[str, Predictions]:
    """Test predictions of every protocol on ``encoder``'s features; of those protocols that ``arm`` is a floor of."""
    device = job.choose_device(settings)
    views = job.standard_views(settings, dataset).to(device)
    built, seed = build_evaluators(settings), settings.run.seed
    evaluators = {name: one for name, one in built.items() if arm not in FLOORS or one.floor == arm}
    return predict(encoder.to(device), dataset, parts, evaluators=evaluators, views=views, device=device, seed=seed)


def own_predictions(
    found: encoders.Pretrained, dataset: Dataset, parts: Mapping[str, Tensor]
) -> dict[str, Predictions]:
    """Test predictions of the run's method itself where it classifies (``downstream.classifier``), else none. A
    federation's rounds have no classifier: it stays at the sites."""
    settings, saved = found.settings, checkpoint.load(found.file)
    constructor, _ = registry.split(METHODS, settings.method, "method")
    if not hasattr(constructor, "predict") or saved["kind"] != "training":
        return {}
    check(dataset, parts)
    leaf = settings.method.get("encoder")
    if isinstance(leaf, Mapping) and "weights" in leaf:  # the checkpoint has them all
        settings = config.replace(settings, method={"encoder": {"weights": None}})
    method = job.build_method(settings).float()
    checkpoint.load_method(method, saved["method"], found.file)
    device = job.choose_device(settings)
    views = job.standard_views(settings, dataset).to(device)
    facts: dict[str, Any] = {"views": views, "device": device, "seed": settings.run.seed}
    return {CLASSIFIER: classified(method, dataset, parts["test"], **facts)}


def evaluate_run(folder: Path, which: str = "last", part: encoders.Part = "encoder") -> Path:
    """Write ``evaluate/WHICH.json``: rows of the run's encoder (a classifier's own predictions first), a random encoder
    of the same shape, the floors (raw pixels, or the copied support mask), and the paired difference of the first two;
    where scans were segmented, also every case (``WHICH-cases.csv``). ``part`` ``momentum`` measures the encoder's slow
    copy, into ``WHICH-momentum.json``. Returns the file. ``ValueError`` if ``folder`` is none of a run, or the run has
    no such copy."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a run folder; the results go into it")
    found = encoders.load(folder, which, part=part)
    settings = found.settings
    dataset, parts = splits(settings)
    floors = {name: FLOORS[name]() for name in dict.fromkeys(one.floor for one in build_evaluators(settings).values())}
    arms = {part: found.encoder, "random": encoders.untrained(settings), **floors}
    own = own_predictions(found, dataset, parts)
    rows: Rows = rows_of(own, arm=part, site="all", seed=settings.run.seed)
    made: dict[str, dict[str, Predictions]] = {}
    for arm, network in arms.items():
        made[arm] = predictions(settings, network, dataset, parts, arm)
        rows += rows_of(made[arm], arm=arm, site="all", seed=settings.run.seed)
    names = (part, "random")
    rows += compared_rows(made[part], made["random"], arms=names, site="all", seed=settings.run.seed)
    out = folder / "evaluate" / (f"{which}.json" if part == "encoder" else f"{which}-{part}.json")
    write_cases(out.with_name(f"{out.stem}-cases.csv"), made)
    write_json(out, {"encoder": {"file": found.file.name, "sha256": found.sha256}, "part": part, "rows": rows})
    return out


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
    checkpoint.write_atomically(path, stream.getvalue().encode())


def similarities(folder: Path, which: str = "last", part: encoders.Part = "encoder", bins: int = 100) -> Path:
    """Write ``evaluate/similarity.json``: histograms of the cosine similarity between the features of two training
    views of the test images (``downstream.similarity``), their means, and the ``alignment``. Returns the file.

    ``ValueError`` for a run whose views are not at least two, or whose data has several labels per sample.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a run folder; the results go into it")
    found = encoders.load(folder, which, part=part)
    settings = found.settings
    dataset, parts = splits(settings)
    if dataset.task != "single":
        raise ValueError(f"{dataset.name}: histograms of similarity need one class per sample")
    check(dataset, parts)
    device = job.choose_device(settings)
    network, views = found.encoder.to(device), job.build_views(settings, dataset).to(device)
    given: dict[str, Any] = {"device": device, "seed": settings.run.seed}
    first, second = (extract(network, dataset, parts["test"], views=Only(views, n), **given).to(device) for n in (0, 1))
    made = histogram(first.x, second.x, first.labels, bins)
    content: dict[str, Any] = {"bins": made.edges, "counts": made.counts, "means": made.means}
    content |= {"alignment": alignment(first.x, second.x), "n": len(first)}
    out = folder / "evaluate" / "similarity.json"
    write_json(out, {"encoder": {"file": found.file.name, "sha256": found.sha256}, **content})
    return out


class Only(nn.Module):
    """View ``number`` of several, as the one that ``extract`` asks for. ``ValueError`` where there is none."""

    def __init__(self, views: nn.Module, number: int) -> None:
        super().__init__()
        self.views, self.number = views, number

    def forward(self, batch: dict[str, Tensor], *, seed: int, epoch: int) -> dict[str, Tensor]:
        """``views_0``: the view asked for."""
        made: dict[str, Tensor] = self.views(batch, seed=seed, epoch=epoch)
        if f"views_{self.number}" not in made:
            raise ValueError("histograms of similarity need two training views per image; this run's views give one")
        return {"views_0": made[f"views_{self.number}"]}


def embed(source: Path, images: Path, out: Path, which: str = "last", part: encoders.Part = "encoder") -> int:
    """Features of every picture in the folder ``images`` (any layout), in sorted order, written to ``out`` (.npz).

    The archive holds ``features`` float32 (N, D) and ``index`` int64 (N,); file names stay with the person who ran it.
    """
    import numpy as np

    from sslmed_dist.data import DATASETS

    found = encoders.load(source, which, part=part)
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
