"""What a secure sum costs beside the plain average, without training and transport: seconds and bytes of one round.

    python -m tests.benchmarks.secure [--sites 4] [--depth 18] [--width 64] [--lost 1]

Everything runs in one process, one site after another; the updates are noise. Plain: each site packs its update, the
server reads and averages them. Secure: all four steps at every site, the masks off at the server, and the same average.
``--lost`` sites are gone after they have sent their shares, so that their keys are put together again.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from sslmed_dist.federated_section import Secure
from sslmed_dist.federation import payload
from sslmed_dist.federation.averages import Round, WeightedMean, shares
from sslmed_dist.federation.fixed_point import Vector
from sslmed_dist.federation.replies import Reply
from sslmed_dist.federation.secure_keys import public_of
from sslmed_dist.federation.secure_site import SUM, Member
from sslmed_dist.federation.secure_sum import Collected, Terms, unmasked
from sslmed_dist.federation.shared import Arrays
from sslmed_dist.models.resnet import ResNet

SAID: dict[str, Any] = {"run": "0" * 64, "round": 0, "sequence": 1}
ASKED: dict[str, Any] = {"protocol": 1, "version": "0.1.0", "config": "", "round": 0, "attempt": 1}


class Clock:
    """Seconds of all sites and of the server, and bytes to and from one site."""

    def __init__(self) -> None:
        self.site = self.server = 0.0
        self.up = self.down = 0

    def timed(self, whose: str, work: Callable[[], Any]) -> Any:
        """What ``work`` gives; its seconds are added."""
        started = time.perf_counter()
        done = work()
        setattr(self, whose, getattr(self, whose) + time.perf_counter() - started)
        return done


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--sites", type=int, default=4)
    arguments.add_argument("--depth", type=int, default=18)
    arguments.add_argument("--width", type=int, default=64)
    arguments.add_argument("--lost", type=int, default=1)
    arguments.add_argument("--bits", type=int, default=32)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    network = ResNet(depth=options.depth, width=options.width, stem="imagenet")
    sent = {f"encoder.{key}": value for key, value in network.state_dict().items() if value.is_floating_point()}
    names = [f"site-{number}" for number in range(options.sites)]
    updates = {name: {key: value + 0.01 * torch.randn_like(value) for key, value in sent.items()} for name in names}
    plain, secure = Clock(), Clock()
    gone = names[1 : 1 + options.lost]
    expected = plainly(plain, sent, updates, [name for name in names if name not in gone])
    with TemporaryDirectory() as folder:
        found = securely(secure, sent, updates, gone, Secure(bits=options.bits), Path(folder))
    off = max(float((found[key].double() - expected[key].double()).abs().max()) for key in sent)
    count = sum(value.numel() for value in sent.values())
    print(f"{options.sites} sites, {options.lost} lost, {count:,} numbers of {options.bits} bits")
    print(f"largest difference from the plain average: {off:.1e}")
    for name, clock in (("plain", plain), ("secure", secure)):
        each = clock.site / options.sites
        print(
            f"{name}: a site {each:.3f} s, the server {clock.server:.3f} s; a site sends {clock.up:,} bytes, "
            f"is sent {clock.down:,}"
        )
    whole = (secure.site + secure.server) / (plain.site + plain.server)
    print(
        f"secure / plain: all sites and the server {whole:.2f}, the server {secure.server / plain.server:.2f}, "
        f"bytes sent {secure.up / plain.up:.5f}, received {secure.down / plain.down:.5f}"
    )


def average(sent: Arrays, replies: list[Reply], weights: dict[str, float]) -> Arrays:
    """What the server's strategy makes of replies."""
    return WeightedMean().combine(Round(replies, weights, sent, len(replies), lambda: 1.0))


