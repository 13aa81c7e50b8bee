"""The secure sum of one round: what its sites have to agree on, the masks, and how the server takes them off.

The protocol is that of Bonawitz et al. 2017 ("Practical secure aggregation for privacy-preserving machine learning",
Figure 4, the variant against an active server), with X25519 keys that the sites pinned themselves in place of a public
key infrastructure. Of the sites u, v of a round, each with an update q_u of whole numbers (``fixed_point``):

    shares    u draws a key pair (s_u, S_u) and a seed b_u, and sends each v, sealed for v alone, a Shamir share of both
    masked    y_u = q_u + PRG(b_u) + sum over v > u of PRG(k_uv) - sum over v < u of PRG(k_uv),  k_uv from (s_u, S_v)
    confirmed u tells every other survivor, under their pinned keys, whose y it was told to have arrived
    revealed  once ``threshold`` sites confirmed the same list: the shares of b_v of every v on it, of s_v of the others

The sum of y over the survivors, less PRG(b_v) of each and the masks that it has with those who left, is that of q.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np

from sslmed_dist.federated_section import Federated, Screen, Secure
from sslmed_dist.federation import averages, shamir
from sslmed_dist.federation.fixed_point import Ring, Vector
from sslmed_dist.federation.ledger import canonical
from sslmed_dist.federation.secure_keys import MOST_SITES, SEED, agreed, derive, public_of, stream

FEWEST = 3  # survivors: the sum of two tells each of them the other's
WHERE = "federated.secure"
EXACT = 1e-6  # how far the mean of sites that weigh the same may be from the true one, in any number


@dataclass(frozen=True)
class Terms:
    """What all sites of a round have to agree on: the run, the round and its attempt, the digest of the model, the
    number of samples of every site, the most that one may weigh, how many shares give a secret back, and the range and
    bits of the numbers. ``ValueError`` where they protect nobody."""

    run: str
    round: int
    attempt: int
    model: str
    samples: Mapping[str, int]
    share: float
    threshold: int
    clip: float
    bits: int

    def __post_init__(self) -> None:
        reason = objection(self.threshold, len(self.samples))
        if reason is not None:
            raise ValueError(reason)

    @classmethod
    def of(
        cls, secure: Secure, run: str, number: int, attempt: int, model: str, samples: Mapping[str, int], share: float
    ) -> "Terms":
        """The terms of a round under ``federated.secure``. ``share`` is the server's ``federated.screen.share``; sites
        are told it, because their rules do not read the screen."""
        ordered, threshold = dict(sorted(samples.items())), threshold_of(secure, len(samples))
        return cls(run, number, attempt, model, ordered, share, threshold, secure.clip, secure.bits)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of all of it: what every key and every sealed share of the round is tied to."""
        return hashlib.sha256(canonical(asdict(self))).digest()

    @property
    def sites(self) -> list[str]:
        """Names in order; the first has share number 1."""
        return list(self.samples)

    @property
    def ring(self) -> Ring:
        """The numbers that are added."""
        return Ring(self.bits, self.clip, len(self.samples))

    def place(self, site: str) -> int:
        """The number of a site's shares."""
        return self.sites.index(site) + 1

    def weights(self) -> dict[str, float]:
        """The weight of every site, the largest 1: its share of the samples of all sites of the round."""
        parts = averages.parts(self.samples, self.share)
        return {site: part / max(parts.values()) for site, part in parts.items()}


