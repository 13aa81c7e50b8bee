"""The sites of a federation: how data is dealt to simulated ones, and how each site's data is split into parts.

This folder is what a federation is, apart from the network. The Flower apps (``clients``, ``server``) are thin around
it, and tests run it without Flower.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sslmed_dist import randomness, registry
from sslmed_dist.config import Config, Federated, replace
from sslmed_dist.data import PARTITIONS
from sslmed_dist.data.dataset import Dataset, Subset
from sslmed_dist.data.joined import Joined
from sslmed_dist.data.partition import hold_out
from sslmed_dist.downstream import EVALUATORS
from sslmed_dist.federation import secure_sum, strategies
from sslmed_dist.federation.messages import SiteError
from sslmed_dist.printable import note, plural
from sslmed_dist.training import build


def federated_section(settings: Config) -> Federated:
    """The ``federated`` section; ``ValueError`` if the configuration has none."""
    if settings.federated is None:
        raise ValueError(f"{settings.run.name}: no 'federated' section; it says rounds, partition and strategy")
    return settings.federated


def training_settings(settings: Config) -> Config:
    """The settings under which every arm of the comparison trains (federated, local, pooled). They ask for rounds x
    local epochs as the number of epochs, so that the schedule, the views and the number of optimiser steps are the same
    in all arms. ``ValueError`` where ``plan.steps_per_epoch`` is missing, strategy or secure sum do not fit, or
    ``data.subset`` would be of no effect."""
    fed = federated_section(settings)
    if settings.data.get("subset") is not None and fed.pool != "train":
        raise ValueError(
            f"data.subset: is a part of the split train, and federated.pool deals the split {fed.pool!r} whole; "
            "allowed: federated.pool=train, or no data.subset"
        )
    if settings.plan.steps_per_epoch is None:
        raise ValueError(
            "plan.steps_per_epoch: missing; a federation needs the optimiser steps of a local epoch stated (an integer "
            ">= 1), so that sites of different sizes, and all arms of the comparison, take the same number of steps"
        )
    if settings.run.continue_from is not None:
        raise ValueError("run.continue_from: a federation shares weights alone; run.start_from begins with an encoder")
    strategies.check(settings)
    if fed.evaluate:
        require_protocols(settings)
    if fed.secure is not None:
        secure_sum.check(fed, expected_sites(fed))
    return replace(settings, plan={"epochs": fed.rounds * fed.local_epochs}, driver="local")


def require_protocols(settings: Config) -> None:
    """``ValueError`` where ``federated.evaluate`` asks for figures that no site could give: there is no protocol, or
    one that measures more than frozen features."""
    for leaf in settings.evaluate.protocols:
        if hasattr(registry.split(EVALUATORS, leaf, "evaluate.protocols")[0], "segment"):
            able = ", ".join(sorted(name for name, kind in EVALUATORS.items() if not hasattr(kind, "segment")))
            raise ValueError(f"federated.evaluate: sites do not measure by {leaf['name']}; allowed: {able}")
    if not settings.evaluate.protocols:
        raise ValueError("federated.evaluate: evaluate.protocols is empty, so there is nothing to measure")


def expected_sites(fed: Federated) -> int:
    """How many sites the federation has: as many as it has names, else ``federated.partition.count``. ``ValueError``
    where neither says it, or where there are fewer than ``federated.quorum``."""
    count = fed.partition.get("count") if fed.site_names is None else len(fed.site_names)
    if not isinstance(count, int):
        raise ValueError("federated.partition.count: missing; it is the number of sites")
    if fed.quorum > count:
        raise ValueError(f"federated.quorum: {fed.quorum} replies needed, but there are {plural(count, 'site')}")
    return count


@dataclass(frozen=True)
class Site:
    """One hospital: its name, its data, and its three parts as int64 positions in ``dataset``.

    ``pretrain`` is ``train`` and ``val`` together, because pretraining uses no labels. ``val`` chooses hyper-parameters
    of the evaluation. ``test`` is held out: it is neither pretrained on, nor does it choose anything.
    """

    name: str
    dataset: Dataset
    train: Tensor
    val: Tensor
    test: Tensor

    @property
    def pretrain(self) -> Subset:
        """What pretraining may see, in the order of ``dataset``."""
        return Subset(self.dataset, torch.cat([self.train, self.val]).sort().values)


def site_names(fed: Federated, count: int) -> list[str]:
    """The sites' names, ``site-0`` ... unless ``federated.site_names`` gives them."""
    if fed.site_names is None:
        return [f"site-{i}" for i in range(count)]
    if len(set(fed.site_names)) != count:
        raise ValueError(f"federated.site_names: {len(set(fed.site_names))} different names for {count} sites")
    return list(fed.site_names)


