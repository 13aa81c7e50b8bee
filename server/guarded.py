"""What all strategies share: sites are asked to train, every reply is screened, bad ones are left out and named."""

import logging
import math
import time
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from server.roll_call import LIFE_S, Sites, failure
from server.sealed import SiteRefused
from sslmed_dist.config import Config
from sslmed_dist.federation.messages import ARRAYS, METRICS, ORDER, SITE, Account, Order
from sslmed_dist.federation.replies import Reply, screen
from sslmed_dist.federation.round_files import save_round
from sslmed_dist.federation.shared import Arrays
from sslmed_dist.federation.sites import federated_section
from sslmed_dist.run_folder import Metrics

log = logging.getLogger("sslmed.server")

Scalars = dict[str, float]


class Guarded(Strategy):  # type: ignore[misc]
    """The common part of all strategies. ``first`` is the number of rounds done before this start; Flower counts the
    rounds of this start alone, from 1 (``server_round``)."""

    def __init__(self, *, settings: Config, sites: Sites, folder: Path, metrics: Metrics, first: int) -> None:
        fed = federated_section(settings)
        steps = settings.plan.steps_per_epoch
        assert steps is not None  # sites.training_settings demands it
        self.settings, self.sites, self.folder, self.metrics = settings, sites, folder, metrics
        self.first, self.rounds, self.quorum = first, fed.rounds, fed.quorum
        self.timeout_s, self.steps = fed.timeout_s, fed.local_epochs * steps  # steps of a site in one round
        self.asked: dict[int, str] = {}  # the names of the sites of this round, by node
        self.reference: Arrays = {}  # the shared tensors that the sites of this round were sent
        self.started, self.round_number = 0.0, 0

    @abstractmethod
    def combine(self, replies: Sequence[Reply]) -> Arrays:
        """The next shared tensors, from at least one good reply and, if need be, ``self.reference`` (what the sites
        were sent). ``replies`` are sorted by site name. The same replies must give the same bits; every tensor keeps
        its type."""

    def summary(self) -> None:
        """One line at the start."""
        log.info("%s: rounds %d to %d", type(self).__name__, self.first + 1, self.rounds)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """A message "train" to every usable site; waits for the sites first."""
        self.asked = self.sites.ready(grid)
        self.reference = dict(arrays.to_torch_state_dict())
        self.started = time.monotonic()
        round_number = self.first + server_round - 1  # 0, 1, ...: as many rounds are done before it
        content = RecordDict({ARRAYS: arrays, ORDER: ConfigRecord(Order(round_number).to_record())})
        self.round_number, sealed = round_number, self.sites.sealed
        opaque = sealed.order(round_number, self.reference) if sealed and sealed.nodes & set(self.asked) else content
        contents = {node: opaque if sealed and node in sealed.nodes else content for node in self.asked}
        return [Message(contents[node], node, "train", ttl=max(self.timeout_s, LIFE_S)) for node in self.asked]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Screen the replies, combine the good ones, write the round's checkpoint. ``RuntimeError`` for fewer good
        replies than the quorum; then the checkpoint of the round before stays the newest."""
        rounds_done = self.first + server_round
        good, scalars, bad = self.sort_out({reply.metadata.src_node_id: reply for reply in replies})
        for name, reason in bad.items():
            log.warning("round %d: %s is excluded: %s", rounds_done, name, reason)
        if len(good) < self.quorum:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in bad.items())
            raise RuntimeError(
                f"round {rounds_done}: {len(good)} good replies, {self.quorum} are needed (federated.quorum); {reasons}"
                f"; the checkpoint of round {rounds_done - 1} is kept"
            )
        average = self.combine(good)
        save_round(self.folder, rounds_done, average, self.settings)
        self.record(rounds_done, good, scalars)
        return ArrayRecord(torch_state_dict=average), None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Nothing: sites are evaluated after the federation, from its checkpoints."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Nothing; see ``configure_evaluate``."""
        return None

    def sort_out(self, replies: dict[int, Message]) -> tuple[list[Reply], dict[str, Scalars], dict[str, str]]:
        """Of the replies by node: (the good ones sorted by site name, scalars by the name of a good site, why each
        other site is left out by its name)."""
        good, scalars, bad = [], {}, {}
        for node, name in self.asked.items():
            if node not in replies:
                bad[name] = f"no reply within {self.timeout_s:g} s"
            elif replies[node].has_error():
                bad[name] = failure(replies[node])
            else:
                reply, reported, reason = self.read(name, replies[node])
                if reply is None or reason is not None:
                    bad[name] = str(reason)
                else:
                    good.append(reply)
                    scalars[name] = reported
        return good, scalars, bad

    def read(self, name: str, message: Message) -> tuple[Reply | None, Scalars, str | None]:
        """The message of the site ``name`` as (its reply, its scalars, what is wrong with it or None). The reply is
        None where it cannot be read."""
        try:
            content, sealed = message.content, self.sites.sealed
            if sealed is not None:
                content = sealed.update(message, name, self.round_number, self.reference)
            arrays = dict(content[ARRAYS].to_torch_state_dict())
            account = Account.from_records(content[METRICS], content[SITE])
        except SiteRefused as refusal:
            return None, {}, str(refusal)
        except Exception as error:  # bytes of a foreign program: whatever they raise, this site is left out
            return None, {}, f"unreadable reply ({type(error).__name__})"
        if account.site != name:
            return None, {}, "its reply bears another site's name"
        reply = Reply(name, arrays, account.samples)
        return reply, dict(account.scalars), screen(reply, self.reference)

    def record(self, rounds_done: int, good: Sequence[Reply], scalars: dict[str, Scalars]) -> None:
        """Write the metrics of the round, those of each site and their mean weighted by samples, and one line of log.
        ``rounds_done`` counts this round too."""
        keys = {"step": rounds_done * self.steps, "round": rounds_done, "split": "train"}
        for name, values in scalars.items():
            missed = values.pop("missed_rounds", 0.0)
            if missed:
                log.warning("round %d: the own state of %s was %d rounds behind", rounds_done, name, missed)
            self.metrics.write({**values, "missed_rounds": missed}, site=name, **keys)
        total = sum(reply.samples for reply in good)
        # Means of the scalars that every site reports.
        common = set.intersection(*(set(values) for values in scalars.values()))
        means = {
            key: math.fsum(scalars[reply.site][key] * reply.samples / total for reply in good) for key in sorted(common)
        }
        seconds = time.monotonic() - self.started
        self.metrics.write({**means, "sites": len(good), "samples": total, "seconds": round(seconds, 3)}, **keys)
        loss = f", loss {means['loss']:.4f}" if "loss" in means else ""
        log.info(
            "round %d of %d: %d of %d sites%s, %.1f s",
            rounds_done,
            self.rounds,
            len(good),
            len(self.asked),
            loss,
            seconds,
        )
