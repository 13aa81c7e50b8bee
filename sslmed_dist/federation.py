"""What a federation is, apart from the network: how data is dealt to sites, what a site does in a round, how replies
are averaged. The Flower apps (``clients``, ``server``) are thin around this, and tests run it without Flower.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sslmed_dist import checkpoint, engine, randomness, registry
from sslmed_dist.config import Config, Federated, fingerprint, replace, to_tree
from sslmed_dist.data import PARTITIONS
from sslmed_dist.data.dataset import Dataset, Subset
from sslmed_dist.data.partition import hold_out
from sslmed_dist.drivers import job
from sslmed_dist.envelope import SiteError

Arrays = dict[str, Tensor]


def section(settings: Config) -> Federated:
    """The ``federated`` section; ``ValueError`` if the configuration has none."""
    if settings.federated is None:
        raise ValueError(f"{settings.run.name}: no 'federated' section; it says rounds, partition and strategy")
    return settings.federated


def training_settings(settings: Config) -> Config:
    """The settings under which every arm trains: as many epochs as the federation has rounds x local epochs, so that
    the schedule, the views and the number of optimiser steps are the same in all arms."""
    fed = section(settings)
    if settings.plan.steps_per_epoch is None:
        raise ValueError(
            "plan.steps_per_epoch: missing; a federation needs the optimiser steps of a local epoch stated (an integer "
            ">= 1), so that sites of different sizes, and all arms of the comparison, take the same number of steps"
        )
    return replace(settings, plan={"epochs": fed.rounds * fed.local_epochs}, driver="local")


def expected_sites(fed: Federated) -> int:
    """How many sites the federation has."""
    count = fed.partition.get("count") if fed.site_names is None else len(fed.site_names)
    if not isinstance(count, int):
        raise ValueError("federated.partition.count: missing; it is the number of sites")
    if fed.quorum > count:
        raise ValueError(f"federated.quorum: {fed.quorum} replies needed, but there are {count} sites")
    return count


@dataclass(frozen=True)
class Site:
    """One hospital: its name, its data, and int64 positions of the parts of it.

    ``pretrain`` = ``train`` and ``val`` together: pretraining uses no labels. ``val`` chooses hyper-parameters of the
    evaluation; ``test`` is never pretrained on and never chosen with.
    """

    name: str
    dataset: Dataset
    train: Tensor
    val: Tensor
    test: Tensor

    @property
    def pretrain(self) -> Subset:
        """What pretraining may see."""
        return Subset(self.dataset, torch.cat([self.train, self.val]).sort().values)


def site_names(fed: Federated, count: int) -> list[str]:
    """The sites' names, ``site-0`` ... unless ``federated.site_names`` gives them."""
    if fed.site_names is None:
        return [f"site-{i}" for i in range(count)]
    if len(set(fed.site_names)) != count:
        raise ValueError(f"federated.site_names: {len(set(fed.site_names))} different names for {count} sites")
    return list(fed.site_names)


def split_site(name: str, dataset: Dataset, settings: Config) -> Site:
    """Split one site's data into its parts, by patient where samples share patients or ``held_out_groups`` asks."""
    fed = section(settings)
    facts: dict[str, Any] = {"labels": dataset.labels, "groups": dataset.groups, "ids": dataset.ids}
    by_patient = fed.held_out_groups is not None
    held: dict[str, Any] = {"fraction": None if by_patient else fed.held_out, "groups_per_site": fed.held_out_groups}
    rest, test = hold_out(**facts, **held, seed=randomness.key(fed.seed, "held-out"))
    facts = {key: value[rest] for key, value in facts.items()}
    held = {"fraction": None if by_patient else fed.validation, "groups_per_site": 1 if by_patient else None}
    train, val = hold_out(**facts, **held, seed=randomness.key(fed.seed, "validation"))
    rows, batch = len(rest) * settings.plan.draws, settings.plan.batch_size
    if rows < batch:
        raise SiteError(
            f"{name}: {len(rest)} training samples x {settings.plan.draws} draws, fewer than one batch of {batch}; "
            "allowed: a smaller plan.batch_size, fewer sites, or more plan.draws"
        )
    return Site(name, dataset, rest[train], rest[val], test)


def simulated_sites(settings: Config) -> list[Site]:
    """Deal one dataset to the sites of ``federated.partition``. Sample ids stay those of the whole set."""
    fed = section(settings)
    dataset = job.load_data(settings, fed.pool)
    facts = {"labels": dataset.labels, "groups": dataset.groups, "sites": dataset.sites, "ids": dataset.ids}
    seed = randomness.key(fed.seed, "partition")
    parts = registry.build(PARTITIONS, fed.partition, "federated.partition", **facts, seed=seed)
    names = site_names(fed, len(parts))
    return [split_site(name, Subset(dataset, part), settings) for name, part in zip(names, parts, strict=True)]


