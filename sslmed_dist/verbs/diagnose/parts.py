"""The parts of a diagnosis: one model each, of a plane, a series or a label, and the exams it learns from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslmed_dist import checkpoint, config, randomness
from sslmed_dist.config import Config, Diagnosis
from sslmed_dist.data.dataset import Dataset, Subset
from sslmed_dist.data.exams.exam_dataset import exams_of
from sslmed_dist.data.partition import hold_out
from sslmed_dist.downstream.diagnosis.inference import Examiner
from sslmed_dist.downstream.diagnosis.sampling import Sampling
from sslmed_dist.methods.diagnose import Diagnose
from sslmed_dist.training import build, job, pretrained
from sslmed_dist.training.stopping import Stop, finish

PARTS = "parts"  # the folder of their runs in the run folder


@dataclass(frozen=True)
class Part:
    """One model: its settings, its run folder, and positions (int64) of exams in its data. ``rest`` are trained on,
    ``val`` are held out of the training split, to weigh and calibrate by; ``asked`` are those of ``test`` that are
    examined."""

    name: str
    settings: Config
    folder: Path
    train: Dataset
    test: Dataset
    rest: Tensor
    val: Tensor
    asked: Tensor

    def learnt(self) -> Subset:
        """The exams that are trained on."""
        return Subset(self.train, self.rest)


def section(settings: Config) -> Diagnosis:
    """The section ``diagnose``, or its defaults."""
    return settings.diagnose or Diagnosis()


def settings_of(settings: Config) -> dict[str, Config]:
    """The settings of each part by its name. ``ValueError`` for a method that is no diagnosis."""
    tree = config.to_tree(settings) | {"diagnose": None}
    parts = section(settings).parts or {str(settings.data.get("plane", "exam")): {}}
    found = {}
    for name, differing in parts.items():
        own = config.from_tree(config.merge(tree, differing), f"diagnose.parts.{name}")
        if own.method["name"] != "diagnose":
            raise ValueError(f"method.name: sslmed diagnose needs diagnose, got {own.method['name']}")
        if own.federated is not None:
            raise ValueError("federated: a diagnosis over sites is trained by sslmed federate; leave the section out")
        found[name] = own
    return found


def read_parts(settings: Config) -> list[Part]:
    """The parts with their data. An exam that is held out is held out of every part. ``ValueError`` for data that are
    no exams, and for an exam or a patient in training and test."""
    own = settings_of(settings)
    trains = {name: build.load_data(part, "train") for name, part in own.items()}
    for dataset in trains.values():  # before a split is asked for: without labels no split would help
        exams_of(dataset)
        require_labels(dataset)
    tests = {name: build.load_data(part, settings.evaluate.test) for name, part in own.items()}
    for dataset in tests.values():
        exams_of(dataset)
    require_apart(list(trains.values()), list(tests.values()))
    held = held_out(list(trains.values()), settings)
    parts = []
    for name, part_settings in own.items():
        is_held = torch.isin(trains[name].ids, held)
        rest, val = (torch.nonzero(chosen)[:, 0] for chosen in (~is_held, is_held))
        if not len(rest):
            fraction = settings.evaluate.val_fraction
            raise ValueError(f"evaluate.val_fraction: {fraction} leaves {name} no exam to train on")
        folder = settings.folder / PARTS / name
        asked = torch.arange(len(tests[name]))
        parts.append(Part(name, part_settings, folder, trains[name], tests[name], rest, val, asked))
    return parts


def require_labels(dataset: Dataset) -> None:
    """``ValueError`` for exams of which none has a label."""
    if not bool((dataset.labels >= 0).any()):  # NaN is not
        raise ValueError(
            f"data: {dataset.name}: these exams have no labels; a diagnosis is learnt from labels "
            "(a table labels.csv, or data.labels, with a column for each; sslmed data check shows what is there)"
        )


def held_out(datasets: Sequence[Dataset], settings: Config) -> Tensor:
    """The ids of the exams that are held out of training: ``evaluate.val_fraction`` of the patients of all parts."""
    ids, first = first_of_each(torch.cat([dataset.ids for dataset in datasets]))
    labels = torch.cat([dataset.labels for dataset in datasets])[first]
    groups = torch.cat([dataset.groups for dataset in datasets])[first]
    # Exams are held out evenly over the labels; a missing one counts as 0 there.
    labels = labels.nan_to_num() if labels.is_floating_point() else labels
    fraction, seed = settings.evaluate.val_fraction, randomness.key(settings.run.seed, "validation")
    try:
        _, held = hold_out(labels=labels, groups=groups, ids=ids, fraction=fraction, seed=seed)
    except ValueError as error:
        raise ValueError(f"evaluate.val_fraction: {datasets[0].name}: {error}") from None
    return ids[held]


def first_of_each(ids: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct ids in ascending order, and the first position of each."""
    distinct, inverse = torch.unique(ids, return_inverse=True)
    first = torch.full((len(distinct),), len(ids)).scatter_reduce_(0, inverse, torch.arange(len(ids)), "amin")
    return distinct, first


def require_apart(trains: Sequence[Dataset], tests: Sequence[Dataset]) -> None:
    """``ValueError`` for an exam or a patient that is in the training data of one part and in the test data of one."""
    for kind in ("ids", "groups"):
        seen, asked = (torch.cat([getattr(dataset, kind) for dataset in sets]) for sets in (trains, tests))
        shared = asked[torch.isin(asked, seen)]
        if len(shared):
            what = "exam" if kind == "ids" else "patient (group)"
            raise ValueError(f"{tests[0].name}: {what} {int(shared[0])} is in training and test; the test would leak")


def train(part: Part, resume: str, stop: Stop | None) -> None:
    """Train a part to the end, or go on where it stopped. ``Stopped`` where it was stopped again, by itself or by
    ``stop``, that of the whole diagnosis."""
    done = job.train(
        part.settings,
        resume=resume,
        dataset=part.learnt(),
        folder=part.folder,
        title=part.name,
        within=stop,
        told=True,
    )
    finish(done.state.stopped)


def load_method(folder: Path) -> tuple[Diagnose, Config, Path]:
    """The trained method of a part's run folder, its resolved settings, and the file. ``ValueError`` where the folder
    holds no training of a diagnosis."""
    path = pretrained.find(folder)
    saved = checkpoint.load(path)
    settings = config.from_tree(saved["config"], str(path))
    if saved["kind"] != "training" or settings.method["name"] != "diagnose":
        raise ValueError(f"{path}: holds no training of a diagnosis")
    method = pretrained.untrained_method(settings)
    assert isinstance(method, Diagnose)
    # Where training watched a validation loss, the weights at the lowest one.
    checkpoint.load_method(method, saved.get("best") or saved["method"], path)
    return method, settings, path


def examiner(
    method: Diagnose, settings: Config, dataset: Dataset, diagnosis: Diagnosis, device: torch.device
) -> Examiner:
    """The trained method as it looks at exams of ``dataset``, whose intensities it takes."""
    keys = ("size", "mean", "std", "fill")
    leaf: dict[str, Any] = {key: settings.views[key] for key in keys if key in settings.views}
    views = build.views_of({**leaf, "name": "volume", "transforms": "none"}, dataset)
    sampling = Sampling(diagnosis.sampling, diagnosis.draws, diagnosis.slices)
    return Examiner(method, views, sampling, device=device, seed=settings.run.seed)
