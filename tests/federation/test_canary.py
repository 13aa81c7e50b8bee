"""A canary at the door: more than a thousand attempts to carry something else out. None of it leaves.

The work behind the door is played by an attacker who has read an image and a name: he writes what he likes in place of
the work's answer. What he may do within the rules (the numbers of an allowed tensor) no door can tell from training.
"""

import base64
import os
import random
import shutil
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from sslmed_dist.federation import payload
from sslmed_dist.federation.door import Door
from sslmed_dist.federation.ledger import canonical, verify
from sslmed_dist.federation.local_round import initial_arrays
from sslmed_dist.federation.shared import is_statistic, model_digest
from tests.federation import hospital, tiny

NAME = "JANE_DOE_19700101"
FORMS = {NAME.encode(), NAME.lower().encode(), NAME.encode().hex().encode(), base64.b64encode(NAME.encode())[:-2]}
PIXELS = torch.arange(256, dtype=torch.float32).repeat(64)  # a grey image of 128 x 128, its values 0 to 255


class Attacker:
    """What is written in place of the work's answer, drawn from one seed."""

    def __init__(self, sent: dict[str, torch.Tensor], seed: int) -> None:
        self.draw, self.sent = random.Random(seed), sent
        self.fields: dict[str, Any] = {"run": "0" * 64, "round": 0, "sequence": 0, "site": "north", "samples": 9}
        self.fields |= {"scalars": {"loss": 1.0}, "model": model_digest(sent)}

    def update(self, tensors: dict[str, torch.Tensor], fields: dict[str, Any] | None = None) -> bytes:
        """A message in the right form."""
        return payload.pack("update", {**self.fields, **(fields or {})}, tensors)

    def raw(self, header: dict[str, Any], body: bytes) -> bytes:
        """A message whose header may be anything."""
        text = canonical(header)
        return payload.MAGIC + struct.pack("<I", len(text)) + text + body

    def one(self) -> str:
        """The name of any tensor."""
        return self.draw.choice(sorted(self.sent))

    def header(self) -> dict[str, Any]:
        """The header of the right answer."""
        listed = [[name, "float32", list(tensor.shape)] for name, tensor in self.sent.items()]
        return {"kind": "update", **self.fields, "tensors": listed}

    @property
    def body(self) -> bytes:
        """The numbers of the right answer."""
        return b"".join(tensor.numpy().tobytes() for tensor in self.sent.values())

    def pixels_in_a_tensor(self) -> bytes:
        large = [name for name, tensor in self.sent.items() if tensor.numel() >= 64]
        name = self.draw.choice(large)
        start = self.draw.randrange(1, 128)
        seen = PIXELS[start : start + self.sent[name].numel()].reshape(self.sent[name].shape)
        return self.update({**self.sent, name: seen})

    def another_tensor(self) -> bytes:
        name = f"encoder.{NAME.lower()}_{self.draw.randrange(99)}"
        return self.update({**self.sent, name: PIXELS[: self.draw.randrange(1, 4096)]})

    def a_renamed_tensor(self) -> bytes:
        old = self.one()
        return self.update({(f"{NAME}.{n}" if n == old else n): tensor for n, tensor in self.sent.items()})

    def a_reshaped_tensor(self) -> bytes:
        name = self.one()
        return self.update({**self.sent, name: self.sent[name].reshape(1, -1)})

    def a_longer_tensor(self) -> bytes:
        name = self.one()
        more = PIXELS[: self.draw.randrange(1, 64)] / 255
        return self.update({**self.sent, name: torch.cat([self.sent[name].flatten(), more])})

    def another_type(self) -> bytes:
        name = self.one()
        return self.update({**self.sent, name: self.sent[name].double() + 1e-12 * self.draw.random()})

    def a_missing_tensor(self) -> bytes:
        name = self.one()
        return self.update({n: tensor for n, tensor in self.sent.items() if n != name})

    def a_number_that_is_none(self) -> bytes:
        name = self.one()
        tensor = self.sent[name].clone().flatten()
        bits = 0x7FC00000 | self.draw.randrange(1 << 22)  # 22 bits of anything in a NaN
        tensor[self.draw.randrange(len(tensor))] = struct.unpack("<f", struct.pack("<I", bits))[0]
        return self.update({**self.sent, name: tensor.reshape(self.sent[name].shape)})

    def a_scalar_called_like_a_patient(self) -> bytes:
        return self.update(self.sent, {"scalars": {"loss": 1.0, f"{NAME.lower()}_{self.draw.randrange(99)}": 1.0}})

    def a_scalar_of_text(self) -> bytes:
        return self.raw({**self.header(), "scalars": {"loss": f"{NAME}{self.draw.random()}"}}, self.body)

    def a_field_too_many(self) -> bytes:
        key = self.draw.choice(["note", "error", "patient", NAME, "pixels"])
        return self.raw({**self.header(), key: f"{NAME}{self.draw.random()}"}, self.body)

    def text_in_a_field(self) -> bytes:
        key = self.draw.choice(["site", "run", "model", "samples", "round", "kind"])
        return self.raw({**self.header(), key: f"{NAME} {self.draw.random()}"}, self.body)

    def another_site_or_model(self) -> bytes:
        """In the right form: the door writes these fields itself."""
        return self.update(self.sent, {"site": f"{NAME}.{self.draw.randrange(99)}", "sequence": 77, "round": 5})

    def bytes_behind_the_end(self) -> bytes:
        return self.update(self.sent) + NAME.encode() * self.draw.randrange(1, 9)

    def another_spelling(self) -> bytes:
        text = canonical(self.header())
        place = self.draw.randrange(1, len(text))
        text = text[:place] + self.draw.choice([b" ", b"\n", b"\t", NAME.encode()]) + text[place:]
        return payload.MAGIC + struct.pack("<I", len(text)) + text + self.body

    def another_kind_of_bytes(self) -> bytes:
        return self.draw.choice([b"", b"\x80\x04", b"PK\x03\x04", NAME.encode()]) + self.draw.randbytes(40)

    def an_error_with_a_name(self) -> bytes:
        kind = self.draw.choice([ValueError, OSError, KeyError, MemoryError, RuntimeError, UnicodeError, TypeError])
        raise kind(f"/data/{NAME}/{self.draw.random()}.dcm cannot be read")

    def a_huge_update(self) -> bytes:
        scale = self.draw.choice([1e3, 1e6, 1e30])
        return self.update({name: tensor * scale for name, tensor in self.sent.items()})


