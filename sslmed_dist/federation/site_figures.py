"""What the encoders are worth at one site, measured by the site: one piece of code for every kind of site.

The data side of a hospital, a simulated site and ``sslmed federate`` itself all measure here: the same held-out part,
the same arms, the same protocols, the same intervals. Hence the same bits, wherever the site lives.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from sslmed_dist.config import Config
from sslmed_dist.data.dataset import Dataset, unlabelled
from sslmed_dist.downstream import FLOORS
from sslmed_dist.downstream.predictions import Predictions
from sslmed_dist.federation import health
from sslmed_dist.federation.figures import ARMS, FEDERATED, Figure, figures_of
from sslmed_dist.federation.local_round import own_tensors, require_normalisation
from sslmed_dist.federation.messages import SiteError
from sslmed_dist.federation.sites import Site, federated_section
from sslmed_dist.models.interfaces import Encoder
from sslmed_dist.training import build, job, pretrained
from sslmed_dist.training.measuring import arm_predictions
from sslmed_dist.training.stopping import finish

LOCAL = "local"  # below a site's own folder: the run folder of the encoder that is trained on its data alone


def arms_at(settings: Config) -> list[str]:
    """The arms that a site measures: those of ``federated.compare`` that it can have alone, and the federated one."""
    compare = federated_section(settings).compare
    return [arm for arm in ARMS if arm == FEDERATED or arm in compare]


def federated_encoder(settings: Config, arrays: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Encoder:
    """The encoder of the shared tensors ``arrays``, completed by what never left the site (``own``, as under FedBN).
    ``SiteError`` for a tensor of another shape; what is not the encoder's is passed over."""
    encoder = pretrained.untrained(settings)
    state = encoder.state_dict()
    for key, value in {**arrays, **own}.items():
        name = key.removeprefix("encoder.")
        if name == key or name not in state:
            continue
        if value.shape != state[name].shape:
            raise SiteError(f"shared tensor {key}: of another shape than this site's encoder has")
        state[name] = value
    encoder.load_state_dict(state)
    return encoder


def local_encoder(settings: Config, site: Site, folder: Path) -> nn.Module:
    """The encoder that is trained on the site's own data alone, with as many optimiser steps as the federation has. Its
    run folder is ``folder``; what was interrupted goes on there. ``Stopped`` where it was stopped."""
    finish(job.train(settings, dataset=site.pretrain, folder=folder, title=f"local-{site.name}").state.stopped)
    return pretrained.load(folder).encoder


def evaluation_data(settings: Config, site: Site) -> Dataset:
    """What is measured on: the data that the site was cut from, or another cut of it where ``evaluate.data`` says so.
    ``parts_of`` says which of it is the site's."""
    overrides = settings.evaluate.data
    if not overrides:
        return site.pretrain.dataset
    return build.load_data(settings, federated_section(settings).pool, overrides)


def parts_of(settings: Config, site: Site, dataset: Dataset) -> dict[str, Tensor]:
    """The site's train, val and test parts as int64 positions in ``dataset``, its evaluation data. Samples are matched
    by their ids; those of another cut of the data (slices of the same exams) by their patients."""
    same, parts = not settings.evaluate.data, {}
    site_keys, dataset_keys = (site.dataset.ids, dataset.ids) if same else (site.dataset.groups, dataset.groups)
    for name in ("train", "val", "test"):
        positions: Tensor = getattr(site, name)  # in the site's own dataset
        parts[name] = torch.nonzero(torch.isin(dataset_keys, site_keys[positions])).flatten()
    return parts


def predictions_at(
    settings: Config, site: Site, dataset: Dataset, encoders: Mapping[str, Callable[[], nn.Module]]
) -> dict[str, dict[str, Predictions]]:
    """The test predictions of every arm, and of every protocol in it, on the site's part of ``dataset``."""
    parts = parts_of(settings, site, dataset)
    return {arm: arm_predictions(settings, make(), dataset, parts, arm) for arm, make in encoders.items()}


def evaluate(
    settings: Config, site: Site, arrays: Mapping[str, Tensor], folder: Path
) -> tuple[list[Figure], dict[str, float]]:
    """(the figures of every arm, the health of the federated encoder) at a site that has the shared tensors ``arrays``.
    ``folder`` is the site's own (see ``local_round``); the local arm is trained below it, the first time. ``SiteError``
    for tensors that do not fit."""
    require_normalisation(settings)
    encoder = federated_encoder(settings, arrays, own_tensors(settings, folder))
    makers: dict[str, Callable[[], nn.Module]] = {
        **FLOORS,
        "random": lambda: pretrained.untrained(settings),
        "local": lambda: local_encoder(settings, site, folder / LOCAL),
        FEDERATED: lambda: encoder,
    }
    encoders = {arm: makers[arm] for arm in arms_at(settings)}
    predictions = predictions_at(settings, site, evaluation_data(settings, site), encoders)
    figures = [figure for arm, by_title in predictions.items() for figure in figures_of(by_title, arm, settings)]
    return figures, health.measure(settings, site.pretrain, encoder)


def rounds_of_work(settings: Config) -> int:
    """How many rounds' time an evaluation may take: to train the local arm is as much work as all rounds."""
    fed = federated_section(settings)
    return fed.rounds + 1 if "local" in fed.compare else 1


def fewest(site: Site) -> tuple[int, int]:
    """(patients of the held-out part, patients of its rarest class there). Of several labels the rarer value of each
    counts; a label that is known of nobody does not."""
    labels, groups = site.dataset.labels[site.test], site.dataset.groups[site.test]
    patients = len(torch.unique(groups))
    if not site.dataset.classes or bool(unlabelled(labels).all()):
        return patients, 0
    columns = [(labels == number) for number in range(len(site.dataset.classes))]
    if labels.ndim == 2:
        columns = [column == value for column in labels.unbind(1) for value in (0, 1) if not bool(column.isnan().all())]
    return patients, min(len(torch.unique(groups[which])) for which in columns)
