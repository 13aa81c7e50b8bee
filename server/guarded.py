"""One round at the server: sites are asked to train, every reply is screened, bad ones are left out and named, the good
ones are combined by the strategy, and what comes out passes the same screen before it is written down."""

import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from torch import Tensor

from server.reading import read
from server.roll_call import LIFE_S, Sites, by_node, failure
from server.secure import SecureSum
from sslmed_dist.config import Config
from sslmed_dist.federation import averages, health, privacy, replies, round_files, shared, strategies, updates
from sslmed_dist.federation.messages import ARRAYS, HEALTH, ORDER, Greeting, Order
from sslmed_dist.federation.replies import Asked, Reply
from sslmed_dist.federation.shared import Arrays
from sslmed_dist.federation.sites import federated_section
from sslmed_dist.run_folder import Metrics
from sslmed_dist.training import build, optim

log = logging.getLogger("sslmed.server")

Scalars = dict[str, float]
AVERAGE = "(average)"  # stands for a site's name where the average is screened; no site can be called so


class Guarded(FlowerStrategy):  # type: ignore[misc]
    """Flower's strategy around ours. ``begun`` is the round that this start goes on from; Flower counts the rounds of
    this start alone, from 1 (``server_round``). ``ValueError`` for a round's file that does not fit the strategy."""

    def __init__(
        self, *, settings: Config, sites: Sites, folder: Path, metrics: Metrics, begun: round_files.Round
    ) -> None:
        fed = federated_section(settings)
        assert settings.plan.steps_per_epoch is not None  # sites.training_settings demands it
        self.settings, self.sites, self.folder, self.metrics = settings, sites, folder, metrics
        self.first, self.rounds, self.quorum, self.share = begun.number, fed.rounds, fed.quorum, fed.screen.share
        self.timeout_s, self.steps = fed.timeout_s, fed.local_epochs * settings.plan.steps_per_epoch
        strategy = strategies.check(settings)
        self.name, self.average, self.noise = str(fed.strategy["name"]), strategy.average, strategy.noise
        method = build.build_method(settings)  # for the names of its tensors
        kept = strategy.local.own(method)
        # Tensors that never leave a site stay in the round's files as they were before the first round.
        self.resting = {key: value for key, value in begun.arrays.items() if key in kept}
        self.current = {key: value for key, value in begun.arrays.items() if key not in kept}
        if fed.privacy is not None:
            privacy.require_learned(self.current)
        self.schedule = optim.build(
            settings.optim,
            method,
            batch_size=settings.plan.batch_size,
            epochs=settings.plan.epochs,
            per_epoch=settings.plan.steps_per_epoch,
        )
        self.plausibility = updates.Plausibility(fed.screen)
        self.best, self.measured = health.BestRound(), fed.health is not None
        self.restore(begun)
        self.asked: dict[int, Message] = {}  # the messages of this round, by node
        self.greetings: dict[int, Greeting] = {}  # the sites of this round, by node
        self.digest, self.started = "", 0.0
        self.secure: SecureSum | None = None
        if fed.secure is not None:
            assert sites.sealed is not None
            self.secure = SecureSum(fed, sites.sealed, folder)

    def restore(self, begun: round_files.Round) -> None:
        """Take over what the server kept with the round that this start goes on from."""
        server, number = begun.server, begun.number
        try:
            if server.keys() - {"strategy", "sizes", "seen", "health"}:
                raise ValueError("unknown parts")
            if number and not server:
                if self.average.begin(self.current):
                    raise ValueError(f"it holds no state of the strategy {self.name}")
                log.warning("round %d was written by an older version: the screen knows no earlier updates", number)
            self.average.load(server.get("strategy", {}), self.current)
            self.plausibility.load(server.get("sizes", {}), self.current)
            self.best.load(server.get("health", {}))
            self.sites.seen |= {str(name) for name in server.get("seen", ())}
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"checkpoints/round_{number:05d}.pt: server: damaged or foreign: {error}") from None

    def state(self) -> dict[str, object]:
        """What ``restore`` takes over."""
        kept = {"strategy": self.average.state(), "sizes": self.plausibility.state()}
        best = {"health": self.best.state()} if self.measured else {}
        return kept | {"seen": sorted(self.sites.seen)} | best

    def summary(self) -> None:
        """One line at the start."""
        log.info("%s: rounds %d to %d", self.name, self.first + 1, self.rounds)
        if self.noise is not None:
            log.info("privacy: %s; what single sites report is not written down", self.noise.words())
        if self.secure is not None:
            log.info("secure sum: single updates are not seen, so only their average is screened")

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """A message "train" to every usable site; waits for the sites first."""
        self.greetings = self.sites.ready(grid)
        sent = self.current | self.average.sent()  # what Flower hands us as ``arrays`` stays empty: one copy less
        self.digest, self.started = shared.model_digest(sent), time.monotonic()
        if self.secure is not None:
            self.grid = grid
            self.asked = self.secure.orders(self.first + server_round - 1, sent, self.greetings)
            return list(self.asked.values())
        order = ConfigRecord(Order(self.first + server_round - 1).to_record())  # as many rounds are done before it
        content = RecordDict({ARRAYS: ArrayRecord(torch_state_dict=sent), ORDER: order})
        life, sealed = max(self.timeout_s, LIFE_S), self.sites.sealed
        opaque = content
        if sealed is not None and sealed.nodes & self.greetings.keys():
            opaque = sealed.order(self.first + server_round - 1, sent)
        nodes = sealed.nodes if sealed is not None else ()
        self.asked = {
            node: Message(opaque if node in nodes else content, node, "train", ttl=life) for node in self.greetings
        }
        return list(self.asked.values())

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Screen the replies, combine the good ones, screen the average, write the round's file. ``RuntimeError`` for
        fewer good replies than the quorum, or an average that is refused; then the file of the round before stays the
        newest."""
        rounds_done = self.first + server_round
        received, self.asked = by_node(self.asked, replies), {}  # what was sent is not needed any more
        if self.secure is not None:
            good, scalars, bad = self.secure.collect(self.grid, received, self.current)
        else:
            good, scalars, bad = self.sort_out(received, rounds_done - 1)
        for name, why in bad.items():
            log.warning("round %d: %s is excluded: %s", rounds_done, name, why)
        kept = f"the checkpoint of round {rounds_done - 1} is kept"
        if len(good) < self.quorum:
            reasons = "; ".join(f"{name}: {why}" for name, why in bad.items())
            raise RuntimeError(
                f"round {rounds_done}: {len(good)} good replies, {self.quorum} are needed (federated.quorum); "
                f"{reasons}; {kept}"
            )
        average, shares = self.combine(good, rounds_done)
        reason = self.refuse(average)
        if reason is not None:
            raise RuntimeError(f"round {rounds_done}: the average is refused: {reason}; {kept}")
        self.current = average
        # What the sites began the round with is the average of the round before.
        self.tell_health(rounds_done - 1, scalars, {reply.site: reply.samples for reply in good})
        content, keep = self.resting | average, self.best.number
        round_files.save_round(self.folder, rounds_done, content, self.settings, self.state(), keep=keep)
        if self.secure is not None:
            self.secure.done()
        self.record(rounds_done, good, scalars, shares)
        return None, None

    def combine(self, good: Sequence[Reply], rounds_done: int) -> tuple[Arrays, dict[str, float]]:
        """The next shared tensors by the strategy, and each site's share of the weight."""
        if self.secure is not None:
            return self.moved([Reply(AVERAGE, self.secure.mean, 1)], {AVERAGE: 1.0}, rounds_done), self.secure.shares
        shares = averages.shares(good, self.share)
        plain = averages.shares(good)
        for site, share in shares.items():
            if share < plain[site] and self.noise is None:
                line = "round %d: %s has %.3g of all samples and weighs %.3g (federated.screen.share)"
                log.warning(line, rounds_done, site, plain[site], share)
        return self.moved(good, shares, rounds_done), shares

    def moved(self, good: Sequence[Reply], shares: Mapping[str, float], rounds_done: int) -> Arrays:
        """What the strategy makes of replies that weigh so much."""
        steps = range((rounds_done - 1) * self.steps, rounds_done * self.steps)

        def rates() -> float:
            return math.fsum(self.schedule.learning_rate(step) for step in steps)

        done = averages.Round(good, shares, self.current, self.sites.expected, rates)
        return self.average.combine(done)

    def refuse(self, average: Mapping[str, Tensor]) -> str | None:
        """Why the average may not become the model, by the rules that replies are screened by; None if it may."""
        reason = replies.misfit(average, self.current)
        reason = reason or self.plausibility.judge([Reply(AVERAGE, average, 1)], self.current).get(AVERAGE)
        if reason is None or self.noise is None:
            return reason
        # The numbers come of a noised mean that is not kept, so nobody has paid for them.
        norm = self.noise.mechanism.noise_norm(self.current, self.sites.expected)
        return f"the screen's numbers are withheld; the noise alone has the norm {norm:.3g} (federated.privacy)"

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Nothing: sites are evaluated after the federation, from its checkpoints."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Nothing; see ``configure_evaluate``."""
        return None

    def sort_out(
        self, received: dict[int, Message], round_number: int
    ) -> tuple[list[Reply], dict[str, Scalars], dict[str, str]]:
        """Of the replies by node: (the good ones sorted by site name, scalars by the name of a good site, why each
        other site is left out by its name)."""
        good: list[Reply] = []
        scalars, bad = {}, {}
        for node, greeting in self.greetings.items():
            name = greeting.site
            if node not in received:
                bad[name] = f"no reply within {self.timeout_s:g} s"
            elif received[node].has_error():
                bad[name] = failure(received[node])
            else:
                asked = Asked(name, round_number, self.digest, self.current, greeting.samples)
                reply, reported, reason = read(received.pop(node), asked, self.sites.sealed)
                if reply is None:
                    bad[name] = str(reason)
                else:
                    good.append(reply)
                    scalars[name] = reported
        # Under noise clipping takes the place of plausible sizes: one site's numbers must not decide over another's.
        implausible = self.plausibility.judge(good, self.current) if self.noise is None else {}
        scalars = {name: values for name, values in scalars.items() if name not in implausible}
        return [reply for reply in good if reply.site not in implausible], scalars, bad | implausible

    def tell_health(self, rounds_done: int, scalars: dict[str, Scalars], samples: Mapping[str, int]) -> None:
        """Take down what sites said of the average after ``rounds_done`` rounds; it leaves ``scalars``. What nobody has
        asked for counts for nothing."""
        if self.measured:
            self.best.add(rounds_done, scalars, samples)
        keys = {"step": rounds_done * self.steps, "round": rounds_done, "split": "health"}
        for name, values in scalars.items():
            found = {key: values.pop(key) for key in HEALTH if key in values}
            if found and self.measured:
                self.metrics.write(found, site=name, **keys)

    def record(
        self, rounds_done: int, good: Sequence[Reply], scalars: dict[str, Scalars], shares: Mapping[str, float]
    ) -> None:
        """Write the metrics of the round, those of each site and their mean weighted by samples, and one line of log.
        ``rounds_done`` counts this round too. Under noise what sites report is withheld, and epsilon is written."""
        keys = {"step": rounds_done * self.steps, "round": rounds_done, "split": "train"}
        seconds, numbers = time.monotonic() - self.started, (rounds_done, self.rounds, len(good), self.sites.expected)
        if self.noise is not None:
            self.metrics.write(
                {"sites": len(good), "epsilon": self.noise.epsilon(), "seconds": round(seconds, 3)}, **keys
            )
            log.info("round %d of %d: %d of %d sites, %s, %.1f s", *numbers, self.noise.words(), seconds)
            return
        for name, values in scalars.items():
            missed = values.pop("missed_rounds", 0.0)
            if missed:
                log.warning("round %d: the own state of %s was %d rounds behind", rounds_done, name, missed)
            self.metrics.write({**values, "missed_rounds": missed}, site=name, **keys)
        # Means of the scalars that every site reports.
        common = set.intersection(*(set(values) for values in scalars.values()))
        means = {
            key: math.fsum(scalars[reply.site][key] * shares[reply.site] for reply in good) for key in sorted(common)
        }
        samples = sum(reply.samples for reply in good)
        self.metrics.write({**means, "sites": len(good), "samples": samples, "seconds": round(seconds, 3)}, **keys)
        loss = f", loss {means['loss']:.4f}" if "loss" in means else ""
        line = "round %d of %d: %d of %d sites%s, %.1f s"
        log.info(line, *numbers, loss, seconds)