class TooSmall(SiteError):
    """A site whose data are too few to train on and to hold a part out."""


def split_site(name: str, dataset: Dataset, settings: Config) -> Site:
    """Split one site's data into train, val and test: by ``federated.held_out`` and ``federated.validation`` as
    fractions, or by numbers of patients where ``federated.held_out_groups`` is set. No patient is in two parts.
    ``TooSmall`` where one of the parts would be empty, or what is left to train on is less than one batch."""
    try:
        train, val, test = three_parts(dataset, settings)
    except ValueError as error:
        raise TooSmall(f"{name}: {error}") from None
    rest = len(train) + len(val)
    rows, batch = rest * settings.plan.draws * settings.plan.slices_per_exam, settings.plan.batch_size
    if rows < batch:  # an epoch would have no whole batch
        raise TooSmall(
            f"{name}: {rest} training samples x {settings.plan.draws} draws, fewer than one batch of {batch}; "
            "allowed: a smaller plan.batch_size, fewer sites, or more plan.draws"
        )
    return Site(name, dataset, train, val, test)


def three_parts(dataset: Dataset, settings: Config) -> tuple[Tensor, Tensor, Tensor]:
    """Train, val and test of ``split_site``. ``ValueError`` where one would be empty."""
    fed = federated_section(settings)
    by_patient = fed.held_out_groups is not None
    # First the test part is held out, then, from the rest, the validation part.
    rest, test = hold_out(
        labels=dataset.labels,
        groups=dataset.groups,
        ids=dataset.ids,
        fraction=None if by_patient else fed.held_out,
        groups_per_site=fed.held_out_groups,
        seed=randomness.key(fed.seed, "held-out"),
    )
    train, val = hold_out(
        labels=dataset.labels[rest],
        groups=dataset.groups[rest],
        ids=dataset.ids[rest],
        fraction=None if by_patient else fed.validation,
        groups_per_site=1 if by_patient else None,
        seed=randomness.key(fed.seed, "validation"),
    )
    # ``train`` and ``val`` are positions in ``rest``; a site wants positions in its dataset.
    return rest[train], rest[val], test


def simulated_sites(settings: Config) -> list[Site]:
    """Deal the split ``federated.pool`` of one dataset to sites, by ``federated.partition``. Sample ids stay those of
    the whole dataset. Sites that are too small are left out with a line. ``TooSmall`` where fewer than
    ``federated.quorum`` are left: it says what each of the others lacks. Where ``data.root`` holds ``{site}``, nothing
    is dealt: every site has its own data, as a hospital has."""
    dealt = own_sites(settings) if has_own_data(settings) else dealt_sites(settings)
    if dealt.excluded and len(dealt.usable) < federated_section(settings).quorum:
        raise TooSmall("; ".join(dealt.excluded))
    for line in dealt.excluded:
        note(f"left out: {line}")
    return dealt.usable


@dataclass(frozen=True)
class Dealt:
    """The sites that one dataset was dealt to. In the place of a site that is too small stands why."""

    sites: tuple[Site | TooSmall, ...]

    @property
    def usable(self) -> list[Site]:
        """The sites that are left, in their order."""
        return [site for site in self.sites if isinstance(site, Site)]

    @property
    def excluded(self) -> list[str]:
        """A line for each of the others."""
        return [str(site) for site in self.sites if isinstance(site, TooSmall)]

    def site(self, number: int) -> Site:
        """The site ``number``, counted from 0 with those that are left out. ``TooSmall`` for one of these."""
        site = self.sites[number]
        if isinstance(site, TooSmall):
            raise site
        return site


