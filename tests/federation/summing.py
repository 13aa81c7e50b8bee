"""A secure sum small enough for a test: its sites, each with a folder of its own, and a server that may lie."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sslmed_dist.federated_section import Secure
from sslmed_dist.federation.averages import parts
from sslmed_dist.federation.fixed_point import Vector
from sslmed_dist.federation.policy import Refusal
from sslmed_dist.federation.secure_keys import public_of
from sslmed_dist.federation.secure_site import Member
from sslmed_dist.federation.secure_sum import Collected, Terms, unmasked
from sslmed_dist.federation.shared import Arrays

SENT = {"w": torch.linspace(-1, 1, 40).reshape(5, 8), "n.running_var": torch.ones(3)}
NAMES = ("east", "north", "south", "west", "centre", "coast")
KEYS = {name: name.encode().ljust(32, b".") for name in NAMES}


def member(folder: Path, name: str) -> Member:
    """A site as it is after a start: all it knows stands on its disk."""
    return Member(name, KEYS[name], lambda peer: public_of(KEYS[peer]), folder / name)


def update_of(name: str, number: int = 0) -> Arrays:
    """What a site's training made of ``SENT``."""
    draw = torch.Generator().manual_seed(1000 * number + NAMES.index(name))
    return {key: tensor + 0.1 * torch.randn(tensor.shape, generator=draw) for key, tensor in SENT.items()}


@dataclass
class Server:
    """What an honest server does, step by step; a lying one changes ``shares`` or what it tells whom."""

    folder: Path
    names: tuple[str, ...]
    secure: Secure = field(default_factory=Secure)
    number: int = 0
    attempt: int = 1
    samples: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.samples = self.samples or {name: 10 + 7 * place for place, name in enumerate(self.names)}
        self.terms = self.terms_of()
        self.shares: dict[str, dict[str, Any]] = {}
        self.vectors: dict[str, Vector] = {}
        self.words: dict[str, dict[str, str]] = {}
        self.parts: dict[str, dict[str, dict[str, str]]] = {}

    def terms_of(self, **changes: Any) -> Terms:
        """The terms of this round."""
        told = {"samples": self.samples, "share": 0.7, "attempt": self.attempt, "number": self.number, **changes}
        return Terms.of(self.secure, "a" * 64, model="b" * 64, **told)

    def site(self, name: str) -> Member:
        """The site ``name``, started anew."""
        return member(self.folder, name)

    def begin(self, gone: Collection[str] = (), terms: Terms | None = None) -> None:
        """Step 1 at all sites but those that are gone."""
        for name in [name for name in self.names if name not in gone]:
            told = terms or self.terms
            self.shares[name] = self.site(name).begin(told, SENT, update_of(name, self.number), self.samples[name])

    def relayed(self, to: str, among: Collection[str] | None = None) -> tuple[dict[str, str], dict[str, str]]:
        """(public keys, sealed shares) of the others for ``to``."""
        others = [name for name in (among or self.shares) if name != to]
        publics = {name: str(self.shares[name]["public"]) for name in others}
        return publics, {name: self.shares[name]["sealed"][to] for name in others}

    def mask(self, name: str, among: Collection[str] | None = None) -> Vector:
        """Step 2 at one site, which is told that the shares of ``among`` came."""
        masked = self.site(name).masked(self.attempt, self.number, *self.relayed(name, among))
        self.vectors[name] = masked.numpy().view(self.terms.ring.kind)
        return self.vectors[name]

    def confirm(self, name: str, survivors: Collection[str] | None = None) -> None:
        """Step 3 at one site."""
        told = sorted(self.vectors if survivors is None else survivors)
        self.words[name] = self.site(name).confirmed(self.attempt, self.number, told)

    def reveal(self, name: str, words: Mapping[str, str] | None = None) -> dict[str, dict[str, str]]:
        """Step 4 at one site, which is shown what the others confirmed."""
        shown = {peer: said[name] for peer, said in self.words.items() if peer != name and name in said}
        self.parts[name] = self.site(name).revealed(self.attempt, self.number, shown if words is None else words)
        return self.parts[name]

    def total(self) -> Vector:
        """The sum, from what was revealed."""
        found: dict[str, dict[str, dict[str, bytes]]] = {"seeds": {}, "keys": {}}
        for peer, part in self.parts.items():
            for kind, by_site in part.items():
                for name, share in by_site.items():
                    found[kind].setdefault(name, {})[peer] = bytes.fromhex(share)
        publics = {name: bytes.fromhex(said["public"]) for name, said in self.shares.items()}
        commitments = {name: said["commitment"] for name, said in self.shares.items()}
        return unmasked(self.terms, Collected(publics, commitments, dict(self.vectors), found["seeds"], found["keys"]))

    def run(self, gone: Mapping[str, Collection[str]] | None = None) -> Arrays:
        """A whole round; ``gone`` are the sites that are lost before each step. The mean of those in the sum."""
        lost: set[str] = set()
        for step in ("begin", "mask", "confirm", "reveal"):
            lost |= set((gone or {}).get(step, ()))
            if step == "begin":
                self.begin(lost)
                continue
            before = {"mask": self.shares, "confirm": self.vectors, "reveal": self.words}[step]
            for name in [name for name in before if name not in lost]:
                getattr(self, step)(name)
        weights = sum(self.terms.weights()[name] for name in self.vectors)
        return self.terms.ring.mean(self.total(), weights, SENT)


def refusal(call: Any, *arguments: Any) -> str:
    """The line with which a site refuses."""
    try:
        call(*arguments)
    except Refusal as refused:
        return str(refused)
    raise AssertionError("it was not refused")


def one_step_after(server: Server, step: str) -> None:
    """An honest round up to and with a step."""
    server.begin()
    for name in server.names if step != "begin" else ():
        server.mask(name)
    for name in server.names if step in ("confirm", "reveal") else ():
        server.confirm(name)
    for name in server.names if step == "reveal" else ():
        server.reveal(name)


def plain_mean(server: Server, names: list[str]) -> dict[str, torch.Tensor]:
    """The mean weighted by samples of the updates themselves, float64."""
    shares = parts({name: server.samples[name] for name in names})
    updates = {name: update_of(name, server.number) for name in names}
    return {key: sum(updates[n][key].double() * shares[n] for n in names) for key in SENT}  # type: ignore[misc]


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    """To 1e-6 in every number."""
    return found.keys() == expected.keys() and all(
        float((found[key] - expected[key]).abs().max()) < 1e-6 for key in found
    )
