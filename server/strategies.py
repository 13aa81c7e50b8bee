"""How a round's replies become the next shared tensors. One strategy = one class with ``combine`` and one table line.

``Guarded`` does all that strategies have in common: it asks the sites, screens every reply, leaves out and names the
bad ones, stops below the quorum, and keeps the average, the metrics and the log of every round.
"""

import logging
import math
import re
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from server.sites import LIFE_S, Known, Sites, failure
from sslmed_dist import federation
from sslmed_dist.config import Config
from sslmed_dist.run_folder import Metrics

log = logging.getLogger("sslmed.server")

SCALAR = re.compile(r"[a-z][a-z0-9_]{0,39}")
Scalars = dict[str, float]


class Guarded(Strategy):  # type: ignore[misc]
    """The common part of all strategies. ``first`` is the number of rounds done before this start."""

    def __init__(self, *, settings: Config, sites: Sites, folder: Path, metrics: Metrics, first: int) -> None:
        fed = federation.section(settings)
        steps = settings.plan.steps_per_epoch
        assert steps is not None  # federation.training_settings demands it
        self.settings, self.sites, self.folder, self.metrics = settings, sites, folder, metrics
        self.first, self.rounds, self.quorum = first, fed.rounds, fed.quorum
        self.timeout_s, self.steps = fed.timeout_s, fed.local_epochs * steps
        self.asked: dict[int, Known] = {}
        self.reference: federation.Arrays = {}
        self.started = 0.0

    @abstractmethod
    def combine(self, replies: Sequence[federation.Reply]) -> federation.Arrays:
        """The next shared tensors from at least one good reply, sorted by site name, and ``self.reference`` (what the
        sites were sent). The same replies must give the same bits, in the tensors' own types."""

    def summary(self) -> None:
        """One line at the start."""
        log.info("%s: rounds %d to %d", type(self).__name__, self.first + 1, self.rounds)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """A message to every usable site; waits for the sites first."""
        self.asked = self.sites.ready(grid)
        self.reference = dict(arrays.to_torch_state_dict())
        self.started = time.monotonic()
        number = self.first + server_round - 1
        content = RecordDict({"arrays": arrays, "config": ConfigRecord({"round": number})})
        return [Message(content, node, "train", ttl=max(self.timeout_s, LIFE_S)) for node in self.asked]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Screen, combine, keep. ``RuntimeError`` below the quorum; the last good checkpoint stays the newest."""
        done = self.first + server_round
        good, scalars, bad = self.sort_out({reply.metadata.src_node_id: reply for reply in replies})
        for name, reason in bad.items():
            log.warning("round %d: %s is excluded: %s", done, name, reason)
        if len(good) < self.quorum:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in bad.items())
            raise RuntimeError(
                f"round {done}: {len(good)} good replies, {self.quorum} are needed (federated.quorum); {reasons}; "
                f"the checkpoint of round {done - 1} is kept"
            )
        average = self.combine(good)
        federation.save_round(self.folder, done, average, self.settings)
        self.record(done, good, scalars)
        return ArrayRecord(torch_state_dict=average), None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Nothing: sites are evaluated after the federation, from its checkpoints."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Nothing; see ``configure_evaluate``."""
        return None

    def sort_out(
        self, replies: dict[int, Message]
    ) -> tuple[list[federation.Reply], dict[str, Scalars], dict[str, str]]:
        """(good replies by site name, their scalars, why each other site is left out)."""
        good, scalars, bad = [], {}, {}
        for node, site in self.asked.items():
            if node not in replies:
                bad[site.name] = f"no reply within {self.timeout_s:g} s"
            elif replies[node].has_error():
                bad[site.name] = failure(replies[node])
            else:
                reply, reported, reason = self.read(site.name, replies[node])
                if reply is None or reason is not None:
                    bad[site.name] = str(reason)
                else:
                    good.append(reply)
                    scalars[site.name] = reported
        return good, scalars, bad

    def read(self, name: str, message: Message) -> tuple[federation.Reply | None, Scalars, str | None]:
        """One reply as (tensors and count, scalars, what is wrong with it or None)."""
        try:
            arrays = dict(message.content["arrays"].to_torch_state_dict())
            reported = dict(message.content["metrics"])
            claimed, samples = str(message.content["site"]["site"]), int(reported.pop("num-examples"))
        except Exception as error:  # bytes of a foreign program: whatever they raise, this site is left out
            return None, {}, f"unreadable reply ({type(error).__name__})"
        if claimed != name:
            return None, {}, "its reply bears another site's name"
        scalars = {
            key: float(v) for key, v in reported.items() if SCALAR.fullmatch(key) and isinstance(v, (int, float))
        }
        reply = federation.Reply(name, arrays, samples)
        return reply, scalars, federation.screen(reply, self.reference)

    def record(self, done: int, good: Sequence[federation.Reply], scalars: dict[str, Scalars]) -> None:
        """Metrics of the round, per site and their mean weighted by samples, and one line of log."""
        keys = {"step": done * self.steps, "round": done, "split": "train"}
        for name, values in scalars.items():
            missed = values.pop("missed_rounds", 0.0)
            if missed:
                log.warning("round %d: the own state of %s was %d rounds behind", done, name, missed)
            self.metrics.write({**values, "missed_rounds": missed}, site=name, **keys)
        total = sum(reply.samples for reply in good)
        shared = set.intersection(*(set(values) for values in scalars.values()))
        means = {
            key: math.fsum(scalars[reply.site][key] * reply.samples / total for reply in good) for key in sorted(shared)
        }
        seconds = time.monotonic() - self.started
        self.metrics.write({**means, "sites": len(good), "samples": total, "seconds": round(seconds, 3)}, **keys)
        loss = f", loss {means['loss']:.4f}" if "loss" in means else ""
        log.info(
            "round %d of %d: %d of %d sites%s, %.1f s", done, self.rounds, len(good), len(self.asked), loss, seconds
        )


class FedAvg(Guarded):
    """Federated averaging (McMahan et al. 2017): see ``federation.fedavg``."""

    def combine(self, replies: Sequence[federation.Reply]) -> federation.Arrays:
        """The mean weighted by sample counts."""
        return federation.fedavg(replies)


STRATEGIES: dict[str, Callable[..., Guarded]] = {"fedavg": FedAvg}
