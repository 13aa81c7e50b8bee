"""Messages to and from sites of two processes: opaque to Flower and to the site's relay, signed by its data side.

A site is known by the key of its data side that the list of sites pins (``federation.registered``): no answer that it
did not sign is believed, the first one included. Without a pinned key (``sslmed federate``) the first greeting is
believed; compare its key with what ``sslmed site status`` prints at the site. ``sites.json`` of the run folder keeps
how far each site has come: a forged, repeated or foreign answer is refused.
"""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from sslmed_dist import __version__
from sslmed_dist.federation import payload
from sslmed_dist.federation.figures import Told
from sslmed_dist.federation.figures import read as read_figures
from sslmed_dist.federation.messages import ARRAYS, METRICS, SITE, Account, Greeting, only
from sslmed_dist.federation.replies import Asked
from sslmed_dist.federation.shared import Arrays
from sslmed_dist.json_files import read_object
from sslmed_dist.run_folder import write_json

log = logging.getLogger("sslmed.server")

PAYLOAD = "payload"  # the record, its one array and the array's type; as in ``clients.opaque``
KEPT = "sites.json"  # in the run folder
# Answers of a site that may come again to the byte: what it has answered it repeats, also to a server that was started
# several times since, each time with a greeting. What is asked, of which round and model, is looked at all the same.
REMEMBERED = 16
# Numbers of answers of a site that are still to come: it answered while no server was there, and gives what it stored
# when it is asked again. Each may come once under its number, which is no repeat.
AWAITED = 64
NO_RUN = "0" * 64  # of a refusal whose request named no run


class SiteRefused(ValueError):
    """A site's answer that is a refusal, or not to be believed; its line says why."""


