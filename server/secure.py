"""The secure sum at the server: four steps with the sites in every round, after which it has the mean of their updates.

What it relays between sites it cannot read. A site that fails before its masked update has arrived misses the round;
one that fails later is in the sum all the same. Below ``federated.secure.threshold`` sites at any step the run stops.
Started again, it asks for a new attempt at the round, or for the last step alone where that was begun: sites answer a
round once, so what the last step needs is in the folder ``secure`` of the run folder until the round is done.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from server.roll_call import LIFE_S, by_node, failure
from server.sealed import PAYLOAD, Sealed, SiteRefused, record
from sslmed_dist.atomic_files import write_atomically
from sslmed_dist.federated_section import Federated
from sslmed_dist.federation import payload, replies
from sslmed_dist.federation.messages import Account, Greeting
from sslmed_dist.federation.replies import Asked, Reply
from sslmed_dist.federation.secure_site import SUM
from sslmed_dist.federation.secure_steps import STEPS
from sslmed_dist.federation.secure_sum import WHERE, Collected, Terms, unmasked
from sslmed_dist.federation.shared import Arrays, model_digest
from sslmed_dist.json_files import read_object
from sslmed_dist.run_folder import write_json

log = logging.getLogger("sslmed.server")

Fields = Mapping[str, Any]
ANSWERS = {kind: answer for kind, (answer, _) in STEPS.items()}
FOLDER, ATTEMPT, REVEAL = "secure", "attempt.json", "reveal.json"


@dataclass
class Attempt:
    """One attempt at a round's sum: its terms, what each site sent in steps 1 and 2, and by the site that it is for
    what the others confirmed in step 3."""

    terms: Terms
    shares: dict[str, payload.Message] = field(default_factory=dict)
    masked: dict[str, payload.Message] = field(default_factory=dict)
    confirmations: dict[str, dict[str, str]] = field(default_factory=dict)


class SecureSum:
    """The secure sums of a run. ``mean`` and ``shares`` are those of the round that ``collect`` has done: tensors in
    float64, and the share of the weight that each site in the sum had."""

    def __init__(self, fed: Federated, sealed: Sealed, folder: Path) -> None:
        assert fed.secure is not None
        self.fed, self.secure, self.sealed, self.folder = fed, fed.secure, sealed, folder / FOLDER
        self.nodes: dict[str, int] = {}
        self.attempt: Attempt | None = None
        self.mean: Arrays = {}
        self.shares: dict[str, float] = {}

    def orders(self, number: int, sent: Arrays, greetings: Mapping[int, Greeting]) -> dict[int, Message]:
        """The messages of step 1 by node; none where the last step of this round is all that is missing.
        ``RuntimeError`` for too few sites."""
        self.nodes = {greeting.site: node for node, greeting in greetings.items()}
        self.attempt = self.kept(number, model_digest(sent))
        if self.attempt is not None:
            log.info("round %d: its secure sum goes on with the last step", number + 1)
            return {}
        samples = {greeting.site: greeting.samples for greeting in greetings.values()}
        next_attempt = self.next_attempt(number)
        try:
            run, model, share = self.sealed.run, model_digest(sent), self.fed.screen.share
            terms = Terms.of(self.secure, run, number, next_attempt, model, samples, share)
        except ValueError as error:
            raise RuntimeError(f"round {number + 1}: {error}") from None
        self.attempt = Attempt(terms)
        fields = {"sites": terms.samples, "share": terms.share}
        return self.messages("secure_train", dict.fromkeys(self.nodes, fields), sent)

    def next_attempt(self, number: int) -> int:
        """The number of a new attempt at a round, larger than those before; written down before a site learns it."""
        path = self.folder / ATTEMPT
        before = read_object(path) if path.exists() else {}
        found = int(before["attempt"]) + 1 if before.get("round") == number else 1
        self.folder.mkdir(exist_ok=True)
        write_json(path, {"round": number, "attempt": found})
        return found

    def messages(self, kind: str, asked: Mapping[str, Fields], sent: Arrays | None = None) -> dict[int, Message]:
        """A request of this kind to each site of ``asked``, which holds its own fields; by node."""
        terms, life = self.current.terms, max(self.fed.timeout_s, LIFE_S)
        common = {**self.sealed.common, "round": terms.round, "attempt": terms.attempt}
        found: dict[int, Message] = {}
        content = RecordDict()
        for site, fields in asked.items():
            if sent is None or not found:  # the model goes to all in the same bytes
                content = RecordDict({PAYLOAD: record(payload.pack(kind, common | dict(fields), sent))})
            found[self.nodes[site]] = Message(content, self.nodes[site], "train", ttl=life)
        return found

    @property
    def current(self) -> Attempt:
        """The attempt that ``orders`` began."""
        assert self.attempt is not None
        return self.attempt

    def collect(
        self, grid: Grid, received: Mapping[int, Message], reference: Arrays
    ) -> tuple[list[Reply], dict[str, dict[str, float]], dict[str, str]]:
        """All steps after the first: (the sites in the sum, with their numbers of samples and without tensors, their
        scalars, why each other site is not in it). ``RuntimeError`` where too few sites are left at a step."""
        now, bad = self.current, dict[str, str]()
        if not now.confirmations:
            now.shares, bad = self.read("secure_shares", received, list(self.nodes), reference)
            self.enough("sent shares", now.shares, bad)
            now.masked = self.step(grid, "secure_mask", self.relayed(), bad, reference)
            self.enough("sent a masked update", now.masked, bad, self.fed.quorum)
            self.confirm(grid, bad)
            self.keep()
        known = {site: now.confirmations[site] for site in now.confirmations if site in self.nodes}
        late: dict[str, str] = {}
        parts = self.step(grid, "secure_reveal", {s: {"confirmations": c} for s, c in known.items()}, late, reference)
        self.enough("revealed shares", parts, late)
        self.finish(parts, reference)
        for site, why in sorted(late.items()):
            log.warning("round %d: %s is in the sum, but failed afterwards: %s", now.terms.round + 1, site, why)
        good = [Reply(site, {}, now.terms.samples[site]) for site in sorted(now.masked)]
        scalars = {site: dict(now.shares[site].fields["scalars"]) for site in now.masked}
        return good, scalars, bad

    def relayed(self) -> dict[str, Fields]:
        """Step 2 for each site: what the others sealed for it, and their public keys."""
        shares = self.current.shares
        asked: dict[str, Fields] = {}
        for to in shares:
            others = {site: message.fields for site, message in shares.items() if site != to}
            publics = {site: fields["public"] for site, fields in others.items()}
            asked[to] = {"publics": publics, "sealed": {site: fields["sealed"][to] for site, fields in others.items()}}
        return asked

    def confirm(self, grid: Grid, bad: dict[str, str]) -> None:
        """Step 3. Who does not answer stays in the sum, but reveals nothing."""
        now, survivors, late = self.current, sorted(self.current.masked), dict[str, str]()
        said = self.step(grid, "secure_confirm", {s: {"survivors": survivors} for s in survivors}, late)
        for site, why in sorted(late.items()):
            log.warning("round %d: %s did not confirm the survivors: %s", now.terms.round + 1, site, why)
        self.enough("confirmed the survivors", said, bad | late)
        for to in said:
            words = {site: message.fields["confirmations"] for site, message in said.items() if site != to}
            now.confirmations[to] = {site: by_site[to] for site, by_site in words.items() if to in by_site}

    def step(
        self, grid: Grid, kind: str, asked: Mapping[str, Fields], bad: dict[str, str], reference: Arrays | None = None
    ) -> dict[str, payload.Message]:
        """The answers to one step by site; ``bad`` gets the reasons of the others."""
        messages = self.messages(kind, asked)
        received = by_node(messages, grid.send_and_receive(list(messages.values()), timeout=self.fed.timeout_s))
        good, why = self.read(ANSWERS[kind], received, list(asked), reference or {})
        bad |= why
        return good

    def read(
        self, kind: str, received: Mapping[int, Message], sites: Sequence[str], reference: Arrays
    ) -> tuple[dict[str, payload.Message], dict[str, str]]:
        """(the answers of this kind by site, why each other of ``sites`` has none)."""
        good, bad = {}, {}
        for site in sites:
            reply = received.get(self.nodes[site])
            if reply is None:
                bad[site] = f"no reply within {self.fed.timeout_s:g} s"
            elif reply.has_error():
                bad[site] = failure(reply)
            else:
                try:
                    good[site] = self.fitting(self.sealed.step(reply, site), kind, site, reference)
                except SiteRefused as refusal:
                    bad[site] = str(refusal)
        return good, bad

    def fitting(self, message: payload.Message, kind: str, site: str, reference: Arrays) -> payload.Message:
        """The answer itself. ``SiteRefused`` where it is none to what was asked."""
        terms, fields = self.current.terms, message.fields
        if message.kind == "refusal":
            raise SiteRefused(f"its rules refuse: {fields['reason']}")
        said = (message.kind, *(fields.get(name) for name in ("site", "run", "round", "attempt")))
        if said != (kind, site, terms.run, terms.round, terms.attempt):
            raise SiteRefused("it answers another question than it was asked")
        if kind == "secure_shares":
            account = Account(site, fields["samples"], fields["scalars"], fields["round"], fields["model"])
            asked = Asked(site, terms.round, terms.model, reference, terms.samples[site])
            reason = replies.unlike(account, asked)
            if reason is not None or fields["sealed"].keys() != terms.samples.keys() - {site}:
                raise SiteRefused(reason or "its shares are not for the sites of this round")
        if kind == "secure_masked":
            described = {name: (tuple(tensor.shape), tensor.dtype.itemsize) for name, tensor in message.tensors.items()}
            if described != {SUM: ((sum(t.numel() for t in reference.values()),), terms.bits // 8)}:
                raise SiteRefused("its masked update has another length or type than this round's")
        return message

    def enough(self, what: str, sites: Mapping[str, object], bad: Mapping[str, str], quorum: int = 0) -> None:
        """``RuntimeError`` where fewer sites than the threshold, or than ``quorum``, did ``what``."""
        terms = self.current.terms
        least, key = max((terms.threshold, f"{WHERE}.threshold"), (quorum, "federated.quorum"))
        if len(sites) < least:
            reasons = "; ".join(f"{site}: {why}" for site, why in bad.items())
            raise RuntimeError(
                f"round {terms.round + 1}: {len(sites)} sites {what}, {least} are needed ({key}); {reasons}; the "
                f"checkpoint of round {terms.round} is kept"
            )

    def finish(self, parts: Mapping[str, payload.Message], reference: Arrays) -> None:
        """Take the masks off, and the mean from the sum. ``RuntimeError`` names what does not fit."""
        now, terms = self.current, self.current.terms
        whole = np.dtype(np.uint32 if terms.bits == 32 else np.uint64)
        revealed = {name: by_owner(parts, name) for name in ("seeds", "keys")}
        got = Collected(
            {site: bytes.fromhex(message.fields["public"]) for site, message in now.shares.items()},
            {site: message.fields["commitment"] for site, message in now.shares.items()},
            {site: message.tensors[SUM].numpy().view(whole) for site, message in sorted(now.masked.items())},
            **revealed,
        )
        try:
            total = unmasked(terms, got)
        except ValueError as error:
            raise RuntimeError(f"round {terms.round + 1}: {error}") from None
        weights = {site: terms.weights()[site] for site in now.masked}
        whole_weight = math.fsum(weights.values())
        self.mean = terms.ring.mean(total, whole_weight, reference)
        self.shares = {site: weight / whole_weight for site, weight in sorted(weights.items())}

    def keep(self) -> None:
        """Write down what the last step needs, before a site is asked for it: sites answer a round once."""
        now = self.current
        for name, messages in (("shares", now.shares), ("masked", now.masked)):
            for site, message in messages.items():
                data = payload.pack(message.kind, message.fields, message.tensors)
                write_atomically(self.folder / f"{site}.{name}", data)
        write_json(self.folder / REVEAL, {"terms": asdict(now.terms), "confirmations": now.confirmations})

    def kept(self, number: int, model: str) -> Attempt | None:
        """What ``keep`` wrote for this round and model, where it did."""
        path = self.folder / REVEAL
        if not path.exists():
            return None
        found = read_object(path)
        terms = Terms(**found["terms"])
        if (terms.run, terms.round, terms.model) != (self.sealed.run, number, model):
            return None
        files = {
            name: {file.stem: payload.unpack(file.read_bytes()) for file in sorted(self.folder.glob(f"*.{name}"))}
            for name in ("shares", "masked")
        }
        return Attempt(terms, files["shares"], files["masked"], found["confirmations"])

    def done(self) -> None:
        """The round's file is written: nothing of its sum is needed any more."""
        for file in self.folder.iterdir():
            if file.name != ATTEMPT:
                file.unlink()
        self.attempt, self.mean = None, {}


def by_owner(parts: Mapping[str, payload.Message], name: str) -> dict[str, dict[str, bytes]]:
    """The revealed shares ``name`` by the site whose secret they are of, and by who revealed them."""
    found: dict[str, dict[str, bytes]] = {}
    for peer, message in parts.items():
        for site, share in message.fields[name].items():
            found.setdefault(site, {})[peer] = bytes.fromhex(share)
    return found