def dealt_sites(settings: Config) -> Dealt:
    """All sites that ``simulated_sites`` deals to, with those that are left out."""
    fed = federated_section(settings)
    dataset = build.load_data(settings, fed.pool)
    count = fed.partition.get("count")
    if isinstance(count, int) and count > len(dataset):  # before a list is made of so many sites
        raise ValueError(f"federated.partition.count: {count} sites for {len(dataset)} samples; allowed: fewer sites")
    parts = registry.build(
        PARTITIONS,
        fed.partition,
        "federated.partition",
        labels=dataset.labels,
        groups=dataset.groups,
        sites=dataset.sites,
        ids=dataset.ids,
        seed=randomness.key(fed.seed, "partition"),
    )
    names = site_names(fed, len(parts))
    sites: list[Site | TooSmall] = []
    for name, part in zip(names, parts, strict=True):
        try:
            sites.append(split_site(name, Subset(dataset, part), settings))
        except TooSmall as error:
            sites.append(error)
    return Dealt(tuple(sites))


def everything(sites: Sequence[Site]) -> Dataset:
    """What all simulated sites pretrain on, together: the pooled arm's data."""
    parts = [site.pretrain for site in sites]
    if any(part.whole is not parts[0].whole for part in parts):  # each has data of its own
        if any(part.repeats is not None for part in parts):
            raise ValueError("data.oversample: the data of sites that have their own are not put together")
        return Joined(parts)
    # Dealt sites are parts of one dataset, in which ``positions`` count.
    dataset, positions = parts[0].whole, torch.cat([part.positions for part in parts])
    return Subset(dataset, positions.sort().values)


def resolve_for_all(settings: Config, sites: Sequence[Site]) -> Config:
    """``training.build.resolve`` on what all sites pretrain on together; no held-out sample plays a part in it."""
    return build.resolve(settings, everything(sites))


def own_site(settings: Config, name: str) -> Site:
    """The data of one real hospital, read from its own disk as the section ``data`` says. Random numbers are keyed by
    sample id, so the ids get a prefix made from the site's name: two hospitals' samples should not share them."""
    dataset = build.load_data(settings, federated_section(settings).pool)
    own = Subset(prefixed(dataset, name), torch.arange(len(dataset)))
    return split_site(name, own, settings)


PLACE = "{site}"  # in ``data.root``: the site's name stands here


def has_own_data(settings: Config) -> bool:
    """Whether every site's data lies in a place of its own."""
    return PLACE in str(settings.data.get("root"))


def settings_for(settings: Config, name: str) -> Config:
    """The settings with the place of the data of the site ``name``; the same settings where there is one for all."""
    if not has_own_data(settings):
        return settings
    return replace(settings, data={"root": str(settings.data["root"]).replace(PLACE, name)})


def own_sites(settings: Config) -> "Dealt":
    """All sites of a federation whose data lie on this machine, each in its own place."""
    fed = federated_section(settings)
    found: list[Site | TooSmall] = []
    for name in site_names(fed, expected_sites(fed)):
        try:
            found.append(own_site(settings_for(settings, name), name))
        except TooSmall as error:
            found.append(error)
    return Dealt(tuple(found))


def prefixed(dataset: Dataset, name: str) -> Dataset:
    """A copy of ``dataset`` whose int64 ids have 31 bits of the hash of ``name`` above their own 32 bits."""
    if isinstance(dataset, Subset):
        return Subset(prefixed(dataset.whole, name), dataset.positions)
    assert int(dataset.ids.max()) < 1 << 32
    # 31 bits, so that the sum stays positive as an int64.
    renamed = copy.copy(dataset)
    renamed.ids = dataset.ids + ((randomness.key("site", name) & 0x7FFFFFFF) << 32)
    return renamed
