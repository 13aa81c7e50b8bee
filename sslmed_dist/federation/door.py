"""The one door through which anything leaves a site: rules, work, ledger, answer, in this order.

``Door.answer`` takes the bytes of a request and gives the bytes of an answer. It knows no network. Whatever arrives
gets an answer out of the closed table of ``payload``, signed, and written to the ledger before it is returned. An error
never becomes an answer's text: only the lines of ``Refusal`` do, and those are written here and in ``policy``.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from sslmed_dist import __version__
from sslmed_dist.atomic_files import write_atomically
from sslmed_dist.federation import housekeeping, payload, policy, secure_door, secure_steps, site_privacy
from sslmed_dist.federation.door_figures import evaluate
from sslmed_dist.federation.doorway import Doorway, Turn, keep_round
from sslmed_dist.federation.payload import Message
from sslmed_dist.federation.policy import Refusal, Request, Spent
from sslmed_dist.federation.shared import model_digest
from sslmed_dist.federation.site_file import SiteFile
from sslmed_dist.federation.site_work import folder_of

MOST_PENDING = 20  # configurations that wait for the site
NO_RUN = "0" * 64  # the run of a request that names none


def hello(door: Doorway, turn: Turn) -> bytes:
    """The answer to "hello"."""
    door.reserve(turn)
    with door.working(turn):
        _, data = door.work(door.site, turn.asked.digest, turn.data)
        done = json.loads(data)
        fields = {"run": turn.run, "sequence": door.sequence(turn.run), "site": door.site.site}
        fields |= {"version": __version__, "channels": done["channels"]}
        fields["samples"] = site_privacy.samples(door.site, done["samples"])
        return door.recorded("greeting", fields | {"key": door.key.public}, turn.asked.digest)


def train(door: Doorway, turn: Turn) -> bytes:
    """The answer to "train": an update, the stored one where the round was answered before."""
    message, model = turn.message, model_digest(turn.message.tensors)
    number = message.fields["round"]
    secure_door.require_single(door, turn)
    kept = door.kept_answer(turn.folder, number, model)
    if kept is not None:
        return kept
    door.require_model(turn.folder, message)
    door.reserve(turn, 1, message.tensors)
    with door.working(turn):
        examinations, data = door.work(door.site, turn.asked.digest, turn.data)
        done = payload.unpack(data)
        cleared = door.cleared(turn, done, examinations)
        fields = {"run": turn.run, "round": number, "sequence": door.sequence(turn.run), "site": door.site.site}
        samples = site_privacy.samples(door.site, done.fields["samples"])
        fields |= {"samples": samples, "scalars": cleared.scalars, "model": model}
        sealed = door.recorded("update", fields, turn.asked.digest, cleared.tensors, cleared.kept)
        keep_round(turn.folder, number, model, message, sealed)
        return sealed


# How each kind of request is answered; the kinds are those of ``payload.REQUESTS``.
ANSWERS: Mapping[str, Callable[[Doorway, Turn], bytes]] = {
    "hello": hello,
    "train": train,
    "evaluate": evaluate,
    "secure_train": secure_door.begin,
    **dict.fromkeys(secure_steps.STEPS, secure_door.go_on),
}


class Door(Doorway):
    """The door of one site."""

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
            asked = policy.request(policy.opened(message.fields["config"]), self.site.policy)
            self.require_accepted(asked)
            turn = Turn(run, asked, folder_of(self.site, asked.digest), message, bytes(request))
            housekeeping.require_kept(turn.folder)
            return ANSWERS[message.kind](self, turn)
        except Refusal as refusal:
            return self.refused(run, str(refusal))

    def require_accepted(self, asked: Request) -> None:
        """``Refusal`` for a run that the site has not accepted. It is kept for the person who decides."""
        rules = self.site.policy
        if asked.digest in policy.accepted(self.ledger.entries, rules):
            return
        if rules.accept == "each":
            keep_pending(self.site, asked)
        raise Refusal(f"this site has not accepted the run; its configuration's digest here is {asked.digest}")

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
    """The message of a request. ``Refusal`` for anything but one of ``ANSWERS``, of this protocol and version."""
    try:
        message = payload.unpack(request)
    except ValueError:
        raise Refusal("the request is not in the format of this program") from None
    if message.kind not in ANSWERS:
        raise Refusal(f"the request is none of {', '.join(ANSWERS)}")
    if message.fields["protocol"] != payload.PROTOCOL:
        raise Refusal(f"the request has another protocol; this site's is {payload.PROTOCOL}")
    if message.fields["version"] != __version__:
        raise Refusal(f"the request comes from another version; this site runs sslmed_dist {__version__}")
    return message


def pending_folder(site: SiteFile) -> Path:
    """Where configurations wait for the site."""
    return Path(site.state) / "pending"


def keep_pending(site: SiteFile, asked: Request) -> None:
    """Keep a configuration for the person who decides; of too many the new one is not kept, and the person sees the
    others first."""
    path = pending_folder(site) / f"{asked.digest}.json"
    if not path.exists() and len(list(path.parent.glob("*.json"))) < MOST_PENDING:
        write_atomically(path, json.dumps(asked.tree, sort_keys=True).encode())