def resolve(settings: Config, sites: Sequence[Site]) -> Config:
    """``job.resolve`` on what all sites pretrain on together: no held-out sample has a part in the constants."""
    parts = [site.pretrain for site in sites]
    base, positions = parts[0].dataset, torch.cat([part.positions for part in parts])
    return job.resolve(settings, Subset(base, positions.sort().values))


def own_site(settings: Config, name: str) -> Site:
    """The data of one real hospital, as ``data`` describes it on its own disk. Sample ids get a prefix made from the
    site's name, so that two hospitals' samples never share an id and with it the random numbers of their views."""
    dataset = job.load_data(settings, section(settings).pool)
    everything = torch.arange(len(dataset))
    return split_site(name, Subset(prefixed(dataset, name), everything), settings)


def prefixed(dataset: Dataset, name: str) -> Dataset:
    """A copy of ``dataset`` whose ids have 31 bits of the hash of ``name`` above their own 32."""
    if isinstance(dataset, Subset):
        return Subset(prefixed(dataset.dataset, name), dataset.positions)
    assert int(dataset.ids.max()) < 1 << 32
    renamed = copy.copy(dataset)
    renamed.ids = dataset.ids + ((randomness.key("site", name) & 0x7FFFFFFF) << 32)
    return renamed


def initial_arrays(settings: Config) -> Arrays:
    """The shared tensors before the first round, from the run's seed: server and sites draw the same."""
    method = job.first_method(settings)
    state = method.state_dict()
    return {key: state[key].clone() for key in job.shared_keys(method, section(settings).share)}


def local_update(
    settings: Config, site: str, dataset: Dataset, number: int, arrays: Mapping[str, Tensor], folder: Path
) -> tuple[Arrays, dict[str, float]]:
    """What a site does in round ``number`` (0, 1, ...): load the shared tensors, train ``local_epochs``, return them
    and the means of the logged scalars.

    ``settings`` are resolved training settings; ``folder`` is the site's own disk, where optimiser, head and counters
    persist under ``federated.keep_state``. Absolute epochs key data, views and schedule, so one site that holds all
    data walks the trajectory of a local run. A repeated round starts from the same state and gives the same reply.
    ``missed_rounds`` among the scalars says how many rounds the site's own state is behind (it was away or failed);
    ``number`` of them means that it had none. Raises ``SiteError`` for tensors or a state that do not fit.
    """
    fed = section(settings)
    if settings.views.get("mean") is None or settings.views.get("std") is None:
        raise SiteError("views.mean and views.std: missing; a site never computes a normalisation of its own")
    work = job.assemble(settings, dataset)
    per_round = fed.local_epochs * work.batches.steps
    missed = restore_site(work, site, number, folder) if fed.keep_state and number > 0 else 0
    load_shared(work.method, arrays, fed.share)
    work.state.step = number * per_round
    work.state.samples = work.state.step * work.batches.global_batch
    logged: list[dict[str, float]] = []
    engine.fit(
        work.method,
        work.batches,
        work.settings.plan,
        views=work.views,
        state=work.state,
        on_step=lambda _, values: logged.append(values),
        until=(number + 1) * fed.local_epochs,
    )
    if fed.keep_state:
        save_site(work, number + 1, folder)
    state = work.method.state_dict()
    shared = {key: state[key].detach().cpu() for key in job.shared_keys(work.method, fed.share)}
    means = {name: math.fsum(row[name] for row in logged) / len(logged) for name in logged[-1]} if logged else {}
    return shared, means | ({"missed_rounds": float(missed)} if missed else {})


def load_shared(method: nn.Module, arrays: Mapping[str, Tensor], share: str) -> None:
    """Overlay the shared tensors; ``SiteError`` names the first that is missing, unknown or misshapen."""
    state = method.state_dict()
    expected = job.shared_keys(method, share)
    for key in sorted(set(expected) | set(arrays)):
        if key not in arrays or key not in expected or arrays[key].shape != state[key].shape:
            raise SiteError(f"shared tensor {key}: missing, unknown or of another shape than this site's method has")
    with torch.no_grad():
        for key in expected:
            state[key].copy_(arrays[key])


def state_path(folder: Path, number: int) -> Path:
    """The site's own state before round ``number``."""
    return folder / f"state_round_{number:05d}.pt"


