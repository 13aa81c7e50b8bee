"""``sslmed evaluate``: a run's encoder is measured, and beside it a random encoder of the same shape and the floors."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sslmed_dist import checkpoint, config, outputs, registry
from sslmed_dist.config import Config
from sslmed_dist.data.dataset import Dataset
from sslmed_dist.downstream import (
    ALL_SITES,
    CLASSIFIER,
    FLOORS,
    Row,
    classified,
    compared_rows,
    rows_of,
    write_rows,
)
from sslmed_dist.downstream.features import check
from sslmed_dist.downstream.predictions import Predictions
from sslmed_dist.downstream.rows import write_cases
from sslmed_dist.methods import METHODS
from sslmed_dist.printable import note
from sslmed_dist.run_folder import phantom_data
from sslmed_dist.training import build, pretrained
from sslmed_dist.training.build import build_evaluators
from sslmed_dist.training.measuring import arm_predictions
from sslmed_dist.verbs.measurement import Measurement, measurement

MOST_KEPT = 2**30  # bytes of images that are kept while the arms are measured: 7,000 in colour of 224 x 224 pixels


def own_predictions(
    trained: pretrained.Pretrained, dataset: Dataset, parts: Mapping[str, Tensor]
) -> dict[str, Predictions]:
    """Test predictions of the run's method itself where it is a classifier (``downstream.classifier``); else an empty
    mapping. The checkpoint of a federation's round has no classifier: that stays at the sites."""
    settings = trained.settings
    constructor, _ = registry.split(METHODS, settings.method, "method")
    if not hasattr(constructor, "predict"):
        return {}
    saved = checkpoint.load(trained.file)
    if saved["kind"] != "training":  # "encoder" is one of a federation's rounds
        return {}
    check(dataset, parts)
    method = pretrained.untrained_method(settings)
    checkpoint.load_method(method, saved["method"], trained.file)
    device = build.choose_device(settings)
    views = build.standard_views(settings, dataset).to(device)
    trained_on, seed = torch.cat([parts["train"], parts["val"]]), settings.run.seed
    predictions = classified(
        method, dataset, parts["test"], views=views, device=device, seed=seed, trained_on=trained_on
    )
    return {CLASSIFIER: predictions}


def evaluate_run(
    folder: Path, which: str = "last", part: pretrained.Part = "encoder", overrides: Sequence[str] = ()
) -> Path:
    """``evaluate`` of the ``measurement`` of these arguments."""
    return evaluate(measurement(folder, which, part, overrides))


def evaluate(asked: Measurement) -> Path:
    """Write ``evaluate/WHICH.json`` and return the file. Its rows are those of the run's encoder (before them the run's
    own predictions where it is a classifier), of a random encoder of the same shape, of the floors (raw pixels, or the
    copied support mask), and the paired difference of encoder and random encoder. ``measured_on`` in it says on what.

    Where scans were segmented, every case goes to ``WHICH-cases.csv``. The part ``momentum`` is written to
    ``WHICH-momentum.json``. What overrides measure otherwise than the run's own settings say, another dataset for
    instance, is written to ``WHICH@HASH.json``. ``ValueError`` where there is nothing to measure, or something else
    than a result lies in the file's place.
    """
    trained, settings = asked.trained, asked.settings
    if not settings.evaluate.protocols:
        raise ValueError("evaluate.protocols: is empty, so there is nothing to measure; allowed: [{name: knn}], say")
    dataset, parts = asked.data
    if trained.unfinished:
        note(f"{trained.file.name} is of {trained.unfinished}")
    for line in dataset.notices:
        note(f"data: {line}")
    out = asked.folder / "evaluate" / f"{asked.stem}.json"
    outputs.require_ours(out, outputs.is_results)
    with dataset.keeping(MOST_KEPT):  # every arm is shown the same images
        rows, predictions = all_rows(trained, settings, dataset, parts, asked.part)
    write_cases(out.with_name(f"{out.stem}-cases.csv"), predictions)
    facts = {
        "encoder": {"file": trained.file.name, "sha256": trained.sha256},
        "part": asked.part,
        "measured_on": asked.measured_on,
        "phantom_data": on_phantoms(settings),
        "unfinished": trained.unfinished,
        "notices": list(dataset.notices),
    }
    write_rows(out, rows, **facts)
    return out


def on_phantoms(settings: Config) -> bool:
    """Whether what is measured on is phantom data, which results say of themselves."""
    return phantom_data(config.replace(settings, data=settings.evaluate.data))


def all_rows(
    trained: pretrained.Pretrained,
    settings: Config,
    dataset: Dataset,
    parts: Mapping[str, Tensor],
    part: pretrained.Part,
) -> tuple[list[Row], dict[str, dict[str, Predictions]]]:
    """The rows of ``evaluate_run``, and the predictions by arm and protocol that they are made of."""
    # The floors of the protocols, each once.
    floor_names = dict.fromkeys(evaluator.floor for evaluator in build_evaluators(settings).values())
    floors = {name: FLOORS[name]() for name in floor_names}
    arms = {part: trained.encoder, "random": pretrained.untrained(settings), **floors}
    rows: list[Row] = []
    own_classes = settings.data == trained.settings.data or len(dataset.classes) == settings.method.get("classes")
    own_encoder = part == "encoder"  # a classifier was trained on the encoder itself, not on its slow copy
    if own_encoder and own_classes:
        classifier_predictions = own_predictions(trained, dataset, parts)
        rows += rows_of(classifier_predictions, arm=part, site=ALL_SITES, seed=settings.run.seed)
    elif own_encoder and settings.method.get("classes") is not None:
        note(f"{dataset.name} has other classes: the run's own classifier is not measured")
    predictions: dict[str, dict[str, Predictions]] = {}  # by arm, then by the protocol's title
    for arm, network in arms.items():
        predictions[arm] = arm_predictions(settings, network, dataset, parts, arm)
        rows += rows_of(predictions[arm], arm=arm, site=ALL_SITES, seed=settings.run.seed)
    names = (part, "random")
    rows += compared_rows(predictions[part], predictions["random"], arms=names, site=ALL_SITES, seed=settings.run.seed)
    return rows, predictions
