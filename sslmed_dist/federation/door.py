"""The one door through which anything leaves a site: rules, work, ledger, answer, in this order.

``Door.answer`` takes the bytes of a request and gives the bytes of an answer. It knows no network. Whatever arrives
gets an answer out of the closed table of ``payload``, signed, and written to the ledger before it is returned. An error
never becomes an answer's text: only the lines of ``Refusal`` do, and those are written here and in ``policy``.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslmed_dist import __version__
from sslmed_dist.atomic_files import write_atomically
from sslmed_dist.federation import payload, policy, site_key
from sslmed_dist.federation.ledger import Anchor, Ledger
from sslmed_dist.federation.payload import Message
from sslmed_dist.federation.policy import Refusal, Request, Spent
from sslmed_dist.federation.shared import model_digest
from sslmed_dist.federation.site_file import SiteFile
from sslmed_dist.federation.site_work import Failure, folder_of, withheld

MOST_PENDING = 20  # configurations that wait for the site
NO_RUN = "0" * 64  # the run of a request that names none
HEADER_ROOM = 1 << 16  # bytes of an answer beside its tensors, for the budget
FAILED = "the work failed at this site; its own log says why"
Work = Callable[[SiteFile, str, bytes], tuple[int, bytes]]


@dataclass
class Door:
    """The door of one site. ``work`` does what lies behind it: (site, configuration's digest, request) to (number of
    examinations, answer of ``site_work.perform``). ``clock`` gives the local time."""

    site: SiteFile
    work: Work
    clock: Callable[[], time.struct_time] = time.localtime

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.site.ledger)
        self.key = site_key.load(Path(self.site.state) / "key")

    def answer(self, request: bytes | bytearray) -> bytes | None:
        """The answer to a request. None once the data set's messages are spent: then nothing leaves at all.
        ``OSError`` where the ledger cannot be written; then nothing may leave either."""
        self.ledger.refresh()  # the site's own commands write there, too
        if Spent.of(self.ledger.entries, self.site.data_set).messages >= self.site.policy.life.messages:
            return None
        run = NO_RUN
        try:
            message = readable(request)
            run = hashlib.sha256(message.fields["config"].encode()).hexdigest()
            return self.served(run, message, bytes(request))
        except Refusal as refusal:
            return self.refused(run, str(refusal))

    def served(self, run: str, message: Message, data: bytes) -> bytes:
        """The answer to a message of the right kind and version."""
        asked = policy.request(policy.opened(message.fields["config"]), self.site.policy)
        self.require_accepted(asked)
        folder = folder_of(self.site, asked.digest)
        if message.kind == "train":
            model = model_digest(message.tensors)
            kept = self.kept_answer(folder, message.fields["round"], model)
            if kept is not None:
                return kept
            self.require_model(folder, message)
        policy.require_hour(self.site.policy, self.clock())
        self.reserve(run, asked, message)
        try:
            examinations, done = self.work(self.site, asked.digest, data)
            if message.kind == "hello":
                return self.greeting(run, asked, json.loads(done))
            return self.update(run, asked, folder, message, payload.unpack(done), examinations)
        except Refusal:
            raise
        except Exception as error:  # whatever the work or what it gave back raises: no text of it leaves
            reason = str(error) if isinstance(error, Failure) else type(error).__name__
            self.ledger.append("failure", run=run, configuration=asked.digest, reason=reason)
            raise Refusal(FAILED) from None

    def require_accepted(self, asked: Request) -> None:
        """``Refusal`` for a run that the site has not accepted. It is kept for the person who decides."""
        rules = self.site.policy
        accepted = {e["configuration"] for e in self.ledger.entries if e["kind"] == "accepted"} | set(rules.digests)
        if asked.digest in accepted:
            return
        if rules.accept == "each":
            keep_pending(self.site, asked)
        raise Refusal(f"this site has not accepted the run; its configuration's digest here is {asked.digest}")

    def kept_answer(self, folder: Path, number: int, model: str) -> bytes | None:
        """The stored answer of a round that was answered before, to the same model; None for a round that comes next.
        ``Refusal`` for the same round with another model, and for one before the last."""
        last = folder / "answered.json"
        if not last.exists():
            return None
        state = json.loads(last.read_text())
        if number > max(map(int, state)):
            return None
        if str(number) not in state:
            raise Refusal("this round lies before the last ones that this site has answered")
        if state[str(number)] != model:
            raise Refusal("this round was answered already, to another model")
        return (folder / f"answer_{number:05d}.bin").read_bytes()

    def require_model(self, folder: Path, message: Message) -> None:
        """``Refusal`` for a model that is not finite, too large, too far from the last one, or that cannot be compared
        because the run began without this site. A round that goes on is compared with the last model that was let in;
        the very first is compared with the seed's, where the work is done."""
        rules, number = self.site.policy.model, message.fields["round"]
        require_numbers("the model", message.tensors, rules.largest)
        if number == 0:
            return
        last = folder / "model.bin"
        if not last.exists():
            if rules.late or model_digest(message.tensors) in rules.first_weights:
                return
            raise Refusal("this site was not part of the run's first round, so it cannot compare the model")
        before = payload.unpack(last.read_bytes()).tensors
        require_alike("the model", message.tensors, before)
        require_change("the model", message.tensors, before, rules.change)

    def reserve(self, run: str, asked: Request, message: Message) -> None:
        """Write down what the work may send before it begins. ``Refusal`` where that is more than is left."""
        rounds = int(message.kind == "train")
        size = HEADER_ROOM + sum(tensor.numel() * tensor.element_size() for tensor in message.tensors.values())
        policy.require_budget(self.site, Spent.of(self.ledger.entries, self.site.data_set), rounds, size)
        number = message.fields.get("round")
        content = {"run": run, "configuration": asked.digest, "message": message.kind, "round": number}
        self.ledger.append("reserved", data_set=self.site.data_set, count=rounds, size=size, **content)

    def greeting(self, run: str, asked: Request, done: Mapping[str, Any]) -> bytes:
        """The answer to "hello"."""
        fields = {"run": run, "sequence": self.sequence(run), "site": self.site.site, "version": __version__}
        fields |= {"channels": done["channels"], "samples": done["samples"], "key": self.key.public}
        return self.recorded("greeting", fields, asked.digest)

    def update(
        self, run: str, asked: Request, folder: Path, message: Message, done: Message, examinations: int
    ) -> bytes:
        """The answer to "train": what the work gave back, checked as if a stranger had sent it."""
        rules, number = self.site.policy, message.fields["round"]
        require_alike("the update", done.tensors, message.tensors)
        require_numbers("the update", done.tensors, rules.update.largest)
        require_change("the update", done.tensors, message.tensors, rules.update.change)
        tensors, kept = withheld(message.tensors, dict(done.tensors), examinations, self.site)
        scalars = {name: value for name, value in done.fields["scalars"].items() if name in rules.scalars}
        kept += sorted(done.fields["scalars"].keys() - scalars.keys())
        model = model_digest(message.tensors)
        fields = {"run": run, "round": number, "sequence": self.sequence(run), "site": self.site.site}
        fields |= {"samples": done.fields["samples"], "scalars": scalars, "model": model}
        sealed = self.recorded("update", fields, asked.digest, tensors, kept)
        keep_round(folder, number, model, message, sealed)
        return sealed

    def sequence(self, run: str) -> int:
        """The number of the next answer to a run: 1, 2, ... without a gap."""
        answers = (entry for entry in self.ledger.entries if entry["kind"] in ("answer", "refusal"))
        return 1 + len([entry for entry in answers if entry["run"] == run])

    def recorded(
        self,
        kind: str,
        fields: Mapping[str, Any],
        configuration: str | None,
        tensors: Mapping[str, Tensor] | None = None,
        kept: list[str] | None = None,
    ) -> bytes:
        """The sealed answer, once its line of the ledger is on the disk."""
        content = payload.pack(kind, fields, tensors)
        described = []
        for name, tensor in (tensors or {}).items():
            size, norm = tensor.numel() * tensor.element_size(), float(tensor.double().norm())
            described.append([name, payload.NAMES[tensor.dtype], list(tensor.shape), size, norm])
        entry = self.ledger.append(
            "refusal" if kind == "refusal" else "answer",
            message=kind,
            data_set=self.site.data_set,
            configuration=configuration,
            sha256=hashlib.sha256(content).hexdigest(),
            bytes=len(content) + payload.ANSWER_OVERHEAD,
            tensors=described,
            withheld=kept or [],
            epsilon=None,
            **{name: fields[name] for name in ("run", "round", "sequence", "reason", "model") if name in fields},
            scalars={**fields.get("scalars", {}), **{n: fields[n] for n in ("samples", "channels") if n in fields}},
        )
        return payload.seal(content, Anchor(entry["number"], entry["digest"]), self.key.sign)

    def refused(self, run: str, reason: str) -> bytes:
        """The sealed refusal."""
        text = "".join(letter if letter.isprintable() else "?" for letter in reason)[: payload.MOST_REASON]
        fields = {"run": run, "sequence": self.sequence(run), "site": self.site.site, "reason": text}
        return self.recorded("refusal", fields | {"key": self.key.public}, None)

    def delivered(self, sealed: bytes) -> None:
        """Record that an answer was handed over, once."""
        number = int.from_bytes(sealed[8:16], "little")
        if not any(entry["kind"] == "delivered" and entry["answer"] == number for entry in self.ledger.entries):
            self.ledger.append("delivered", answer=number)


