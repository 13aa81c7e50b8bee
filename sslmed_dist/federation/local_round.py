"""What a site does in a round, and what it keeps on its own disk between rounds."""

import math
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from sslmed_dist import checkpoint
from sslmed_dist.config import Config, fingerprint
from sslmed_dist.data.dataset import Dataset
from sslmed_dist.federation import accountant, health, local_terms, strategies
from sslmed_dist.federation.messages import SiteError
from sslmed_dist.federation.privacy import Mechanism
from sslmed_dist.federation.shared import Arrays, shared_tensors
from sslmed_dist.federation.sites import federated_section
from sslmed_dist.training import build, engine, job, pretrained


def initial_arrays(settings: Config) -> Arrays:
    """The shared tensors before the first round, from the run's seed: server and sites draw the same."""
    return shared_tensors(pretrained.first_method(settings), federated_section(settings).share)


def first_sent(settings: Config) -> Arrays:
    """What a site is sent in the first round: ``initial_arrays`` without what the strategy leaves at the sites, and
    with what it sends beside them."""
    method, strategy = pretrained.first_method(settings), strategies.check(settings)
    shared = shared_tensors(method, federated_section(settings).share, strategy.local.own(method))
    strategy.average.begin(shared)
    return shared | strategy.average.sent()


def local_update(
    settings: Config, site: str, dataset: Dataset, round_number: int, arrays: Mapping[str, Tensor], folder: Path
) -> tuple[Arrays, dict[str, float]]:
    """What a site does in round ``round_number`` (0, 1, ...): it loads the shared tensors ``arrays``, trains
    ``local_epochs`` epochs, and returns the shared tensors (on the CPU) and the means of the logged scalars.

    ``settings`` are resolved training settings. ``folder`` is on the site's own disk; with ``federated.keep_state`` the
    optimiser, the head and the counters are kept there between rounds. Data, views and schedule depend on the epoch
    counted from the first round, so a single site that holds all data repeats a local run exactly. A repeated round
    starts from the same state and gives the same reply. ``missed_rounds`` among the scalars says how many rounds old
    the site's own state is, because the site was away or failed; ``round_number`` rounds mean that it had no state.
    ``SiteError`` for tensors or a state that do not fit.
    """
    fed = federated_section(settings)
    require_normalisation(settings)
    work = job.assemble(settings, dataset)
    steps_per_round = fed.local_epochs * work.batches.steps
    # The site's own state first, then the shared tensors over it.
    turn = local_terms.Turn(work.method, arrays, fed.share)
    rounds_behind = restore_site(work, site, round_number, folder, turn) if fed.keep_state and round_number > 0 else 0
    term = strategies.check(settings).local
    penalty = term.begin(turn)
    found = health.measure(work.settings, dataset, work.method.encoder)  # of what the round begins with
    # A site that missed rounds goes on where the federation stands.
    work.state.step = round_number * steps_per_round
    work.state.samples = work.state.step * work.batches.global_batch
    logged: list[dict[str, float]] = []
    engine.fit(
        work.method,
        work.batches,
        work.settings.plan,
        views=work.views,
        state=work.state,
        penalty=penalty,
        on_step=lambda _, values: logged.append(values),
        until=(round_number + 1) * fed.local_epochs,
    )
    steps = range(round_number * steps_per_round, work.state.step)
    kept = term.end(turn, math.fsum(work.state.optimisation.learning_rate(step) for step in steps))
    if fed.keep_state:
        save_site(work, round_number + 1, folder, kept)
    shared = shared_tensors(work.method, fed.share, term.own(work.method))
    # The mean of each scalar over the logged steps of the round.
    means = {name: math.fsum(row[name] for row in logged) / len(logged) for name in logged[-1]} if logged else {}
    means |= term.scalars() | found
    return shared, means | ({"missed_rounds": float(rounds_behind)} if rounds_behind else {})


def require_normalisation(settings: Config) -> None:
    """``SiteError`` where the settings lack the constants of the normalisation."""
    if settings.views.get("mean") is None or settings.views.get("std") is None:
        raise SiteError("views.mean and views.std: missing; a site never computes a normalisation of its own")


