"""What every answer of a site's door is made with: the budget, the checks of tensors, the ledger, the seal.

``door.ANSWERS`` says which function answers which kind of request; each gets the door and one ``Turn``.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslmed_dist.atomic_files import write_atomically
from sslmed_dist.federation import payload, policy, site_key, site_privacy
from sslmed_dist.federation.ledger import Anchor, Ledger
from sslmed_dist.federation.payload import Message
from sslmed_dist.federation.policy import Refusal, Request, Spent
from sslmed_dist.federation.shared import Arrays, model_digest
from sslmed_dist.federation.site_file import SiteFile
from sslmed_dist.federation.site_work import Failure

HEADER_ROOM = 1 << 16  # bytes of an answer beside its tensors, for the budget
SECRETS = ("sealed", "confirmations", "keys", "seeds")  # fields by site; the ledger says the sites
FAILED = "the work failed at this site; its own log says why"
# Fields of an answer that the ledger repeats as they are.
WRITTEN = ("run", "round", "sequence", "reason", "model", "attempt", "figures")
Work = Callable[[SiteFile, str, bytes], tuple[int, bytes]]


@dataclass(frozen=True)
class Turn:
    """One request that the rules allow: the run (SHA-256 of its configuration as it travels), what the rules made of
    the configuration, the folder of what belongs to it, the message, and its bytes."""

    run: str
    asked: Request
    folder: Path
    message: Message
    data: bytes


@dataclass(frozen=True)
class Cleared:
    """What of the work's answer may leave: tensors, scalars, and the names of what is held back."""

    tensors: Arrays
    scalars: Mapping[str, float]
    kept: list[str]


@dataclass
class Doorway:
    """The door of one site without its requests. ``work`` does what lies behind it: (site, configuration's digest,
    request) to (number of examinations, answer of ``site_work.perform``). ``clock`` gives the local time."""

    site: SiteFile
    work: Work
    clock: Callable[[], time.struct_time] = time.localtime

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.site.ledger)
        self.key = site_key.load(self.site.key)
        site_key.require_of_others(self.site.peers, self.key)

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

    def reserve(self, turn: Turn, rounds: int = 0, tensors: Mapping[str, Tensor] | None = None) -> None:
        """Write down what the work may send before it begins: so many rounds, and tensors as large as these.
        ``Refusal`` outside the site's hours, and where that is more than is left."""
        policy.require_hour(self.site.policy, self.clock())
        if rounds:
            site_privacy.require_room(self.site, turn.message.tensors)
        size = HEADER_ROOM + sum(tensor.numel() * tensor.element_size() for tensor in (tensors or {}).values())
        policy.require_budget(self.site, Spent.of(self.ledger.entries, self.site.data_set), rounds, size)
        number, spent = turn.message.fields.get("round"), site_privacy.reserved(self.site, turn.message)
        content = {"run": turn.run, "configuration": turn.asked.digest, "message": turn.message.kind, **spent}
        self.ledger.append("reserved", data_set=self.site.data_set, count=rounds, size=size, round=number, **content)

    @contextmanager
    def working(self, turn: Turn) -> Iterator[None]:
        """Around the work and the look at its answer: an error becomes a line of the ledger and the ``Refusal``
        ``FAILED``. No text of it leaves. A ``Refusal`` passes."""
        try:
            yield
        except Refusal:
            raise
        except Exception as error:  # whatever the work or what it gave back raises
            reason = str(error) if isinstance(error, Failure) else type(error).__name__
            self.ledger.append("failure", run=turn.run, configuration=turn.asked.digest, reason=reason)
            raise Refusal(FAILED) from None

    def cleared(self, turn: Turn, done: Message, examinations: int) -> Cleared:
        """What of the update that the work gave back may leave; it is checked as if a stranger had sent it. With noise
        the sizes are looked at after it: before, a refusal would tell of the data."""
        rules, sent, noise = self.site.policy.update, turn.message.tensors, site_privacy.mechanism(self.site)
        require_alike("the update", done.tensors, sent)
        require_numbers("the update", done.tensors, math.inf if noise else rules.largest)
        tensors, scalars, kept = site_privacy.leaving(
            self.site, sent, dict(done.tensors), done.fields["scalars"], examinations
        )
        require_numbers("the update", tensors, rules.largest)
        require_change("the update", tensors if noise else done.tensors, sent, rules.change)
        return Cleared(tensors, scalars, kept)

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
            size = tensor.numel() * tensor.element_size()
            norm = float(tensor.double().norm()) if tensor.is_floating_point() else None  # of masks it says nothing
            described.append([name, payload.NAMES[tensor.dtype], list(tensor.shape), size, norm])
        secrets = {name: sorted(fields[name]) for name in SECRETS if name in fields}
        entry = self.ledger.append(
            "refusal" if kind == "refusal" else "answer",
            message=kind,
            data_set=self.site.data_set,
            configuration=configuration,
            sha256=hashlib.sha256(content).hexdigest(),
            bytes=len(content) + payload.ANSWER_OVERHEAD,
            tensors=described,
            withheld=kept or [],
            **(site_privacy.account(self.site, self.ledger.entries) if tensors else {"epsilon": None}),
            **({"secrets": secrets} if secrets else {}),
            **{name: fields[name] for name in WRITTEN if name in fields},
            scalars={**fields.get("scalars", {}), **{n: fields[n] for n in ("samples", "channels") if n in fields}},
        )
        return payload.seal(content, Anchor(entry["number"], entry["digest"]), self.key.sign)


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
    """``Refusal`` where the L2 norm of the change, over all tensors, is more than ``most`` times that of ``before``.
    Statistics that nobody has measured yet are left out: a first variance may be any number of times the 1 before it.
    """
    counted = [name for name, tensor in before.items() if not unmeasured(name, tensor)]
    change = sum(float((tensors[name].double() - before[name].double()).square().sum()) for name in counted) ** 0.5
    size = sum(float(before[name].double().square().sum()) for name in counted) ** 0.5
    if change > most * max(size, 1e-12):
        raise Refusal(f"{what} is further from the model before than this site's rules allow")


def unmeasured(name: str, tensor: Tensor) -> bool:
    """Whether this is a norm's running mean or variance as it is made: all 0, or all 1."""
    fresh = {".running_mean": 0.0, ".running_var": 1.0}
    return any(name.endswith(ending) and bool((tensor == value).all()) for ending, value in fresh.items())


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
