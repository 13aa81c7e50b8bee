"""The bytes that pass a site's door, in both directions: one closed format of our own, no pickle.

    message = MAGIC (8) | length of the header (4, little-endian) | header | numbers of the tensors, one after another
    answer  = SEALED (8) | number of the ledger entry (8) | its digest (32) | message | signature (64)

The header is JSON in the one form of ``ledger.canonical``: any other spelling of the same content is refused, and so is
a field, kind, type or byte that stands not in the tables below. Tensors are little-endian, in the order of the header.
The signature (Ed25519) is the data side's, over all bytes before it.
"""

import json
import math
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslmed_dist.federation import site_key
from sslmed_dist.federation.figures import are_figures
from sslmed_dist.federation.ledger import Anchor, canonical, is_digest
from sslmed_dist.federation.secure_keys import MOST_SITES, SEALED_SHARES
from sslmed_dist.federation.shamir import SHARE
from sslmed_dist.federation.site_file import NAME

MAGIC, SEALED = b"SSLMED1\n", b"SSLMEDA1"
PROTOCOL = 1
MOST_HEADER, MOST_TENSORS, MOST_AXES, MOST_SCALARS, MOST_REASON = 1 << 20, 4096, 8, 64, 400
ANSWER_OVERHEAD = 8 + 8 + 32 + 64  # bytes of an answer around its message
TENSOR = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+){0,30}")
VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+!-]{0,63}")
SCALAR = re.compile(r"[a-z][a-z0-9_]{0,39}")
TYPES: Mapping[str, tuple[torch.dtype, str]] = {
    "float32": (torch.float32, "<f4"),
    "float64": (torch.float64, "<f8"),
    "int32": (torch.int32, "<i4"),
    "int64": (torch.int64, "<i8"),
}
NAMES: Mapping[torch.dtype, str] = {kind: name for name, (kind, _) in TYPES.items()}
# The fields of each kind of message, beside ``kind`` and ``tensors``; ``FORMS`` says what each form is.
ASKED = {"protocol": "count", "version": "version", "config": "text"}  # every request
SECURE_ASKED = {**ASKED, "round": "count", "attempt": "count"}  # every step of a secure sum
SECURE_SAID = {"run": "digest", "round": "count", "attempt": "count", "sequence": "count", "site": "name"}
FIELDS: Mapping[str, Mapping[str, str]] = {
    "hello": ASKED,
    "train": {**ASKED, "round": "count"},
    "evaluate": {**ASKED, "round": "count"},
    "secure_train": {**SECURE_ASKED, "sites": "counts", "share": "fraction"},
    "secure_mask": {**SECURE_ASKED, "publics": "digests", "sealed": "sealed"},
    "secure_confirm": {**SECURE_ASKED, "survivors": "names"},
    "secure_reveal": {**SECURE_ASKED, "confirmations": "digests"},
    "greeting": {
        "run": "digest",
        "sequence": "count",
        "site": "name",
        "version": "version",
        "channels": "count",
        "samples": "count",
        "key": "digest",
    },
    "update": {
        "run": "digest",
        "round": "count",
        "sequence": "count",
        "site": "name",
        "samples": "count",
        "scalars": "scalars",
        "model": "digest",
    },
    "figures": {
        "run": "digest",
        "round": "count",
        "sequence": "count",
        "site": "name",
        "figures": "figures",
        "scalars": "scalars",
        "model": "digest",
    },
    "secure_shares": {
        **SECURE_SAID,
        "samples": "count",
        "scalars": "scalars",
        "model": "digest",
        "public": "digest",
        "commitment": "digest",
        "sealed": "sealed",
    },
    "secure_masked": SECURE_SAID,
    "secure_confirmed": {**SECURE_SAID, "confirmations": "digests"},
    "secure_revealed": {**SECURE_SAID, "keys": "shares", "seeds": "shares"},
    "refusal": {"run": "digest", "sequence": "count", "site": "name", "reason": "reason", "key": "digest"},
}
# The kinds that a server sends; ``door.ANSWERS`` says how each is answered.
REQUESTS = ("hello", "train", "evaluate", "secure_train", "secure_mask", "secure_confirm", "secure_reveal")
# The kinds that carry tensors, and the types that those may have. The others carry none.
REAL = ("float32", "float64")
WITH_TENSORS: Mapping[str, tuple[str, ...]] = {
    "train": REAL,
    "update": REAL,
    "evaluate": REAL,
    "secure_train": REAL,
    "secure_masked": ("int32", "int64"),
}


