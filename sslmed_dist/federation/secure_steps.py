"""From a request of a secure sum to what a site answers: the one table of its steps, for the door and for research."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from sslmed_dist.federated_section import Secure
from sslmed_dist.federation import payload
from sslmed_dist.federation.payload import Message
from sslmed_dist.federation.policy import Refusal
from sslmed_dist.federation.secure_site import SUM, Member
from sslmed_dist.federation.secure_sum import Terms
from sslmed_dist.federation.shared import model_digest

Answer = tuple[dict[str, Any], dict[str, Tensor]]  # the fields that the step itself gives, and its tensors


def terms(secure: Secure, run: str, message: Message) -> Terms:
    """What a request "secure_train" asks to agree on. ``Refusal`` where it protects nobody."""
    fields = message.fields
    model = model_digest(message.tensors)
    try:
        return Terms.of(secure, run, fields["round"], fields["attempt"], model, fields["sites"], fields["share"])
    except ValueError as error:
        raise Refusal(str(error)) from None


def as_train(message: Message) -> bytes:
    """The request "train" that is in a request "secure_train": a site trains for both in the same way."""
    fields = {name: message.fields[name] for name in payload.FIELDS["train"]}
    return payload.pack("train", fields, message.tensors)


def mask(member: Member, fields: Mapping[str, Any]) -> Answer:
    """Step 2."""
    masked = member.masked(fields["attempt"], fields["round"], fields["publics"], fields["sealed"])
    return {}, {SUM: masked}


def confirm(member: Member, fields: Mapping[str, Any]) -> Answer:
    """Step 3."""
    return {"confirmations": member.confirmed(fields["attempt"], fields["round"], fields["survivors"])}, {}


def reveal(member: Member, fields: Mapping[str, Any]) -> Answer:
    """Step 4."""
    return dict(member.revealed(fields["attempt"], fields["round"], fields["confirmations"])), {}


# The kind of the request: (that of the answer, what is done). Step 1 trains, which the door and research do in their
# own ways.
STEPS: Mapping[str, tuple[str, Callable[[Member, Mapping[str, Any]], Answer]]] = {
    "secure_mask": ("secure_masked", mask),
    "secure_confirm": ("secure_confirmed", confirm),
    "secure_reveal": ("secure_revealed", reveal),
}
