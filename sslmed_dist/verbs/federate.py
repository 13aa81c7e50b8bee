"""``sslmed federate``: the federation, and the encoders that it is compared with.

An *arm* is one way to get an encoder for a site: ``federated``, ``local`` (trained on the site's own data alone),
``pooled`` (trained on all data together), ``random`` (untrained), and floors such as ``raw_pixels`` and ``metadata``.
Every trained arm takes the same number of optimiser steps from the same first weights.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn

from sslmed_dist import checkpoint
from sslmed_dist.config import Config
from sslmed_dist.data.dataset import Dataset
from sslmed_dist.downstream import ALL_SITES, FLOORS, Row, compared_rows, pooled, pooled_rows, rows_of, write_rows
from sslmed_dist.downstream.predictions import Predictions
from sslmed_dist.downstream.rows import write_cases
from sslmed_dist.downstream.site_probe import GROUP_ROOM
from sslmed_dist.drivers import launcher
from sslmed_dist.federation import accountant, health, privacy
from sslmed_dist.federation.figures import BEST, FEDERATED
from sslmed_dist.federation.local_round import first_sent, own_tensors
from sslmed_dist.federation.site_figures import (
    LOCAL,
    arms_at,
    evaluation_data,
    federated_encoder,
    parts_of,
    predictions_at,
)
from sslmed_dist.federation.sites import (
    Site,
    everything,
    expected_sites,
    federated_section,
    has_own_data,
    resolve_for_all,
    settings_for,
    simulated_sites,
    site_names,
    training_settings,
)
from sslmed_dist.json_files import read_object
from sslmed_dist.printable import plural
from sslmed_dist.training import job, pretrained
from sslmed_dist.training.check import check_lines, check_training
from sslmed_dist.training.stopping import Stop, finish
from sslmed_dist.verbs import pictures
from sslmed_dist.verbs.evaluate import on_phantoms

BASELINES = ("random", "local", "pooled")


def prepare(settings: Config) -> tuple[Config, list[Site]]:
    """Training settings in which the values that the data decides are filled in, and the simulated sites."""
    settings = training_settings(settings)
    sites = simulated_sites(settings)
    resolved = resolve_for_all(settings, sites)
    if federated_section(resolved).privacy is not None:
        privacy.require_learned(first_sent(resolved))
    return resolved, sites


def check(settings: Config) -> list[str]:
    """Validate the federation and describe it in lines; some steps are tried on all data together, nothing is
    written. Memory and time are those of one arm, trained in one process."""
    resolved, sites = prepare(settings)
    fed = federated_section(resolved)
    lines = check_lines(resolved, everything(sites))
    lines.append(
        f"rounds    {fed.rounds} x {plural(fed.local_epochs, 'local epoch')}, "
        f"strategy {fed.strategy['name']}, {fed.runtime}"
    )
    if fed.privacy is not None:
        words = privacy.words(fed.rounds * accountant.rho(fed.privacy.noise_multiplier), fed.privacy.delta)
        lines.append(f"privacy   {words}, after all rounds; of the model, not of what is measured here")
    if fed.evaluate:
        lines.append(f"figures   after the last round each site measures {', '.join(arms_at(resolved))}")
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
    measure(resolved, sites)
    if resolved.evaluate.pictures:  # of the first site's images only
        first = settings_for(resolved, sites[0].name)
        network, dataset = encoder_of(FEDERATED, sites[0].name, first), evaluation_data(first, sites[0])
        pictures.draw(first, sites[0].pretrain, network, resolved.folder)
        test = parts_of(first, sites[0], dataset)["test"]
        pictures.draw_segmented(first, network, dataset, test, resolved.folder)
    return resolved.folder


def train_arms(settings: Config, sites: list[Site]) -> None:
    """The local and pooled arms, each a run folder of its own under ``arms/``. ``Stopped`` where one was stopped; the
    same command goes on with it."""
    compare, folder = federated_section(settings).compare, settings.folder
    alone: list[tuple[str, Path, Dataset]] = [
        (f"local-{site.name}", local_folder(folder, site.name), site.pretrain) for site in sites
    ]
    arms = alone if "local" in compare else []
    if "pooled" in compare:
        arms = [*arms, ("pooled", folder / "arms" / "pooled", everything(sites))]
    with Stop.anew(folder) as stop:
        for title, own, dataset in arms:
            arm = job.train(settings, dataset=dataset, folder=own, title=title, within=stop)
            finish(arm.state.stopped or stop())


def encoder_of(arm: str, site: str, settings: Config, folder: Path | None = None, last: str = "last") -> nn.Module:
    """The encoder of one arm as one site would use it, of the run in ``folder`` (default ``settings.folder``). ``last``
    is the checkpoint that counts as the federation's last one."""
    folder = folder or settings.folder
    if arm in FLOORS:
        return FLOORS[arm]()
    if arm == "random":
        return pretrained.untrained(settings)
    if arm in (FEDERATED, BEST):
        which = last if arm == FEDERATED else f"round_{best_round(folder)}"
        shared = pretrained.load(folder, which).encoder.state_dict()
        own = own_tensors(settings, folder / "sites" / site)  # what the site did not share completes the encoder
        return federated_encoder(settings, {f"encoder.{key}": value for key, value in shared.items()}, own)
    source = folder / "arms" / "pooled" if arm == "pooled" else local_folder(folder, site)
    return pretrained.load(source).encoder