def instead(make: Callable[[], bytes], *_: Any) -> tuple[int, bytes]:
    """The attacker's bytes in place of the work's."""
    return 99, make()


METHODS = [n for n in vars(Attacker) if n not in ("update", "raw", "one", "header", "body") and not n.startswith("_")]


NOISE = {"    clip: 1.0 ": "    clip: 1.0 ", "noise_multiplier: 10.0 ": "noise_multiplier: 1000.0 "}
NOISE |= {"    change: 2.0              # L2 norm of (u": "    change: 1.0e9            # L2 norm of (u"}
NOISE |= {"    largest: 1000.0          # no number of it may be larger; a": "    largest: 1.0e9          #"}


@pytest.mark.parametrize("noise", [{}, NOISE], ids=["bare", "noise"])
@pytest.mark.parametrize("each", [5, pytest.param(56, marks=pytest.mark.slow)])
def test_nothing_else_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, each: int, noise: dict[str, str]) -> None:
    chosen = tiny.settings(tmp_path)
    sent = initial_arrays(chosen)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    request, attempts, left = hospital.train(chosen), 0, 0
    for method in METHODS:
        folder = tmp_path / str(METHODS.index(method))  # a socket has a short path
        for number in range(each):
            attacker = Attacker(sent, number)
            if number == 0:  # a ledger for each kind: its length is not what is tested
                own = hospital.site(folder, tmp_path / "tiny.npz", {"rounds: 200": "rounds: 99999", **noise})
                hospital.accept(own, chosen)
                front = Door(own, lambda *_: (0, b""))
            front.work = partial(instead, getattr(attacker, method))
            shutil.rmtree(folder / "state" / "runs", ignore_errors=True)  # else an answered round is repeated
            answer = front.answer(request)
            assert answer is not None
            message, attempts = hospital.said(answer), attempts + 1
            assert not any(form in answer for form in FORMS), method
            if message.kind == "update":  # within the rules: then nothing of the attempt is in it
                left += 1
                same = [torch.equal(message.tensors[name], sent[name]) for name in sent]
                learned = [not is_statistic(name) for name in sent]
                assert same == [not (noise and name) for name in learned], method
                assert (
                    message.fields["scalars"] == ({} if noise else {"loss": 1.0}) and message.fields["site"] == "north"
                ), method
            else:
                assert message.kind == "refusal", method
        written = own.ledger.read_bytes()
        # The names of scalars that were held back stand in the site's own ledger.
        assert verify(own.ledger).problems == ()
        assert method == "a_scalar_called_like_a_patient" or not any(form in written for form in FORMS), method
    assert left > 0 and attempts == each * len(METHODS) and 56 * len(METHODS) >= 1000