def site_states(folder: Path) -> dict[int, Path]:
    """The site's own states on its disk, by the round they precede."""
    return {int(path.stem.rsplit("_", 1)[1]): path for path in sorted(folder.glob("state_round_*.pt"))}


def save_site(work: job.Job, number: int, folder: Path) -> None:
    """Keep the state before round ``number``, and the newest one before that (a server may repeat one round). Later
    ones belong to rounds that the server has taken back."""
    checkpoint.save(state_path(folder, number), kind="site", round=number, **work.content())
    states = site_states(folder)
    kept = sorted(old for old in states if old <= number)[-2:]
    for old in states.keys() - set(kept):
        states[old].unlink(missing_ok=True)


def restore_site(work: job.Job, site: str, number: int, folder: Path) -> int:
    """Load the site's newest own state before round ``number`` and return how many rounds it is behind: 0 normally,
    ``number`` when there is none (the site failed in the first rounds, or its disk is new) and it starts afresh.
    ``SiteError`` for the state of another run, ``ValueError`` for a damaged file."""
    earlier = [old for old in site_states(folder) if old <= number]
    if not earlier:
        return number
    path = state_path(folder, max(earlier))
    saved = checkpoint.load(path)
    if saved["kind"] != "site" or saved["fingerprint"] != fingerprint(work.settings):
        raise SiteError(f"{site}: the state for round {number} belongs to another run")
    checkpoint.load_method(work.method, saved["method"], path)
    work.state.load_state_dict(saved["state"])
    return number - max(earlier)


@dataclass(frozen=True)
class Reply:
    """What one site answered: its name, its tensors, and how many samples it trained on."""

    site: str
    arrays: Mapping[str, Tensor]
    samples: int


def screen(reply: Reply, reference: Mapping[str, Tensor]) -> str | None:
    """Why a reply may not enter the average, or None. Names, shapes, types, finiteness and the sample count count."""
    unknown = sorted(set(reply.arrays) ^ set(reference))
    if unknown:
        return f"tensor {unknown[0]} is {'unknown' if unknown[0] in reply.arrays else 'missing'}"
    for key, expected in reference.items():
        if reply.arrays[key].shape != expected.shape:
            return f"tensor {key} has shape {tuple(reply.arrays[key].shape)}, expected {tuple(expected.shape)}"
        if reply.arrays[key].dtype != expected.dtype:
            return f"tensor {key} is {reply.arrays[key].dtype}, expected {expected.dtype}"
        if not bool(torch.isfinite(reply.arrays[key]).all()):
            return f"tensor {key} is not finite"
    return None if reply.samples > 0 else f"it reports {reply.samples} samples"


def fedavg(replies: Sequence[Reply]) -> Arrays:
    """Federated averaging (McMahan et al. 2017): the mean weighted by sample counts.

    Summed in float64 in the order of the sites' names, so that a repeated run has the same bits, and returned in the
    tensors' own type. The mean of one reply is that reply, bit for bit.
    """
    ordered = sorted(replies, key=lambda reply: reply.site)
    total = sum(reply.samples for reply in ordered)
    average = {}
    for key, first in ordered[0].arrays.items():
        parts = [reply.arrays[key].double() * (reply.samples / total) for reply in ordered]
        average[key] = torch.stack(parts).sum(0).to(first.dtype)
    return average


def save_round(folder: Path, number: int, arrays: Mapping[str, Tensor], settings: Config) -> Path:
    """Write the shared tensors after ``number`` rounds: ``checkpoints/round_NNNNN.pt``. As of a training's checkpoints,
    the newest ``plan.keep_last`` stay and every ``plan.keep_every``-th; the first weights (round 0) always do."""
    tree, mark = to_tree(settings), fingerprint(settings)
    path = folder / "checkpoints" / f"round_{number:05d}.pt"
    checkpoint.save(path, kind="encoder", config=tree, fingerprint=mark, round=number, method=dict(arrays))
    for old in sorted(path.parent.glob("round_*.pt"))[: -settings.plan.keep_last]:
        past = int(old.stem.rsplit("_", 1)[1])
        if past and not (settings.plan.keep_every and past % settings.plan.keep_every == 0):
            old.unlink(missing_ok=True)
    return path


def last_round(folder: Path, settings: Config) -> tuple[int, Arrays] | None:
    """The newest round checkpoint of this run, or None. ``ValueError`` names one of another run."""
    files = sorted((folder / "checkpoints").glob("round_*.pt"))
    if not files:
        return None
    saved = checkpoint.load(files[-1])
    if saved["fingerprint"] != fingerprint(settings):
        raise ValueError(f"{files[-1]}: belongs to another run (configuration fingerprint differs)")
    return int(saved["round"]), dict(saved["method"])
