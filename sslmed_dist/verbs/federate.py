"""``sslmed federate``: the federation, and the encoders that it is compared with.

An *arm* is one way to get an encoder for a site: ``federated``, ``local`` (trained on the site's own data alone),
``pooled`` (trained on all data together), ``random`` (untrained), and floors such as ``raw_pixels`` and ``metadata``.
Every trained arm takes the same number of optimiser steps from the same first weights.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from sslmed_dist.config import Config
from sslmed_dist.data.dataset import Dataset
from sslmed_dist.downstream import ALL_SITES, FLOORS, Row, compared_rows, pooled, pooled_rows, rows_of, write_rows
from sslmed_dist.downstream.predictions import Predictions
from sslmed_dist.downstream.rows import write_cases
from sslmed_dist.drivers import launcher
from sslmed_dist.federation.local_round import own_tensors
from sslmed_dist.federation.sites import (
    Site,
    everything,
    expected_sites,
    federated_section,
    resolve_for_all,
    simulated_sites,
    site_names,
    training_settings,
)
from sslmed_dist.training import build, job, pretrained
from sslmed_dist.training.check import check_lines, check_training
from sslmed_dist.training.stopping import finish
from sslmed_dist.verbs import pictures
from sslmed_dist.verbs.evaluate import arm_predictions, on_phantoms

BASELINES = ("random", "local", "pooled")


def prepare(settings: Config) -> tuple[Config, list[Site]]:
    """Training settings in which the values that the data decides are filled in, and the simulated sites."""
    settings = training_settings(settings)
    sites = simulated_sites(settings)
    return resolve_for_all(settings, sites), sites


def check(settings: Config) -> list[str]:
    """Validate the federation and describe it in lines; some steps are tried on all data together, nothing is
    written. Memory and time are those of one arm, trained in one process."""
    resolved, sites = prepare(settings)
    fed = federated_section(resolved)
    lines = check_lines(resolved, everything(sites))
    lines.append(
        f"rounds    {fed.rounds} x {fed.local_epochs} local epoch(s), strategy {fed.strategy['name']}, {fed.runtime}"
    )
    lines.append("arms      memory and time above are those of one arm trained in one process, on all data together")
    for site in sites:
        counts = f"{len(site.train)} train, {len(site.val)} validation, {len(site.test)} held out"
        lines.append(f"site      {site.name}: {counts}")
    return lines


def run(settings: Config, resume: str = "auto") -> Path:
    """Train and measure all arms; what was interrupted goes on where it stopped. Returns the run folder. For simulated
    sites only: real hospitals evaluate themselves."""
    resolved, sites = prepare(settings)
    check_training(resolved, everything(sites))  # what cannot work should end here, not at every site
    launcher.run(resolved, resume)
    train_arms(resolved, sites)
    dataset = evaluation_data(resolved, sites)
    measure(resolved, sites, dataset)
    if resolved.evaluate.pictures:  # of the first site's images only
        network = encoder_of("federated", sites[0].name, resolved)
        pictures.draw(resolved, sites[0].pretrain, network, resolved.folder)
        test = parts_of(sites[0], dataset, not resolved.evaluate.data)["test"]
        pictures.draw_segmented(resolved, network, dataset, test, resolved.folder)
    return resolved.folder


def train_arms(settings: Config, sites: list[Site]) -> None:
    """The local and pooled arms, each a run folder of its own under ``arms/``. ``Stopped`` where one was stopped; the
    same command goes on with it."""
    compare = federated_section(settings).compare
    if "local" in compare:
        for site in sites:
            name = f"local-{site.name}"
            arm = job.train(settings, dataset=site.pretrain, folder=settings.folder / "arms" / name, title=name)
            finish(arm.state.stopped)
    if "pooled" in compare:
        folder = settings.folder / "arms" / "pooled"
        finish(job.train(settings, dataset=everything(sites), folder=folder, title="pooled").state.stopped)


def encoder_of(arm: str, site: str, settings: Config) -> nn.Module:
    """The encoder of one arm as one site would use it."""
    folder = settings.folder
    if arm in FLOORS:
        return FLOORS[arm]()
    if arm == "random":
        return pretrained.untrained(settings)
    if arm == "federated":
        encoder = pretrained.load(folder).encoder
        own = own_tensors(settings, folder / "sites" / site)  # what the site did not share completes the encoder
        state = {key.removeprefix("encoder."): value for key, value in own.items() if key.startswith("encoder.")}
        encoder.load_state_dict(encoder.state_dict() | state)
        return encoder
    sources = {"pooled": folder / "arms" / "pooled", "local": folder / "arms" / f"local-{site}"}
    return pretrained.load(sources[arm]).encoder


def parts_of(site: Site, dataset: Dataset, same: bool) -> Mapping[str, Tensor]:
    """The site's train, val and test parts as int64 positions in the evaluation data ``dataset``.

    ``same``: that is the data which the sites pretrain on, so samples are matched by their ids. Otherwise it is another
    cut of it (slices of the same exams), so samples are matched by their patients.
    """
    parts = {}
    for name in ("train", "val", "test"):
        positions: Tensor = getattr(site, name)  # in the site's own dataset
        site_keys, dataset_keys = (site.dataset.ids, dataset.ids) if same else (site.dataset.groups, dataset.groups)
        # The rows of ``dataset`` whose id, or patient, belongs to this part of the site.
        parts[name] = torch.nonzero(torch.isin(dataset_keys, site_keys[positions])).flatten()
    return parts


def evaluation_data(settings: Config, sites: list[Site]) -> Dataset:
    """What the arms are measured on: the pretraining data, or another cut of it where ``evaluate.data`` says so."""
    overrides = settings.evaluate.data
    if not overrides:
        return sites[0].pretrain.dataset
    return build.load_data(settings, federated_section(settings).pool, overrides)


def measure(settings: Config, sites: list[Site], dataset: Dataset) -> Path:
    """Write ``evaluate/sites.json`` and return the file. Its rows are, in this order: every arm at every site, measured
    on the site's own held-out part of the evaluation data ``dataset``; every arm over the samples of all sites; and the
    paired differences of the federated encoder with each other arm, over all sites. Single cases go to
    ``evaluate/sites-cases.csv``."""
    fed, seed = federated_section(settings), settings.run.seed
    arms = [*(arm for arm in (*FLOORS, *BASELINES) if arm in fed.compare), "federated"]
    rows: list[Row] = []
    # By arm: for each site, in the order of ``sites``, the test predictions of every evaluator.
    predictions: dict[str, list[dict[str, Predictions]]] = {arm: [] for arm in arms}
    parts = {site.name: parts_of(site, dataset, not settings.evaluate.data) for site in sites}
    for site in sites:
        for arm in arms:
            network = encoder_of(arm, site.name, settings)
            predictions[arm].append(arm_predictions(settings, network, dataset, parts[site.name], arm))
            rows += rows_of(predictions[arm][-1], arm=arm, site=site.name, seed=seed)
    for arm in arms:
        rows += pooled_rows(predictions[arm], arm=arm, seed=seed)
    for arm in arms[:-1]:  # all but "federated" itself
        pair = (pooled(predictions["federated"]), pooled(predictions[arm]))
        rows += compared_rows(*pair, arms=("federated", arm), site=ALL_SITES, seed=seed)
    # How many samples of the evaluation data each part of each site has, for the reader of the file.
    sizes = {site: {name: len(positions) for name, positions in own.items()} for site, own in parts.items()}
    out = results(settings.folder)
    by_arm_and_site = {
        f"{arm}, {site.name}": site_predictions
        for arm in arms
        for site, site_predictions in zip(sites, predictions[arm], strict=True)
    }
    write_cases(out.with_name("sites-cases.csv"), by_arm_and_site)
    left_out = [name for name in site_names(fed, expected_sites(fed)) if name not in sizes]  # too small
    write_rows(out, rows, sites=sizes, left_out=left_out, phantom_data=on_phantoms(settings))
    return out


def results(folder: Path) -> Path:
    """The file of the figures of the federation in ``folder``."""
    return folder / "evaluate" / "sites.json"