def privately(
    settings: Config, number: int, sent: Mapping[str, Tensor], shared: Arrays, samples: int, scalars: dict[str, float]
) -> tuple[Arrays, int, dict[str, float]]:
    """What leaves a site of a research run after round ``number``: (tensors, number of samples, scalars). With
    ``federated.privacy.at`` sites the tensors are noised as at a hospital's door, every site counts the same, and the
    one scalar is the epsilon spent, as if the site had taken part in every round. Otherwise all leaves as it is."""
    rules = federated_section(settings).privacy
    if rules is None or rules.at != "sites":
        return shared, samples, scalars
    before = {key: sent[key] for key in shared}
    spent = (number + 1) * accountant.rho(rules.noise_multiplier)
    tensors = Mechanism(rules.clip, rules.noise_multiplier).private(shared, before)
    return tensors, 1, {"epsilon": accountant.epsilon(spent, rules.delta)}


def own_tensors(settings: Config, folder: Path) -> Arrays:
    """The tensors that never left the site whose states are in or below ``folder`` (under FedBN its norms), as they
    were after its last round; none under a strategy that shares everything. ``ValueError`` where there is no state."""
    method = build.build_method(settings)  # its weights are replaced
    own = strategies.check(settings).local.own(method)
    if not own:
        return {}
    newest = max(folder.rglob("state_round_*.pt"), key=lambda path: path.name, default=None)
    if newest is None:
        raise ValueError(f"{folder}: no state of this site, which alone has its norms")
    checkpoint.load_method(method, checkpoint.load(newest)["method"], newest)
    shared = shared_tensors(method, federated_section(settings).share)
    return {key: value for key, value in shared.items() if key in own}


def state_path(folder: Path, round_number: int) -> Path:
    """The file of the site's own state before round ``round_number``."""
    return folder / checkpoint.file_name("state_round", round_number)


def site_states(folder: Path) -> dict[int, Path]:
    """The files of the site's own states, by the round that each was kept for."""
    return checkpoint.numbered(folder, "state_round")


def save_site(work: job.Job, round_number: int, folder: Path, term: Arrays) -> None:
    """Write the state before round ``round_number``; ``term`` is what the strategy keeps at the site. Of the older
    states only the newest stays, because a server may repeat a round. States of later rounds are deleted: the server
    has gone back behind them."""
    content = work.content() | ({"term": term} if term else {})
    checkpoint.save(state_path(folder, round_number), kind="site", round=round_number, **content)
    states = site_states(folder)
    # The one just written and the newest before it.
    to_keep = sorted(before_round for before_round in states if before_round <= round_number)[-2:]
    for before_round in states.keys() - set(to_keep):
        states[before_round].unlink(missing_ok=True)


def restore_site(work: job.Job, site: str, round_number: int, folder: Path, turn: local_terms.Turn) -> int:
    """Load the newest of the site's own states that is not later than round ``round_number``, and into ``turn`` what
    the strategy kept there; returns how many rounds it is behind. That is 0 normally, and ``round_number`` where there
    is no state and the site starts afresh (it failed in the first rounds, or its disk is new). ``SiteError`` for the
    state of another run, ``ValueError`` for a damaged file."""
    usable = [before_round for before_round in site_states(folder) if before_round <= round_number]
    if not usable:
        return round_number
    path = state_path(folder, max(usable))
    saved = checkpoint.load(path)
    if saved["kind"] != "site" or saved["fingerprint"] != fingerprint(work.settings):
        raise SiteError(f"{site}: the state for round {round_number} belongs to another run")
    work.load(saved, path)
    kept = saved.get("term", {})
    if not isinstance(kept, dict) or not all(isinstance(v, Tensor) and bool(v.isfinite().all()) for v in kept.values()):
        raise ValueError(f"{path}: term: what the strategy kept is damaged")
    turn.kept, turn.fresh = kept, False
    return round_number - max(usable)
