"""``sslmed federate``: the federation, and beside it what each site would have alone, what pooling all data would give,
and what an untrained encoder gives. Every arm takes the same number of optimiser steps from the same first weights.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from sslmed_dist.config import Config
from sslmed_dist.data.dataset import Dataset, Subset
from sslmed_dist.downstream import ALL_SITES, FLOORS, Row, compared_rows, pooled, pooled_rows, rows_of, write_rows
from sslmed_dist.downstream.predictions import Predictions
from sslmed_dist.downstream.rows import write_cases
from sslmed_dist.drivers import launcher
from sslmed_dist.federation.sites import Site, federated_section, simulated_sites, training_settings
from sslmed_dist.training import build, job, pretrained
from sslmed_dist.training.check import check_training
from sslmed_dist.verbs import pictures
from sslmed_dist.verbs.evaluate import arm_predictions

BASELINES = ("random", "local", "pooled")


def prepare(settings: Config) -> tuple[Config, list[Site]]:
    """Training settings with everything resolved, and the simulated sites."""
    settings = training_settings(settings)
    sites = simulated_sites(settings)
    return build.resolve(settings, everything(sites)), sites


def everything(sites: list[Site]) -> Subset:
    """What all sites pretrain on, together: the pooled arm's data."""
    base, positions = sites[0].pretrain.dataset, [site.pretrain.positions for site in sites]
    return Subset(base, torch.cat(positions).sort().values)


def check(settings: Config) -> list[str]:
    """Validate and describe the federation without training."""
    resolved, sites = prepare(settings)
    fed = federated_section(resolved)
    lines = check_training(resolved, everything(sites)).lines
    lines.append(
        f"rounds    {fed.rounds} x {fed.local_epochs} local epoch(s), strategy {fed.strategy['name']}, {fed.runtime}"
    )
    for site in sites:
        counts = f"{len(site.train)} train, {len(site.val)} validation, {len(site.test)} held out"
        lines.append(f"site      {site.name}: {counts}")
    return lines


def run(settings: Config, resume: str = "auto") -> Path:
    """Everything, resumable at every point; returns the run folder. Simulated sites only: real hospitals evaluate
    themselves."""
    resolved, sites = prepare(settings)
    check_training(resolved, everything(sites))  # what cannot work should end here, not at every site
    launcher.run(resolved, resume)
    train_arms(resolved, sites)
    measure(resolved, sites)
    if resolved.evaluate.pictures:
        pictures.draw(resolved, sites[0].pretrain, resolved.folder)
        dataset = evaluation_data(resolved, sites)
        test = parts_of(sites[0], dataset, not resolved.evaluate.data)["test"]
        network = encoder_of("federated", sites[0].name, resolved)
        pictures.draw_segmented(resolved, network, dataset, test, resolved.folder)
    return resolved.folder


def train_arms(settings: Config, sites: list[Site]) -> None:
    """The local and pooled arms, each a run folder of its own under ``arms/``."""
    compare = federated_section(settings).compare
    if "local" in compare:
        for site in sites:
            name = f"local-{site.name}"
            finish(job.train(settings, dataset=site.pretrain, folder=settings.folder / "arms" / name, title=name))
    if "pooled" in compare:
        finish(
            job.train(settings, dataset=everything(sites), folder=settings.folder / "arms" / "pooled", title="pooled")
        )


def finish(done: job.Job) -> None:
    """An arm that was stopped ends the comparison; the next run goes on with it."""
    if done.state.stopped:
        raise SystemExit("stopped; run the same command again to go on")


def encoder_of(arm: str, site: str, settings: Config) -> nn.Module:
    """The encoder of one arm as one site would use it."""
    folder = settings.folder
    if arm in FLOORS:
        return FLOORS[arm]()
    if arm == "random":
        return pretrained.untrained(settings)
    sources = {"federated": folder, "pooled": folder / "arms" / "pooled", "local": folder / "arms" / f"local-{site}"}
    return pretrained.load(sources[arm]).encoder


def parts_of(site: Site, dataset: Dataset, same: bool) -> Mapping[str, Tensor]:
    """Positions in the evaluation data of one site's parts: by sample id where it is the training data, by patient
    where it is another cut of it (slices of the same exams)."""
    found = {}
    for name in ("train", "val", "test"):
        positions: Tensor = getattr(site, name)
        mine, all_of = (site.dataset.ids, dataset.ids) if same else (site.dataset.groups, dataset.groups)
        found[name] = torch.nonzero(torch.isin(all_of, mine[positions])).flatten()
    return found


def evaluation_data(settings: Config, sites: list[Site]) -> Dataset:
    """What the arms are measured on: the pretraining data, or another cut of it where ``evaluate.data`` says so."""
    overrides = settings.evaluate.data
    if not overrides:
        return sites[0].pretrain.dataset
    return build.load_data(settings, federated_section(settings).pool, overrides)


def measure(settings: Config, sites: list[Site]) -> Path:
    """Every arm at every site on the site's own held-out part, pooled rows over all sites, and paired differences of
    the federated encoder with the others: ``evaluate/sites.json``."""
    fed, seed = federated_section(settings), settings.run.seed
    overrides, dataset = settings.evaluate.data, evaluation_data(settings, sites)
    arms = [*(arm for arm in (*FLOORS, *BASELINES) if arm in fed.compare), "federated"]
    rows: list[Row] = []
    made: dict[str, list[dict[str, Predictions]]] = {arm: [] for arm in arms}
    for site in sites:
        parts = parts_of(site, dataset, not overrides)
        for arm in arms:
            network = encoder_of(arm, site.name, settings)
            made[arm].append(arm_predictions(settings, network, dataset, parts, arm))
            rows += rows_of(made[arm][-1], arm=arm, site=site.name, seed=seed)
    for arm in arms:
        rows += pooled_rows(made[arm], arm=arm, seed=seed)
    for arm in arms[:-1]:
        pair = (pooled(made["federated"]), pooled(made[arm]))
        rows += compared_rows(*pair, arms=("federated", arm), site=ALL_SITES, seed=seed)
    sizes = {site.name: {name: len(p) for name, p in parts_of(site, dataset, not overrides).items()} for site in sites}
    out = settings.folder / "evaluate" / "sites.json"
    cases = {f"{arm}, {site.name}": found for arm in arms for site, found in zip(sites, made[arm], strict=True)}
    write_cases(out.with_name("sites-cases.csv"), cases)
    write_rows(out, rows, sites=sizes)
    return out