def local_folder(folder: Path, site: str) -> Path:
    """The run folder of a site's own encoder: where the site trained one itself (``federated.evaluate``), that one."""
    own = sorted((folder / "sites" / site).rglob(f"{LOCAL}/config.yaml"))
    return own[0].parent if own else folder / "arms" / f"local-{site}"


def best_round(folder: Path) -> int | None:
    """The best round by ``health.RULE``, where the server chose one and it is not the last."""
    written = results(folder)
    best = read_object(written).get("best_round") if written.exists() else None
    return best if isinstance(best, int) and best != last_number(folder) else None


def last_number(folder: Path) -> int:
    """The last round."""
    return max(checkpoint.numbered(folder / "checkpoints", "round"))


def measure(settings: Config, sites: list[Site]) -> Path:
    """Write ``evaluate/sites.json`` and return the file. Its rows are, in this order: every arm at every site, measured
    on the site's own held-out part (``federation.site_figures``); every arm over the samples of all sites; and the
    paired differences of the federated encoder with each other arm, over all sites. Single cases go to
    ``evaluate/sites-cases.csv``."""
    fed, seed, best = federated_section(settings), settings.run.seed, best_round(settings.folder)
    arms: list[str] = [arm for arm in (*FLOORS, *BASELINES) if arm in fed.compare]
    arms += [FEDERATED, *([BEST] if best else [])]
    rows: list[Row] = []
    # By arm: for each site, in the order of ``sites``, the test predictions of every evaluator.
    predictions: dict[str, list[dict[str, Predictions]]] = {arm: [] for arm in arms}
    sizes, dataset = {}, None
    for number, site in enumerate(sites):
        own = settings_for(settings, site.name)
        if dataset is None or has_own_data(settings):  # one dataset was dealt to all, or each has its own
            dataset = evaluation_data(own, site)
        encoders = {arm: partial(encoder_of, arm, site.name, own) for arm in arms}
        for arm, found in predictions_at(own, site, dataset, encoders).items():
            # Sites with data of their own number their patients each from 0: number 5 of two sites is two patients.
            predictions[arm].append(of_site(found, number) if has_own_data(settings) else found)
            rows += rows_of(found, arm=arm, site=site.name, seed=seed)
        # How many samples of the evaluation data each part of the site has, for the reader of the file.
        sizes[site.name] = {name: len(part) for name, part in parts_of(own, site, dataset).items()}
    for arm in arms:
        rows += pooled_rows(predictions[arm], arm=arm, seed=seed)
    for arm in (arm for arm in arms if arm != FEDERATED):
        pair = (pooled(predictions[FEDERATED]), pooled(predictions[arm]))
        rows += compared_rows(*pair, arms=(FEDERATED, arm), site=ALL_SITES, seed=seed)
    out = results(settings.folder)
    by_arm_and_site = {
        f"{arm}, {site.name}": site_predictions
        for arm in arms
        for site, site_predictions in zip(sites, predictions[arm], strict=True)
    }
    write_cases(out.with_name("sites-cases.csv"), by_arm_and_site)
    left_out = [name for name in site_names(fed, expected_sites(fed)) if name not in sizes]  # too small
    chosen = {"best_round": best, "rule": health.RULE} if best else {}
    write_rows(out, rows, sites=sizes, left_out=left_out, phantom_data=on_phantoms(settings), **chosen)
    return out


def of_site(found: Mapping[str, Predictions], number: int) -> dict[str, Predictions]:
    """Predictions whose patients are those of site ``number`` alone."""
    return {title: replace(of, groups=of.groups + number * GROUP_ROOM) for title, of in found.items()}


def results(folder: Path) -> Path:
    """The file of the figures of the federation in ``folder``."""
    return folder / "evaluate" / "sites.json"