class Sealed:
    """What the server knows of sites of two processes. ``config`` is the run's configuration as it travels; ``pinned``
    are the keys of data sides by the names of their sites."""

    def __init__(self, config: str, folder: Path, pinned: Mapping[str, str] | None = None) -> None:
        self.config, self.path, self.pinned = config, folder / KEPT, dict(pinned or {})
        self.run = hashlib.sha256(config.encode()).hexdigest()
        self.nodes: set[int] = set()  # those that answer with a payload
        known = read_object(self.path) if self.path.exists() else {}
        # By site: key, sequence, anchor, digests of the newest answers, numbers of those to come. What was kept of
        # another key than the pinned one counts for nothing: the site has made itself a new one.
        self.known: dict[str, dict[str, Any]] = {
            site: kept for site, kept in known.items() if kept.get("key") == self.pinned.get(site, kept.get("key"))
        }

    def hello(self) -> dict[str, ArrayRecord]:
        """What "hello" carries for such sites beside its own record."""
        return {PAYLOAD: record(payload.pack("hello", self.common))}

    @property
    def common(self) -> dict[str, Any]:
        """The fields of every request."""
        return {"protocol": payload.PROTOCOL, "version": __version__, "config": self.config}

    def order(self, number: int, arrays: Arrays) -> RecordDict:
        """The message "train" of round ``number`` with the shared tensors."""
        return self.request("train", number, arrays)

    def request(self, kind: str, number: int, arrays: Arrays) -> RecordDict:
        """A message of this kind, of round ``number``, with the shared tensors."""
        return RecordDict({PAYLOAD: record(payload.pack(kind, {**self.common, "round": number}, arrays))})

    def greeting(self, reply: Message, node: int) -> RecordDict:
        """The answer to "hello" as ``roll_call`` reads it, whichever kind of site it comes from. ``SiteRefused``."""
        if PAYLOAD not in reply.content:
            self.require_unsigned(str(reply.content[SITE].get("site")) if SITE in reply.content else "")
            return reply.content
        message = self.believed(reply, None)
        if message.kind != "greeting":
            raise SiteRefused("it answers hello with something else")
        self.nodes.add(node)
        site, version = message.fields["site"], message.fields["version"]
        greeting = Greeting(site, version, message.fields["channels"], message.fields["samples"])
        return RecordDict({SITE: ConfigRecord(greeting.to_record())})

    def update(self, reply: Message, asked: Asked) -> RecordDict:
        """The answer to "train" as ``reading`` reads it, whichever kind of site it comes from. ``SiteRefused``."""
        name = asked.site
        if PAYLOAD not in reply.content:
            self.require_unsigned(name)
            return reply.content
        message = self.believed(reply, name)
        if message.kind != "update" or message.fields["round"] != asked.round:
            raise SiteRefused("it answers another question than it was asked")
        if message.fields["model"] != asked.model:
            raise SiteRefused("its answer starts from another model than it was sent")
        account = Account(
            name, message.fields["samples"], message.fields["scalars"], asked.round, message.fields["model"]
        )
        tensors = ArrayRecord(torch_state_dict=dict(message.tensors))
        metrics, site = MetricRecord(account.to_metrics()), ConfigRecord(account.to_site())
        return RecordDict({ARRAYS: tensors, METRICS: metrics, SITE: site})

    def figures(self, reply: Message, site: str) -> RecordDict:
        """The answer to "evaluate" as ``at_sites`` reads it, whichever kind of site it comes from. ``SiteRefused``."""
        if PAYLOAD not in reply.content:
            self.require_unsigned(site)
            return reply.content
        message = self.believed(reply, site)
        if message.kind != "figures":
            raise SiteRefused("it answers another question than it was asked")
        found, scalars = read_figures(message.fields["figures"]), message.fields["scalars"]
        told = Told(site, message.fields["round"], message.fields["model"], found, scalars)
        return RecordDict({SITE: ConfigRecord(told.to_record())})

    def require_unsigned(self, name: str) -> None:
        """``SiteRefused`` where an answer of this site has to be signed."""
        if name in self.pinned:
            raise SiteRefused("its answer is not signed, and the list of sites has a key for it")
        if name in self.known:
            raise SiteRefused("its answer is not signed, as those before were")

    def step(self, reply: Message, site: str) -> payload.Message:
        """The answer to a step of a secure sum, whichever kind of site it comes from. ``SiteRefused``."""
        if PAYLOAD not in reply.content:
            raise SiteRefused("its answer is no step of a secure sum")
        if site in self.known or site in self.pinned:
            return self.believed(reply, site)
        try:
            return payload.unpack(sealed_in(reply))
        except ValueError as error:
            raise SiteRefused(str(error)) from None

    def believed(self, reply: Message, name: str | None) -> payload.Message:
        """The message of a reply that is signed, new and of this run; what it says of the site is kept. ``name``: the
        site that it must come from, None for a greeting. ``SiteRefused``."""
        try:
            data = sealed_in(reply)
            site = claimed(data) if name is None else name
            known: Mapping[str, Any] = self.known.get(site, {})
            pinned = self.pinned.get(site) or (known["key"] if known else None)
            public = None if pinned is None else bytes.fromhex(pinned)
            answer, key = payload.unseal(data, public)
        except ValueError as error:
            raise SiteRefused(str(error)) from None
        message = answer.message
        if message.fields["site"] != site or message.fields["run"] not in (self.run, NO_RUN):
            raise SiteRefused("its answer belongs to another site or run")
        first = message.kind == "greeting" and not known  # a refusal alone makes no site known
        if message.fields["run"] == self.run and (known or first):
            self.keep(site, answer, hashlib.sha256(data).hexdigest(), key.hex())
        if message.kind == "refusal":
            raise SiteRefused(f"its rules refuse: {message.fields['reason']}")
        if message.fields["run"] != self.run:
            raise SiteRefused("its answer belongs to another run")
        return message

    def keep(self, site: str, answer: payload.Answer, digest: str, key: str) -> None:
        """Write down what an answer says of its site. ``SiteRefused`` for one whose number came before, unless it is
        the same to the byte."""
        known = self.known.get(site, {})
        last, number = known.get("sequence", 0), answer.message.fields["sequence"]
        awaited, answers = known.get("awaited", []), known.get("answers", [])
        if digest in answers:
            return
        if number <= last and number not in awaited:
            raise SiteRefused(f"its answer number {number} is a repeat; the last one was {last}")
        if known and number > last + 1:
            log.warning("%s: %d of its answers did not arrive", site, number - last - 1)
        missing = range(max(last + 1, number - AWAITED), number) if known else ()
        awaited = [one for one in (*awaited, *missing) if one != number][-AWAITED:]
        anchor = answer.anchor.text if number > last else known["anchor"]
        kept = {
            "key": key,
            "sequence": max(last, number),
            "anchor": anchor,
            "answers": [*answers, digest][-REMEMBERED:],
        }
        self.known[site] = kept | ({"awaited": awaited} if awaited else {})
        write_json(self.path, self.known)


def sealed_in(reply: Message) -> bytes:
    """The bytes of the one record that an answer may have. ``Unreadable`` where others came with it: nobody has signed
    those."""
    only(reply.content, (PAYLOAD,), "its answer's records")
    only(reply.content[PAYLOAD], (PAYLOAD,), "its answer's arrays")
    return bytes(reply.content[PAYLOAD][PAYLOAD].data)


def claimed(data: bytes) -> str:
    """The site that an answer says it is from. ``ValueError`` for what is no answer."""
    view = memoryview(data)
    if bytes(view[:8]) != payload.SEALED or len(view) < payload.ANSWER_OVERHEAD:
        raise ValueError("the bytes are no answer of a site's data side")
    return str(payload.unpack(view[48:-64]).fields["site"])


def record(data: bytes) -> ArrayRecord:
    """Opaque bytes as Flower carries them."""
    return ArrayRecord({PAYLOAD: Array(dtype="uint8", shape=(len(data),), stype=PAYLOAD, data=data)})
