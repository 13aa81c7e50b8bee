"""The steps of a secure sum at a site of research: the data side's own code, in the app's process.

Nothing is secret here. All sites of a research run belong to one user, so their keys come from the run's name by a
hash, and whoever reads this can compute them. What is real is the arithmetic: the same average as at hospitals.
"""

import hashlib
from functools import partial
from pathlib import Path

from sslmed_dist.config import Config
from sslmed_dist.data.dataset import Dataset
from sslmed_dist.federation import payload, secure_steps
from sslmed_dist.federation.local_round import local_update
from sslmed_dist.federation.messages import SiteError
from sslmed_dist.federation.secure_keys import public_of
from sslmed_dist.federation.secure_site import Member
from sslmed_dist.federation.shared import model_digest
from sslmed_dist.federation.sites import federated_section


def answer(settings: Config, site: str, dataset: Dataset, folder: Path, data: bytes) -> bytes:
    """The answer to a request of a secure sum as a message of ``payload``, unsigned. ``SiteError`` for anything else,
    ``Refusal`` as a hospital's data side would."""
    message = payload.unpack(data)
    secure = federated_section(settings).secure
    if secure is None or message.kind not in ("secure_train", *secure_steps.STEPS):
        raise SiteError("this run has no secure sum")
    run = hashlib.sha256(message.fields["config"].encode()).hexdigest()
    member = Member(site, key(run, site), partial(peer, run), folder / "secure")
    number = message.fields["round"]
    fields = {"run": run, "round": number, "attempt": message.fields["attempt"], "sequence": 0, "site": site}
    if message.kind != "secure_train":
        kind, step = secure_steps.STEPS[message.kind]
        more, tensors = step(member, message.fields)
        return payload.pack(kind, fields | more, tensors)
    terms = secure_steps.terms(secure, run, message)
    member.require_next(terms)
    update, scalars = local_update(settings, site, dataset, number, message.tensors, folder)
    more = member.begin(terms, message.tensors, update, len(dataset))
    more |= {"samples": len(dataset), "model": model_digest(message.tensors)}
    more["scalars"] = {name: float(value) for name, value in scalars.items()}
    return payload.pack("secure_shares", fields | more)


def key(run: str, site: str) -> bytes:
    """The private key of a site of research. It is no secret."""
    return hashlib.sha256(f"sslmed research {run} {site}".encode()).digest()


def peer(run: str, site: str) -> bytes:
    """The public key of a site of research."""
    return public_of(key(run, site))
