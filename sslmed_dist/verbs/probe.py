"""``sslmed probe``: what an encoder gives away, the site of an image and whether it was trained on, beside floors.

Both are measured where all data is on one machine: a federation of simulated sites, or a run on pooled data. Nothing
here knows of noise; a run with it is probed as any other.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sslmed_dist import config, outputs
from sslmed_dist.config import Config
from sslmed_dist.data.dataset import Dataset
from sslmed_dist.downstream import ALL_SITES, RawPixels, Row, compared_rows, pooled, rows_of, write_rows
from sslmed_dist.downstream import membership as attack
from sslmed_dist.downstream import site_probe as naming
from sslmed_dist.downstream.features import RAW_PIXELS, SPLITS
from sslmed_dist.downstream.predictions import Predictions
from sslmed_dist.federation.figures import FEDERATED
from sslmed_dist.federation.site_figures import LOCAL
from sslmed_dist.federation.sites import settings_for, simulated_sites
from sslmed_dist.printable import note
from sslmed_dist.training import build, pretrained
from sslmed_dist.training.evaluation_data import evaluation_splits, overridden
from sslmed_dist.verbs.evaluate import on_phantoms
from sslmed_dist.verbs.federate import encoder_of, local_folder

KINDS = ("sites", "membership")
VIEWS = 4  # random views of an image that the membership attack compares
Made = Callable[[], nn.Module]


@dataclass(frozen=True)
class Part:
    """One site, or a run without sites: its name, its data, the int64 positions of train, val and test in it, and the
    encoders by arm. What the encoder was trained on is train and val."""

    name: str
    dataset: Dataset
    positions: Mapping[str, Tensor]
    encoders: Mapping[str, Made]


@dataclass(frozen=True)
class Subject:
    """A run: its settings, its sites (or the one part that it has), and the name of the arm that is looked at."""

    settings: Config
    parts: Sequence[Part]
    arm: str

    @property
    def how(self) -> dict[str, Any]:
        """Device and seed."""
        return {"device": build.choose_device(self.settings), "seed": self.settings.run.seed}


def probe(folder: Path, what: str | None = None, which: str = "last", overrides: Sequence[str] = ()) -> list[Path]:
    """Write ``evaluate/probe-sites.json`` and ``evaluate/probe-membership.json`` of the run in ``folder``, or the one
    that ``what`` names; returns the files. Where nothing is said, sites are left out of a run that has none.
    ``ValueError`` where there is nothing to measure, or something else than a result lies in a file's place."""
    subject = subject_of(folder, which, overrides)
    kinds = [kind for kind in KINDS if what in (None, kind)]
    if what is None and len(subject.parts) < 2:
        note("the run knows of no sites: only membership is measured")
        kinds = ["membership"]
    ending = "" if which == "last" else f"-{which}"
    written = []
    for kind in kinds:
        out = folder / "evaluate" / f"probe-{kind}{ending}.json"
        outputs.require_ours(out, outputs.is_probe)
        rows, counts = (site_rows if kind == "sites" else membership_rows)(subject)
        facts = {"probe": kind, "which": which, "samples": counts, "phantom_data": on_phantoms(subject.settings)}
        write_rows(out, rows, **facts)
        written.append(out)
    return written


def subject_of(folder: Path, which: str, overrides: Sequence[str]) -> Subject:
    """The run in ``folder``. ``ValueError`` where there is none."""
    if not (folder / "config.yaml").is_file():
        raise ValueError(f"{folder}: expected a run folder with config.yaml")
    settings = overridden(config.load(folder / "config.yaml"), overrides)
    floors: dict[str, Made] = {RAW_PIXELS: RawPixels, "random": lambda: pretrained.untrained(settings)}
    if settings.federated is None:
        dataset, positions = evaluation_splits(settings)
        trained = pretrained.load(folder, which)
        arms = {**floors, "encoder": lambda: trained.encoder}
        return Subject(settings, parts_by_site(dataset, positions, arms), "encoder")
    parts = []
    for site in simulated_sites(settings):
        own = settings_for(settings, site.name)
        arms = dict(floors)
        places = {LOCAL: local_folder(folder, site.name), "pooled": folder / "arms" / "pooled", FEDERATED: folder}
        for arm in (arm for arm, place in places.items() if place.is_dir()):
            arms[arm] = partial(encoder_of, arm, site.name, own, folder, which)
        parts.append(Part(site.name, site.dataset, {name: getattr(site, name) for name in SPLITS}, arms))
    return Subject(settings, parts, FEDERATED)