@dataclass(frozen=True)
class Message:
    """One message: its kind, its fields, and its tensors by name."""

    kind: str
    fields: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class Answer:
    """What a site's door gave out: the message, and the ledger's entry that stands for it."""

    message: Message
    anchor: Anchor


def is_count(value: Any) -> bool:
    """Whether this is a whole number from 0 to 2^53 - 1."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53


def are_scalars(value: Any) -> bool:
    """Whether these are at most ``MOST_SCALARS`` finite numbers by plain names."""
    pairs = value.items() if isinstance(value, dict) and len(value) <= MOST_SCALARS else [(None, None)]
    return all(SCALAR.fullmatch(str(k)) and isinstance(v, float) and math.isfinite(v) for k, v in pairs)


def by_site(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Whether a field is at most ``MOST_SITES`` values by the names of sites, for each of which ``holds``."""

    def fits(value: Any) -> bool:
        known = isinstance(value, dict) and len(value) <= MOST_SITES
        return known and all(NAME.fullmatch(name) and holds(item) for name, item in value.items())

    return fits


def is_hex(length: int) -> Callable[[Any], bool]:
    """Whether a field is ``length`` bytes in hexadecimal digits."""
    return lambda v: isinstance(v, str) and len(v) == 2 * length and set(v) <= set("0123456789abcdef")


def are_names(value: Any) -> bool:
    """Whether these are at most ``MOST_SITES`` names of sites, each once, in order."""
    known = isinstance(value, list) and len(value) <= MOST_SITES and all(isinstance(name, str) for name in value)
    return known and sorted(set(value)) == value and all(map(NAME.fullmatch, value))


# What a field of a header may be.
FORMS: Mapping[str, Callable[[Any], bool]] = {
    "count": is_count,
    "scalars": are_scalars,
    "digest": is_digest,
    "name": lambda value: isinstance(value, str) and NAME.fullmatch(value) is not None,
    "version": lambda value: isinstance(value, str) and VERSION.fullmatch(value) is not None,
    "reason": lambda value: isinstance(value, str) and len(value) <= MOST_REASON and value.isprintable(),
    "text": lambda value: isinstance(value, str),
    "figures": are_figures,
    "fraction": lambda value: isinstance(value, float) and 0.0 <= value <= 1.0,
    "names": are_names,
    "counts": by_site(is_count),
    "digests": by_site(is_digest),
    "shares": by_site(is_hex(SHARE)),
    "sealed": by_site(is_hex(SEALED_SHARES)),
}


def require_header(header: Any) -> None:
    """``ValueError`` where a header is not one of the table: too few or too many fields, or one of another kind."""
    kind = header.get("kind") if isinstance(header, dict) else None
    if not isinstance(kind, str) or kind not in FIELDS:
        raise ValueError("the message is of an unknown kind")
    expected = {"kind", "tensors", *FIELDS[kind]}
    if header.keys() != expected:
        raise ValueError(f"the message {kind} has other fields than {', '.join(sorted(expected))}")
    for name, form in FIELDS[kind].items():
        if not FORMS[form](header[name]):
            raise ValueError(f"the field {name} of the message {kind} is no {form}")


def specification(header: Mapping[str, Any]) -> list[tuple[str, str, tuple[int, ...]]]:
    """Names, types and shapes of the tensors in a header. ``ValueError`` for names that come twice, unknown types,
    empty axes, or tensors in a message that carries none."""
    listed, allowed = header["tensors"], WITH_TENSORS.get(header["kind"], ())
    if not isinstance(listed, list) or len(listed) > MOST_TENSORS or bool(listed) != bool(allowed):
        raise ValueError("the list of tensors is none, too long, or empty where there must be some")
    found = []
    for item in listed:
        if not (isinstance(item, list) and len(item) == 3 and isinstance(item[0], str) and isinstance(item[2], list)):
            raise ValueError("a tensor is not described by name, type and shape")
        name, kind, shape = item
        axes = all(isinstance(axis, int) and not isinstance(axis, bool) and 0 < axis < 1 << 40 for axis in shape)
        if not TENSOR.fullmatch(name) or len(name) > 200 or kind not in allowed or len(shape) > MOST_AXES or not axes:
            raise ValueError("a tensor has a name, type or shape that is none")
        found.append((name, kind, tuple(shape)))
    if len({name for name, _, _ in found}) < len(found):
        raise ValueError("a tensor comes twice")
    return found