def plainly(clock: Clock, sent: Arrays, updates: dict[str, Arrays], left: list[str]) -> Arrays:
    """A plain round."""
    packed = {}
    for name, update in updates.items():
        fields = {**SAID, "site": name, "samples": 100, "scalars": {}, "model": "0" * 64}
        packed[name] = clock.timed("site", lambda f=fields, u=update: payload.pack("update", f, u))
    train = {key: ASKED[key] for key in ("protocol", "version", "config", "round")}
    clock.up, clock.down = len(packed[left[0]]), len(payload.pack("train", train, sent))

    def combined() -> Arrays:
        replies = [Reply(name, payload.unpack(packed[name]).tensors, 100) for name in left]
        return average(sent, replies, shares(replies))

    return clock.timed("server", combined)  # type: ignore[no-any-return]


def securely(
    clock: Clock, sent: Arrays, updates: dict[str, Arrays], gone: list[str], secure: Secure, folder: Path
) -> Arrays:
    """A secure round."""
    names = list(updates)
    keys = {name: name.encode().ljust(32) for name in names}
    terms = Terms.of(secure, "0" * 64, 0, 1, "0" * 64, dict.fromkeys(names, 100), 0.7)
    sites = {name: Member(name, keys[name], lambda peer: public_of(keys[peer]), folder / name) for name in names}
    left = [name for name in names if name not in gone]

    def say(name: str, kind: str, fields: dict[str, Any], tensors: Arrays | None = None) -> bytes:
        return payload.pack(kind, {**SAID, "attempt": 1, "site": name, **fields}, tensors)

    def count(name: str, asked: bytes, answer: bytes) -> None:
        if name == left[0]:
            clock.down, clock.up = clock.down + len(asked), clock.up + len(answer)

    began = {}
    for name in names:
        asked = payload.pack("secure_train", {**ASKED, "sites": terms.samples, "share": 0.7}, sent)
        began[name] = clock.timed("site", lambda n=name: sites[n].begin(terms, sent, updates[n], 100))
        count(
            name, asked, say(name, "secure_shares", {"samples": 100, "scalars": {}, "model": "0" * 64, **began[name]})
        )
    packed = {}
    for name in left:
        others = {peer: said for peer, said in began.items() if peer != name}
        publics = {peer: said["public"] for peer, said in others.items()}
        sealed = {peer: said["sealed"][name] for peer, said in others.items()}

        def mask(name: str = name, publics: Any = publics, sealed: Any = sealed) -> bytes:
            return say(name, "secure_masked", {}, {SUM: sites[name].masked(1, 0, publics, sealed)})

        packed[name] = clock.timed("site", mask)
        count(name, payload.pack("secure_mask", {**ASKED, "publics": publics, "sealed": sealed}), packed[name])
    words = {name: clock.timed("site", lambda n=name: sites[n].confirmed(1, 0, left)) for name in left}
    parts = {}
    for name in left:
        shown = {peer: said[name] for peer, said in words.items() if peer != name}
        parts[name] = clock.timed("site", lambda n=name, s=shown: sites[n].revealed(1, 0, s))
        count(
            name,
            payload.pack("secure_confirm", {**ASKED, "survivors": left}),
            say(name, "secure_confirmed", {"confirmations": words[name]}),
        )
        count(
            name,
            payload.pack("secure_reveal", {**ASKED, "confirmations": shown}),
            say(name, "secure_revealed", parts[name]),
        )

    def finished() -> Arrays:
        vectors: dict[str, Vector] = {
            n: payload.unpack(packed[n]).tensors[SUM].numpy().view(terms.ring.kind) for n in left
        }
        revealed: dict[str, dict[str, dict[str, bytes]]] = {"seeds": {}, "keys": {}}
        for peer, part in parts.items():
            for kind, by_site in part.items():
                for site, share in by_site.items():
                    revealed[kind].setdefault(site, {})[peer] = bytes.fromhex(share)
        publics = {name: bytes.fromhex(said["public"]) for name, said in began.items()}
        commitments = {name: said["commitment"] for name, said in began.items()}
        total = unmasked(terms, Collected(publics, commitments, vectors, **revealed))
        mean = terms.ring.mean(total, float(len(left)), sent)
        return average(sent, [Reply("all", mean, 1)], {"all": 1.0})

    return clock.timed("server", finished)  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