def parts_by_site(dataset: Dataset, positions: Mapping[str, Tensor], arms: Mapping[str, Made]) -> list[Part]:
    """The data of a run that is no federation, by the sites that it knows; one part where it knows none, or where one
    of them lacks a split."""
    whole = [Part("run", dataset, positions, arms)]
    if dataset.sites is None:
        return whole
    found = []
    for number in torch.unique(dataset.sites).tolist():
        own = {name: part[dataset.sites[part] == number] for name, part in positions.items()}
        found.append(Part(f"site-{number}", dataset, own, arms))
    return found if all(len(own) for part in found for own in part.positions.values()) else whole


def site_rows(subject: Subject) -> tuple[list[Row], dict[str, Any]]:
    """Rows of every arm that is one encoder, how well a linear probe names the site, and the difference to the random
    encoder. Encoders that differ from site to site name it by themselves: they are left out, which is said."""
    arms = dict.fromkeys(arm for part in subject.parts for arm in part.encoders)
    names: dict[str, None] = dict.fromkeys(arm for arm in arms if one_encoder(subject.parts, arm))
    for arm in arms.keys() - names.keys() - {LOCAL}:
        note(
            f"{arm}: each site's encoder differs (what it does not share stays there), so its features name the site "
            "by themselves: left out of this question"
        )
    if all(naming.knows_labels(part.dataset) for part in subject.parts):
        names = {naming.LABELS: None, **names}
    found = {}
    for arm in names:
        parts = {}
        for number, part in enumerate(subject.parts):
            encoder = naming.Labels() if arm == naming.LABELS else part.encoders[arm]().to(subject.how["device"])
            views = build.standard_views(subject.settings, part.dataset).to(subject.how["device"])
            parts[part.name] = naming.site_features(
                encoder, part.dataset, part.positions, number, views=views, **subject.how
            )
        found[arm] = {naming.TITLE: naming.predict_sites(parts, seed=subject.settings.run.seed)}
    counts = {part.name: {name: len(own) for name, own in part.positions.items()} for part in subject.parts}
    return rows(subject, found), counts


def one_encoder(parts: Sequence[Part], arm: str) -> bool:
    """Whether all sites use the same encoder in this arm."""
    first, *others = (part.encoders[arm]().state_dict() for part in parts)
    return all(torch.equal(own[name].cpu(), first[name].cpu()) for own in others for name in first)


def membership_rows(subject: Subject) -> tuple[list[Row], dict[str, Any]]:
    """Rows of every arm at every site and over all, how well an attacker tells members, and the difference to the
    random encoder, which has no members."""
    found: dict[str, dict[str, Predictions]] = {}
    by_site: list[Row] = []
    seed = subject.settings.run.seed
    for arm in subject.parts[0].encoders:
        each = []
        for number, part in enumerate(subject.parts):
            predictions = {attack.TITLE: attacked(subject, part, number, part.encoders[arm]())}
            each.append(predictions)
            if len(subject.parts) > 1:
                by_site += rows_of(predictions, arm=arm, site=part.name, seed=seed)
        found[arm] = pooled(each)
    counts = {
        part.name: {
            "members": sum(len(part.positions[name]) for name in ("train", "val")),
            "others": len(part.positions["test"]),
        }
        for part in subject.parts
    }
    return by_site + rows(subject, found), counts


def attacked(subject: Subject, part: Part, number: int, encoder: nn.Module) -> Predictions:
    """The attack on one encoder with one part's members and held-out samples."""
    dataset, device = part.dataset, subject.how["device"]
    views, network = build.build_views(subject.settings, dataset).to(device), encoder.to(device)
    sides = []
    for positions in (torch.cat([part.positions["train"], part.positions["val"]]), part.positions["test"]):
        scores = attack.similarity(network, dataset, positions, views=views, count=VIEWS, **subject.how)
        groups = number * naming.GROUP_ROOM + dataset.groups.cpu()[positions]
        sides.append((scores, groups, dataset.ids.cpu()[positions]))
    return attack.membership(*sides)


def rows(subject: Subject, found: Mapping[str, Mapping[str, Predictions]]) -> list[Row]:
    """The rows of all arms over all sites, and the paired difference of the arm that is looked at and the random
    encoder."""
    seed = subject.settings.run.seed
    written = [row for arm, by_title in found.items() for row in rows_of(by_title, arm=arm, site=ALL_SITES, seed=seed)]
    if subject.arm not in found:
        return written
    pair = (found[subject.arm], found["random"])
    return written + compared_rows(*pair, arms=(subject.arm, "random"), site=ALL_SITES, seed=seed)