def pack(kind: str, fields: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> bytes:
    """A message as bytes. ``ValueError`` where it is none of the table: what cannot be read is not written."""
    arrays = {name: tensor.detach().cpu().contiguous() for name, tensor in (tensors or {}).items()}
    for name, tensor in arrays.items():
        if tensor.dtype not in NAMES:
            raise ValueError(f"tensor {name}: {tensor.dtype} does not travel; allowed: {', '.join(TYPES)}")
    listed = [[name, NAMES[tensor.dtype], list(tensor.shape)] for name, tensor in arrays.items()]
    header = {"kind": kind, **fields, "tensors": listed}
    require_header(header)
    specification(header)
    text = canonical(header)
    if len(text) > MOST_HEADER:
        raise ValueError(f"the header is longer than {MOST_HEADER:,} bytes")
    numbers = (t.numpy().astype(TYPES[NAMES[t.dtype]][1], copy=False).tobytes() for t in arrays.values())
    return b"".join([MAGIC, struct.pack("<I", len(text)), text, *numbers])


def unpack(data: bytes | bytearray | memoryview) -> Message:
    """The message in ``data``. ``ValueError`` for anything that ``pack`` would not have written, to the byte."""
    view = memoryview(data)
    if bytes(view[:8]) != MAGIC or len(view) < 12:
        raise ValueError("the bytes are no message of this program")
    (length,) = struct.unpack("<I", view[8:12])
    if length > MOST_HEADER or 12 + length > len(view):
        raise ValueError("the header is longer than the message, or than allowed")
    text = bytes(view[12 : 12 + length])
    try:
        header = json.loads(text)
        same = canonical(header) == text
    except (ValueError, RecursionError):
        raise ValueError("the header is no JSON") from None
    if not same:
        raise ValueError("the header is not in the one form that is allowed")
    require_header(header)
    listed, start, tensors = specification(header), 12 + length, {}
    sizes = [math.prod(shape) * np.dtype(TYPES[kind][1]).itemsize for _, kind, shape in listed]
    if start + sum(sizes) != len(view):
        raise ValueError("the tensors are not as long as the header says")
    for (name, kind, shape), size in zip(listed, sizes, strict=True):
        array = np.frombuffer(view[start : start + size], TYPES[kind][1]).reshape(shape)
        tensors[name] = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=True))
        start += size
    fields = {name: value for name, value in header.items() if name not in ("kind", "tensors")}
    return Message(header["kind"], fields, tensors)


def seal(content: bytes, anchor: Anchor, sign: Callable[[bytes], bytes]) -> bytes:
    """An answer: the message ``content`` with the ledger's entry that stands for it, signed by ``sign``."""
    signed = b"".join([SEALED, struct.pack("<Q", anchor.number), bytes.fromhex(anchor.digest), content])
    return signed + sign(signed)


def unseal(data: bytes | memoryview, public: bytes | None = None) -> tuple[Answer, bytes]:
    """(the answer in ``data``, the public key that signed it). ``public`` is the key that the site is known by; None
    takes the one that the answer names, which only a first greeting or a refusal does. ``ValueError`` for a forged or
    damaged one."""
    view = memoryview(data)
    if bytes(view[:8]) != SEALED or len(view) < ANSWER_OVERHEAD:
        raise ValueError("the bytes are no answer of a site's data side")
    message = unpack(view[48:-64])
    if public is None:
        if "key" not in message.fields:
            raise ValueError("the site's key is not known yet")
        public = bytes.fromhex(message.fields["key"])
    if not site_key.is_signed(bytes(view[:-64]), bytes(view[-64:]), public):
        raise ValueError("the answer is not signed by the site's data side")
    (number,) = struct.unpack("<Q", view[8:16])
    return Answer(message, Anchor(number, bytes(view[16:48]).hex())), public
