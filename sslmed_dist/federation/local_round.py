"""What a site does in a round, and what it keeps on its own disk between rounds."""

import math
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from sslmed_dist import checkpoint
from sslmed_dist.config import Config, fingerprint
from sslmed_dist.data.dataset import Dataset
from sslmed_dist.federation.messages import SiteError
from sslmed_dist.federation.shared import Arrays, load_shared, shared_keys
from sslmed_dist.federation.sites import federated_section
from sslmed_dist.training import engine, job, pretrained


def initial_arrays(settings: Config) -> Arrays:
    """The shared tensors before the first round, from the run's seed: server and sites draw the same."""
    method = pretrained.first_method(settings)
    state = method.state_dict()
    return {key: state[key].clone() for key in shared_keys(method, federated_section(settings).share)}


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
    fed = federated_section(settings)
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
    shared = {key: state[key].detach().cpu() for key in shared_keys(work.method, fed.share)}
    means = {name: math.fsum(row[name] for row in logged) / len(logged) for name in logged[-1]} if logged else {}
    return shared, means | ({"missed_rounds": float(missed)} if missed else {})


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