def readable(request: bytes | bytearray) -> Message:
    """The message of a request. ``Refusal`` for anything but a "hello" or "train" of this protocol and version."""
    try:
        message = payload.unpack(request)
    except ValueError:
        raise Refusal("the request is not in the format of this program") from None
    if message.kind not in ("hello", "train"):
        raise Refusal("the request is neither hello nor train")
    if message.fields["protocol"] != payload.PROTOCOL:
        raise Refusal(f"the request has another protocol; this site's is {payload.PROTOCOL}")
    if message.fields["version"] != __version__:
        raise Refusal(f"the request comes from another version; this site runs sslmed_dist {__version__}")
    return message


def require_numbers(what: str, tensors: Mapping[str, Tensor], largest: float) -> None:
    """``Refusal`` for numbers that are not finite or too large, and for variances below 0."""
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise Refusal(f"{what} is not finite in {name}")
        if float(tensor.abs().max()) > largest:
            raise Refusal(f"{what} is larger than this site's rules allow in {name}")
        if name.endswith(".running_var") and float(tensor.min()) < 0:
            raise Refusal(f"{what} has a variance below 0 in {name}")


def require_alike(what: str, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """``Refusal`` unless names, shapes and types are those of ``expected``."""
    described = [{n: (t.shape, t.dtype) for n, t in some.items()} for some in (tensors, expected)]
    if described[0] != described[1]:
        raise Refusal(f"{what} has other tensors, shapes or types than the model before")


def require_change(what: str, tensors: Mapping[str, Tensor], before: Mapping[str, Tensor], most: float) -> None:
    """``Refusal`` where the L2 norm of the change, over all tensors, is more than ``most`` times that of ``before``."""
    change = sum(float((tensors[name].double() - before[name].double()).square().sum()) for name in before) ** 0.5
    size = sum(float(tensor.double().square().sum()) for tensor in before.values()) ** 0.5
    if change > most * max(size, 1e-12):
        raise Refusal(f"{what} is further from the model before than this site's rules allow")


def keep_round(folder: Path, number: int, model: str, message: Message, sealed: bytes) -> None:
    """Keep a round's answer and the model that it started from. Of older answers only the newest stays."""
    last = folder / "answered.json"
    state = json.loads(last.read_text()) if last.exists() else {}
    state = dict(sorted({**state, str(number): model}.items(), key=lambda item: int(item[0]))[-2:])
    write_atomically(folder / f"answer_{number:05d}.bin", sealed)
    write_atomically(folder / "model.bin", payload.pack("train", message.fields, message.tensors))
    write_atomically(last, json.dumps(state).encode())
    for path in folder.glob("answer_*.bin"):
        if path.stem.removeprefix("answer_").lstrip("0") not in {key.lstrip("0") for key in state}:
            path.unlink(missing_ok=True)


def pending_folder(site: SiteFile) -> Path:
    """Where configurations wait for the site."""
    return Path(site.state) / "pending"


def keep_pending(site: SiteFile, asked: Request) -> None:
    """Keep a configuration for the person who decides; of too many the new one is not kept, and the person sees the
    others first."""
    path = pending_folder(site) / f"{asked.digest}.json"
    if not path.exists() and len(list(path.parent.glob("*.json"))) < MOST_PENDING:
        write_atomically(path, json.dumps(asked.tree, sort_keys=True).encode())
