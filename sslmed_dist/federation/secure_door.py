"""The steps of a secure sum at the door of a site of two processes: rules, work, masks, ledger, answer.

The keys and masks live in the door's own process; the process that trains sees none of them.
"""

from sslmed_dist.atomic_files import write_atomically
from sslmed_dist.federated_section import Secure
from sslmed_dist.federation import payload, secure_steps, site_privacy
from sslmed_dist.federation.doorway import Doorway, Turn
from sslmed_dist.federation.policy import Refusal
from sslmed_dist.federation.secure_site import Member
from sslmed_dist.federation.shared import model_digest
from sslmed_dist.printable import excerpt


def require_single(door: Doorway, turn: Turn) -> None:
    """``Refusal`` where the updates of this run, or of this site, leave in secure sums alone."""
    fed = turn.asked.settings.federated
    if fed is not None and fed.secure is not None:
        raise Refusal("the updates of this run leave in secure sums alone")
    if door.site.policy.sums == "required":
        raise Refusal("this site's updates leave in secure sums alone (federated.secure)")


def secure_of(turn: Turn) -> Secure:
    """``federated.secure`` of the run. ``Refusal`` where it has none."""
    fed = turn.asked.settings.federated
    if fed is None or fed.secure is None:
        raise Refusal("this run has no secure sum (federated.secure)")
    return fed.secure


def member(door: Doorway, turn: Turn) -> Member:
    """This site as a member of the run's secure sums."""

    def peer(name: str) -> bytes:
        if name not in door.site.peers:
            raise Refusal(f"this site knows no peer key of {excerpt(name)} (peers)")
        return bytes.fromhex(door.site.peers[name])

    return Member(door.site.site, door.key.exchange, peer, turn.folder / "secure")


def begin(door: Doorway, turn: Turn) -> bytes:
    """The answer to "secure_train": the update stays here, the shares of two secrets leave."""
    message, own = turn.message, member(door, turn)
    terms = secure_steps.terms(secure_of(turn), turn.run, message)
    own.require_next(terms)
    door.require_model(turn.folder, message)
    door.reserve(turn, 1)
    request = secure_steps.as_train(message)
    with door.working(turn):
        examinations, data = door.work(door.site, turn.asked.digest, request)
        done = payload.unpack(data)
        cleared = door.cleared(turn, done, examinations)
        samples = site_privacy.samples(door.site, done.fields["samples"])
        fields = own.begin(terms, message.tensors, cleared.tensors, samples)
        fields |= {
            "samples": samples,
            "scalars": cleared.scalars,
            "model": model_digest(message.tensors),
        }
        write_atomically(turn.folder / "model.bin", request)  # the next round's model is compared with it
        return door.recorded("secure_shares", said(door, turn) | fields, turn.asked.digest, kept=cleared.kept)


def go_on(door: Doorway, turn: Turn) -> bytes:
    """The answer to any later step."""
    secure_of(turn)
    kind, step = secure_steps.STEPS[turn.message.kind]
    own = member(door, turn)
    with door.working(turn):
        fields, tensors = step(own, turn.message.fields)
        door.reserve(turn, 0, tensors)
        return door.recorded(kind, said(door, turn) | fields, turn.asked.digest, tensors)


def said(door: Doorway, turn: Turn) -> dict[str, object]:
    """The fields of every answer of a secure sum."""
    number, attempt = turn.message.fields["round"], turn.message.fields["attempt"]
    fields = {"run": turn.run, "round": number, "attempt": attempt}
    return fields | {"sequence": door.sequence(turn.run), "site": door.site.site}
