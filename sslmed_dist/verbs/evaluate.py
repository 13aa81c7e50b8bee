"""Measuring a run's encoder, beside the floors: a random encoder of the same shape and the raw pixels."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from sslmed_dist import checkpoint, config, randomness, registry
from sslmed_dist.config import Config
from sslmed_dist.data.dataset import Dataset
from sslmed_dist.data.joined import Joined
from sslmed_dist.data.partition import hold_out
from sslmed_dist.downstream import (
    ALL_SITES,
    CLASSIFIER,
    FLOORS,
    classified,
    compared_rows,
    predict,
    rows_of,
    write_rows,
)
from sslmed_dist.downstream.features import check
from sslmed_dist.downstream.predictions import Predictions
from sslmed_dist.downstream.rows import write_cases
from sslmed_dist.methods import METHODS
from sslmed_dist.training import build, pretrained
from sslmed_dist.training.build import build_evaluators


def evaluation_splits(settings: Config) -> tuple[Dataset, dict[str, Tensor]]:
    """The evaluation data of a plain run: its train split less ``evaluate.val_fraction`` of it (val), and its test."""
    train = build.load_data(settings, "train", settings.evaluate.data)
    test = build.load_data(settings, settings.evaluate.test, settings.evaluate.data)
    dataset = Joined([train, test])
    rest, val = hold_out(
        labels=train.labels,
        groups=train.groups,
        ids=train.ids,
        fraction=settings.evaluate.val_fraction,
        groups_per_site=None,
        seed=randomness.key(settings.run.seed, "validation"),
    )
    return dataset, {"train": rest, "val": val, "test": dataset.positions(1)}


def arm_predictions(
    settings: Config, encoder: nn.Module, dataset: Dataset, parts: Mapping[str, Tensor], arm: str = "encoder"
) -> dict[str, Predictions]:
    """Test predictions of every protocol on ``encoder``'s features; of those protocols that ``arm`` is a floor of."""
    device = build.choose_device(settings)
    views = build.standard_views(settings, dataset).to(device)
    built, seed = build_evaluators(settings), settings.run.seed
    evaluators = {name: one for name, one in built.items() if arm not in FLOORS or one.floor == arm}
    return predict(encoder.to(device), dataset, parts, evaluators=evaluators, views=views, device=device, seed=seed)


def own_predictions(
    found: pretrained.Pretrained, dataset: Dataset, parts: Mapping[str, Tensor]
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
    method = build.build_method(settings).float()
    checkpoint.load_method(method, saved["method"], found.file)
    device = build.choose_device(settings)
    views = build.standard_views(settings, dataset).to(device)
    made = classified(method, dataset, parts["test"], views=views, device=device, seed=settings.run.seed)
    return {CLASSIFIER: made}


def evaluate_run(folder: Path, which: str = "last", part: pretrained.Part = "encoder") -> Path:
    """Write ``evaluate/WHICH.json``: rows of the run's encoder (a classifier's own predictions first), a random encoder
    of the same shape, the floors (raw pixels, or the copied support mask), and the paired difference of the first two;
    where scans were segmented, also every case (``WHICH-cases.csv``). ``part`` ``momentum`` measures the encoder's slow
    copy, into ``WHICH-momentum.json``. Returns the file. ``ValueError`` if ``folder`` is none of a run, or the run has
    no such copy."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a run folder; the results go into it")
    found = pretrained.load(folder, which, part=part)
    settings = found.settings
    dataset, parts = evaluation_splits(settings)
    floors = {name: FLOORS[name]() for name in dict.fromkeys(one.floor for one in build_evaluators(settings).values())}
    arms = {part: found.encoder, "random": pretrained.untrained(settings), **floors}
    own = own_predictions(found, dataset, parts)
    rows = rows_of(own, arm=part, site=ALL_SITES, seed=settings.run.seed)
    made: dict[str, dict[str, Predictions]] = {}
    for arm, network in arms.items():
        made[arm] = arm_predictions(settings, network, dataset, parts, arm)
        rows += rows_of(made[arm], arm=arm, site=ALL_SITES, seed=settings.run.seed)
    names = (part, "random")
    rows += compared_rows(made[part], made["random"], arms=names, site=ALL_SITES, seed=settings.run.seed)
    out = folder / "evaluate" / (f"{which}.json" if part == "encoder" else f"{which}-{part}.json")
    write_cases(out.with_name(f"{out.stem}-cases.csv"), made)
    write_rows(out, rows, encoder={"file": found.file.name, "sha256": found.sha256}, part=part)
    return out
