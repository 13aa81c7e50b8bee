"""The format of the door: what ``pack`` would not have written is not read, to the byte; answers cannot be forged."""

import json
import struct
from typing import Any

import pytest
import torch

from sslmed_dist.federation import payload
from sslmed_dist.federation.ledger import Anchor, canonical
from sslmed_dist.federation.shared import model_digest

HELLO = {"protocol": 1, "version": "0.1.0", "config": "YQ=="}
TENSORS = {"encoder.w": torch.arange(6.0).reshape(2, 3), "encoder.b": torch.tensor([0.1, -2.5], dtype=torch.float64)}


def made(header: Any, body: bytes = b"") -> bytes:
    """Bytes with this header, in the right form or as given."""
    text = header if isinstance(header, bytes) else canonical(header)
    return payload.MAGIC + struct.pack("<I", len(text)) + text + body


def test_what_is_packed_is_read_back_bit_for_bit() -> None:
    data = payload.pack("train", {**HELLO, "round": 3}, TENSORS)
    message = payload.unpack(data)
    assert (message.kind, dict(message.fields)) == ("train", {**HELLO, "round": 3})
    assert list(message.tensors) == list(TENSORS)
    for name, tensor in TENSORS.items():
        assert message.tensors[name].dtype == tensor.dtype and torch.equal(message.tensors[name], tensor)
    assert payload.pack("train", message.fields, message.tensors) == data
    assert len(data) < 400
    message.tensors["encoder.w"][0, 0] = 9.0  # memory of its own


@pytest.mark.parametrize(("version", "fine"), [("1.2.3.dev4+gab12", True), ("1 2", False), ("Jane\n", False)])
def test_versions_as_tools_write_them(version: str, fine: bool) -> None:
    if fine:
        assert payload.unpack(payload.pack("hello", {**HELLO, "version": version})).fields["version"] == version
    else:
        with pytest.raises(ValueError, match="version"):
            payload.pack("hello", {**HELLO, "version": version})


def test_a_number_that_is_no_contiguous_tensor_travels_too() -> None:
    turned = {"w": torch.arange(6.0).reshape(2, 3).T}
    message = payload.unpack(payload.pack("train", {**HELLO, "round": 0}, turned))
    assert torch.equal(message.tensors["w"], turned["w"])


HEADER = {"kind": "train", **HELLO, "round": 0, "tensors": [["w", "float32", [2]]]}
BODY = b"\0" * 8
BAD: list[tuple[str, bytes]] = [
    ("empty", b""),
    ("a pickle", b"\x80\x04N."),
    ("another magic", b"SSLMED2\n" + made(HEADER, BODY)[8:]),
    ("a header that ends nowhere", payload.MAGIC + struct.pack("<I", 1 << 31) + b"{}"),
    ("a header too long", made(b" " * (payload.MOST_HEADER + 1))),
    ("blanks in the header", made(json.dumps(HEADER, sort_keys=True).encode(), BODY)),
    ("unsorted keys", made(json.dumps(HEADER, separators=(",", ":")).encode(), BODY)),
    ("a key twice", made(canonical(HEADER).replace(b'"round":0', b'"round":0,"round":0'), BODY)),
    ("not a number", made(canonical(HEADER).replace(b'"round":0', b'"round":NaN'), BODY)),
    ("deep", made(b"[" * 100000 + b"]" * 100000)),
    ("a list", made([1])),
    ("an unknown kind", made({**HEADER, "kind": "query"}, BODY)),
    ("a field too many", made({**HEADER, "more": 1}, BODY)),
    ("a field too few", made({k: v for k, v in HEADER.items() if k != "round"}, BODY)),
    ("a negative round", made({**HEADER, "round": -1}, BODY)),
    ("a round that is true", made({**HEADER, "round": True}, BODY)),
    ("a round of 2.0", made({**HEADER, "round": 2.0}, BODY)),
    ("a body too short", made(HEADER, BODY[:-1])),
    ("a body too long", made(HEADER, BODY + b"\0")),
    ("tensors in hello", made({"kind": "hello", **HELLO, "tensors": [["w", "float32", [2]]]}, BODY)),
    ("train without tensors", made({**HEADER, "tensors": []})),
    ("a tensor twice", made({**HEADER, "tensors": [["w", "float32", [1]], ["w", "float32", [1]]]}, BODY)),
    ("a path as name", made({**HEADER, "tensors": [["../w", "float32", [2]]]}, BODY)),
    ("a type of objects", made({**HEADER, "tensors": [["w", "O", [1]]]}, BODY)),
    ("an empty axis", made({**HEADER, "tensors": [["w", "float32", [2, 0]]]}, b"")),
    ("a negative axis", made({**HEADER, "tensors": [["w", "float32", [-1, -2]]]}, BODY)),
    ("an axis beyond memory", made({**HEADER, "tensors": [["w", "float32", [1 << 39, 1 << 39]]]}, BODY)),
    ("a shape of text", made({**HEADER, "tensors": [["w", "float32", "2"]]}, BODY)),
    ("too many tensors", made({**HEADER, "tensors": [[f"w{i}", "float32", [1]] for i in range(5000)]}, b"\0" * 20000)),
]