def threshold_of(secure: Secure, count: int) -> int:
    """How many shares give a secret of ``count`` sites back: the stated number, else the least that protects."""
    return max(FEWEST, count // 2 + 1) if secure.threshold is None else secure.threshold


def objection(threshold: int, count: int) -> str | None:
    """Why ``count`` sites with this threshold protect nobody; None where they do. Above half: then no lie of the server
    gets it both secrets of one site, because each site reveals one of them and to one list of survivors only."""
    if count < FEWEST:
        return f"{WHERE}: a secure sum needs at least {FEWEST} sites, here are {count}"
    if count > MOST_SITES:
        return f"{WHERE}: a secure sum has at most {MOST_SITES} sites, here are {count}"
    if not max(FEWEST, count // 2 + 1) <= threshold <= count:
        most = f"{max(FEWEST, count // 2 + 1)} to {count}"
        return f"{WHERE}.threshold: expected {most} for {count} sites (above half, at least {FEWEST}), got {threshold}"
    return None


def check(fed: Federated, count: int) -> None:
    """``ValueError`` for a federation of ``count`` sites with a secure sum that are too few for it, or whose screen
    would need single updates."""
    if fed.secure is None:
        return
    reason = objection(threshold_of(fed.secure, count), count)
    if reason is not None:
        raise ValueError(reason)
    error = Ring(fed.secure.bits, fed.secure.clip, count).error(count)
    if error > EXACT:
        raise ValueError(
            f"{WHERE}.bits: {fed.secure.bits} are too few for {count} sites and a clip of {fed.secure.clip:g} (the "
            f"mean would be off by up to {error:.2g}, allowed {EXACT:g}); take 64 or a smaller clip"
        )
    if fed.screen.spread != Screen().spread:
        raise ValueError("federated.screen.spread: compares single updates, which a secure sum hides; leave it out")


def own_mask(seed: bytes, terms: Terms, site: str, count: int) -> Vector:
    """PRG(b): the mask that is a site's own."""
    return stream(derive(seed, terms.digest, "own mask", site), count, terms.ring.kind)


def pair_mask(private: bytes, public: bytes, terms: Terms, site: str, peer: str, count: int) -> Vector:
    """PRG(k) as ``site`` adds it: what ``peer`` adds is the same with the sign turned. ``private`` is the round's key
    of one of the two, ``public`` that of the other."""
    low, high = sorted((site, peer))
    mask = stream(derive(agreed(private, public), terms.digest, "pair mask", low, high), count, terms.ring.kind)
    return mask if site == low else np.negative(mask)


def commitment(seed: bytes, terms: Terms) -> str:
    """What a site says of its seed beforehand, so that wrong shares of it are seen."""
    return hashlib.sha256(terms.digest + seed).hexdigest()


@dataclass(frozen=True)
class Collected:
    """What the server has of a round at its end: by site the public key and commitment of all who sent shares, the
    masked vectors of the survivors, and of every site the shares that were revealed, by who revealed them: those of the
    survivors' seeds, those of the others' keys."""

    publics: Mapping[str, bytes]
    commitments: Mapping[str, str]
    vectors: Mapping[str, Vector]
    seeds: Mapping[str, Mapping[str, bytes]]
    keys: Mapping[str, Mapping[str, bytes]]


def secret(terms: Terms, shares: Mapping[str, bytes], site: str) -> bytes:
    """The secret of ``site`` from shares by who revealed them. ``ValueError`` for too few, or shares of no secret."""
    if len(shares) < terms.threshold:
        raise ValueError(f"{len(shares)} shares for {site}, {terms.threshold} needed ({WHERE}.threshold)")
    return shamir.join({terms.place(peer): share for peer, share in shares.items()}, SEED)


def unmasked(terms: Terms, got: Collected) -> Vector:
    """The sum of the survivors' updates. ``ValueError`` names a site whose shares are too few or wrong."""
    total: Vector = np.zeros_like(next(iter(got.vectors.values())))
    for site, vector in got.vectors.items():
        seed = secret(terms, got.seeds.get(site, {}), site)
        if commitment(seed, terms) != got.commitments[site]:
            raise ValueError(
                f"the shares for {site} give another seed than it said: one of those who revealed is wrong"
            )
        total += vector
        total -= own_mask(seed, terms, site, len(total))
    for site in sorted(got.publics.keys() - got.vectors.keys()):
        private = secret(terms, got.keys.get(site, {}), site)
        if public_of(private) != got.publics[site]:
            raise ValueError(f"the shares for {site} give another key than it said: one of those who revealed is wrong")
        for peer in got.vectors:
            total -= pair_mask(private, got.publics[peer], terms, peer, site, len(total))
    return total
