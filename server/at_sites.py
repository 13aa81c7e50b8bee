"""After the last round: every site is asked what the encoders are worth there, and answers with figures alone."""

import logging
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from server.guarded import Guarded
from server.roll_call import LIFE_S, by_node, failure
from server.sealed import SiteRefused
from sslmed_dist.config import Config
from sslmed_dist.downstream import Row, write_rows
from sslmed_dist.federation import figures, health, round_files, shared, site_figures
from sslmed_dist.federation.figures import BEST, FEDERATED, Told
from sslmed_dist.federation.messages import ARRAYS, ORDER, SITE, Order, Unreadable, only
from sslmed_dist.federation.shared import Arrays
from sslmed_dist.federation.sites import federated_section
from sslmed_dist.json_files import read_object

log = logging.getLogger("sslmed.server")


def measure(grid: Grid, strategy: Guarded, settings: Config, folder: Path) -> int:
    """Ask for the figures of the last round's encoder, and of the best round's where that is another one
    (``health.RULE``); write ``evaluate/sites.json``. Returns how many sites answered. ``RuntimeError`` where none
    did."""
    rounds = federated_section(settings).rounds
    told = ask(grid, strategy, settings, rounds, strategy.current)
    if not told:
        raise RuntimeError("no site gave figures (federated.evaluate); the reasons stand in federation.log")
    samples = {greeting.site: greeting.samples for greeting in strategy.greetings.values()}
    said = {site: dict(answer.scalars) for site, answer in told.items()}
    strategy.best.add(rounds, said, samples)
    rows = [row for site, answer in sorted(told.items()) for row in figures.rows_at(site, answer.figures, settings)]
    best = strategy.best.number
    if best is not None:
        log.info("round %d is the best: %s", best, health.RULE)
        rows += best_rows(grid, strategy, settings, folder, best) if best != rounds else []
    known = folder / "environment.json"
    phantom = read_object(known).get("phantom_data") if known.exists() else None
    counts = {site: {"test": max(f.samples for f in answer.figures)} for site, answer in sorted(told.items())}
    left_out = sorted(strategy.sites.seen - told.keys())
    facts = {"sites": counts, "left_out": left_out, "phantom_data": phantom, "best_round": best, "rule": health.RULE}
    write_rows(folder / "evaluate" / "sites.json", rows, **facts)
    strategy.tell_health(rounds, said, samples)  # last: an evaluation that is repeated writes no line twice
    log.info("figures of %d of %d sites", len(told), strategy.sites.expected)
    return len(told)


def best_rows(grid: Grid, strategy: Guarded, settings: Config, folder: Path, best: int) -> list[Row]:
    """The rows of the best round's encoder at every site that answers, as an arm of their own."""
    kept = round_files.one_round(folder, settings, best).arrays
    arrays = {key: kept[key] for key in strategy.current}
    told = ask(grid, strategy, settings, best, arrays)
    rows = [row for site, answer in sorted(told.items()) for row in figures.rows_at(site, answer.figures, settings)]
    return [Row(BEST, row.site, row.score) for row in rows if row.arm == FEDERATED]


def ask(grid: Grid, strategy: Guarded, settings: Config, rounds_done: int, arrays: Arrays) -> dict[str, Told]:
    """What the sites tell of the shared tensors ``arrays``, by their names. A site that gives no figures is named in
    the log with the reason. ``RuntimeError`` for fewer sites than the quorum."""
    strategy.greetings = strategy.sites.ready(grid)
    sent, sealed = arrays | strategy.average.sent(), strategy.sites.sealed
    digest, nodes = shared.model_digest(sent), sealed.nodes if sealed is not None else set()
    order = ConfigRecord(Order(rounds_done).to_record())
    content = RecordDict({ARRAYS: ArrayRecord(torch_state_dict=sent), ORDER: order})
    opaque = content
    if sealed is not None and nodes & strategy.greetings.keys():
        opaque = sealed.request("evaluate", rounds_done, sent)
    timeout = strategy.timeout_s * site_figures.rounds_of_work(settings)
    life = max(timeout, LIFE_S)
    messages = {
        node: Message(opaque if node in nodes else content, node, "evaluate", ttl=life) for node in strategy.greetings
    }
    received = by_node(messages, grid.send_and_receive(list(messages.values()), timeout=timeout))
    told = {}
    for node, greeting in strategy.greetings.items():
        answer = read(received.get(node), strategy, greeting.site, rounds_done, digest)
        if isinstance(answer, Told):
            told[greeting.site] = answer
        else:
            log.warning("%s gives no figures: %s", greeting.site, answer)
    return told


def read(reply: Message | None, strategy: Guarded, site: str, rounds_done: int, digest: str) -> Told | str:
    """What a site's reply tells, or why it tells nothing."""
    if reply is None:
        return "no reply in time"
    if reply.has_error():
        return failure(reply)
    sealed = strategy.sites.sealed
    try:
        content = reply.content if sealed is None else sealed.figures(reply, site)
        only(content, (SITE,), "the reply's records")
        told = Told.from_record(content[SITE])
        require_fit(told, strategy.settings)
    except SiteRefused as refusal:
        return str(refusal)
    except Exception as error:  # bytes of a foreign program: whatever they raise, this site gives no figures
        return f"unreadable reply ({str(error) if isinstance(error, Unreadable) else type(error).__name__})"
    if (told.site, told.round, told.model) != (site, rounds_done, digest):
        return "it answers another question than it was asked"
    return told


def require_fit(told: Told, settings: Config) -> None:
    """``Unreadable`` for figures of arms or protocols that the run does not have."""
    arms, protocols = site_figures.arms_at(settings), len(settings.evaluate.protocols)
    if not all(figure.arm in arms and figure.protocol < protocols for figure in told.figures):
        raise Unreadable("figures of an arm or a protocol that the run does not have")