@pytest.mark.parametrize("data", [data for _, data in BAD], ids=[name for name, _ in BAD])
def test_what_pack_would_not_write_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        payload.unpack(data)


def test_every_shorter_message_is_refused() -> None:
    data = payload.pack("train", {**HELLO, "round": 0}, TENSORS)
    for length in range(len(data)):
        with pytest.raises(ValueError):
            payload.unpack(data[:length])


@pytest.mark.parametrize(
    ("fields", "tensors"),
    [
        ({"scalars": {"loss": "JANE"}}, TENSORS),
        ({"scalars": {"Jane Doe": 1.0}}, TENSORS),
        ({"scalars": {"loss": float("nan")}}, TENSORS),
        ({"scalars": {f"s{i}": 1.0 for i in range(65)}}, TENSORS),
        ({"site": "Jane Doe, 1970"}, TENSORS),
        ({"samples": 2.9}, TENSORS),
        ({"samples": 1 << 62}, TENSORS),
        ({"model": "x"}, TENSORS),
        ({}, {"encoder.w": torch.ones(2, dtype=torch.int64)}),
        ({}, {"Jane Doe": torch.ones(2)}),
    ],
)
def test_an_answer_outside_the_table_is_not_even_written(fields: dict[str, Any], tensors: Any) -> None:
    good = {"run": "0" * 64, "round": 0, "sequence": 1, "site": "north", "samples": 2, "scalars": {}, "model": "0" * 64}
    assert payload.pack("update", good, TENSORS)
    with pytest.raises(ValueError):
        payload.pack("update", {**good, **fields}, tensors)


def test_the_digest_of_a_model_knows_names_shapes_types_and_numbers() -> None:
    w = torch.arange(4.0)
    others = [{"w": w}, {"v": w}, {"w": w.reshape(2, 2)}, {"w": w.double()}, {"w": w + 1}, {"w": w, "v": w}]
    assert len({model_digest(other) for other in others}) == len(others)
    assert model_digest({"a": w, "b": w + 1}) == model_digest({"b": w + 1, "a": w})


def test_no_byte_of_a_sealed_answer_can_be_changed() -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    fields = {"run": "0" * 64, "sequence": 1, "site": "north", "reason": "no", "key": public.hex()}
    sealed = payload.seal(payload.pack("refusal", fields), Anchor(7, "ab" * 32), key.sign)
    answer, signer = payload.unseal(sealed)
    assert (answer.anchor, signer, answer.message.fields["reason"]) == (Anchor(7, "ab" * 32), public, "no")
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        with pytest.raises(ValueError):
            payload.unseal(bytes(changed), public)
    with pytest.raises(ValueError, match="not signed by the site's data side"):
        payload.unseal(sealed, other.public_key().public_bytes_raw())
