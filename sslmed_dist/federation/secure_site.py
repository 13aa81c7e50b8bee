"""A site's half of the secure sum (``federation.secure_sum``): the four steps, and what it keeps on its own disk.

Everything that a step decides is on the disk before its answer leaves, so a site that was started again goes on where
it was. Three rules keep a lying server from single updates, whatever it says and to whom:

    a round's answer is given once: after shares were revealed there is no other attempt at the round;
    a list of survivors is confirmed once an attempt, and of each site on or off it one kind of share is revealed;
    nothing is revealed before ``threshold`` sites, above half, have confirmed the same list under their pinned keys.

A step that is asked again with the same words gets the same answer; with others it is refused.
"""

import hashlib
import hmac
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, from_numpy

from sslmed_dist.atomic_files import write_atomically
from sslmed_dist.federation import secure_keys, shamir
from sslmed_dist.federation.ledger import canonical
from sslmed_dist.federation.policy import Refusal
from sslmed_dist.federation.secure_keys import SEED, agreed, derive, public_of
from sslmed_dist.federation.secure_sum import Terms, commitment, own_mask, pair_mask

SUM = "sum"  # the name of the one tensor of a masked answer


@dataclass(frozen=True)
class Member:
    """One site of secure sums: its name, the private half of its X25519 key, the public halves of the others (as its
    own people wrote them down; ``Refusal`` for a name that they did not), and the folder of its state."""

    name: str
    private: bytes
    peer: Callable[[str], bytes]
    folder: Path

    def require_next(self, terms: Terms) -> None:
        """``Refusal`` where a round cannot begin under these terms: it lies behind, was revealed, or is another."""
        if self.name not in terms.samples:
            raise Refusal("the secure sum is one without this site")
        for site in terms.sites:
            if site != self.name:
                self.peer(site)
        if not self.state_file.exists():
            return
        state = self.read()
        before = Terms(**state["terms"])
        if before.round < terms.round:  # whatever the run is called: what counts is the configuration of this folder
            return
        if before.round > terms.round or before.attempt > terms.attempt:
            raise Refusal("the secure sum of this round lies behind the last one of this site")
        if state["step"] == "revealed":
            raise Refusal("this site has revealed its part of this round's secure sum; there is no second one")
        if before.model != terms.model:
            raise Refusal("this round was begun already, with another model")
        if before.attempt == terms.attempt and (before != terms or state["step"] != "shares"):
            raise Refusal("this attempt at the round was begun already; another needs a higher number")

    def begin(
        self, terms: Terms, sent: Mapping[str, Tensor], update: Mapping[str, Tensor], samples: int
    ) -> dict[str, Any]:
        """Step 1: keep the update as whole numbers, and give every peer its shares of two new secrets. ``Refusal`` for
        an update outside the range, and a number of samples that is not this site's."""
        self.require_next(terms)
        if terms.samples[self.name] != samples:
            raise Refusal("the secure sum counts another number of samples for this site than it has")
        try:
            numbers = terms.ring.encode(update, sent, terms.weights()[self.name])
        except ValueError as error:
            raise Refusal(str(error)) from None
        private, seed = os.urandom(SEED), os.urandom(SEED)  # never from the run's seed
        public = public_of(private)
        keys, seeds = (shamir.split(secret, terms.threshold, len(terms.samples)) for secret in (private, seed))
        sealed = {}
        for site, key, part in zip(terms.sites, keys, seeds, strict=True):
            if site != self.name:
                about = self.about(terms, self.name, site, public)
                sealed[site] = secure_keys.seal(self.pair(terms, site, "shares"), key + part, about).hex()
        place = terms.place(self.name) - 1
        write_atomically(self.folder / "own.bin", numbers.tobytes())
        state = {"step": "shares", "terms": asdict(terms), "private": private.hex(), "seed": seed.hex()}
        state["received"] = {self.name: [public.hex(), keys[place].hex(), seeds[place].hex()]}
        self.write(state)
        return {"public": public.hex(), "commitment": commitment(seed, terms), "sealed": sealed}

    def masked(self, attempt: int, number: int, publics: Mapping[str, str], sealed: Mapping[str, str]) -> Tensor:
        """Step 2: the update under the masks that it has with those whose shares came, and its own. ``Refusal`` for
        shares that a site of the round did not seal for this one, in this round, with this public key."""
        state, terms = self.at(attempt, number, "shares", "masked")
        if publics.keys() != sealed.keys() or self.name in sealed or not sealed.keys() <= terms.samples.keys():
            raise Refusal("the shares are not those of sites of this secure sum")
        if len(sealed) + 1 < terms.threshold:
            raise Refusal("too few sites have sent their shares for a secure sum")
        own = state["received"][self.name]
        received = {self.name: own, **{site: self.shares_of(terms, site, publics, sealed) for site in sealed}}
        if state["step"] == "masked" and received != state["received"]:
            raise Refusal("this attempt was masked already, with the shares of other sites")
        numbers = np.frombuffer((self.folder / "own.bin").read_bytes(), terms.ring.kind).copy()
        numbers += own_mask(bytes.fromhex(state["seed"]), terms, self.name, len(numbers))
        private = bytes.fromhex(state["private"])
        for site in sealed:
            numbers += pair_mask(private, bytes.fromhex(publics[site]), terms, self.name, site, len(numbers))
        self.write({**state, "step": "masked", "received": received})
        return from_numpy(numbers.view(np.int32 if terms.bits == 32 else np.int64))

    def shares_of(self, terms: Terms, site: str, publics: Mapping[str, str], sealed: Mapping[str, str]) -> list[str]:
        """[public key, share of its private key, share of its seed] that ``site`` sealed for this one."""
        about = self.about(terms, site, self.name, bytes.fromhex(publics[site]))
        try:
            plain = secure_keys.opened(self.pair(terms, site, "shares"), bytes.fromhex(sealed[site]), about)
        except ValueError:
            raise Refusal("shares were not sealed by the pinned key of their site for this round") from None
        return [publics[site], plain[: shamir.SHARE].hex(), plain[shamir.SHARE :].hex()]

    def confirmed(self, attempt: int, number: int, survivors: list[str]) -> dict[str, str]:
        """Step 3: this site's word to every other survivor that this is the list it was told."""
        state, terms = self.at(attempt, number, "masked", "confirmed")
        if not set(survivors) <= state["received"].keys() or self.name not in survivors:
            raise Refusal("the survivors are not among the sites of this secure sum")
        if len(survivors) < terms.threshold:
            raise Refusal("too few sites are left for a secure sum")
        if state.get("survivors", survivors) != survivors:
            raise Refusal("another list of survivors was confirmed already")
        self.write({**state, "step": "confirmed", "survivors": survivors})
        word = self.word(state["received"], survivors)
        return {site: self.mac(terms, self.name, site, word) for site in survivors if site != self.name}

    def revealed(self, attempt: int, number: int, confirmations: Mapping[str, str]) -> dict[str, dict[str, str]]:
        """Step 4: of each survivor the share of its seed, of each other site that of its key, once enough survivors
        have confirmed the same list. The update and this site's own secrets are deleted."""
        state, terms = self.at(attempt, number, "confirmed", "revealed")
        survivors, word = state["survivors"], self.word(state["received"], state["survivors"])
        for site, said in confirmations.items():
            if site not in survivors or site == self.name:
                raise Refusal("a confirmation is not that of another survivor")
            if not hmac.compare_digest(said, self.mac(terms, site, self.name, word)):
                raise Refusal("a survivor was told another list of survivors, or did not say this")
        if len(confirmations) + 1 < terms.threshold:
            raise Refusal("too few survivors have confirmed the list")
        self.write(
            {key: value for key, value in state.items() if key not in ("private", "seed")} | {"step": "revealed"}
        )
        (self.folder / "own.bin").unlink(missing_ok=True)
        received = state["received"]
        keys = {site: received[site][1] for site in received if site not in survivors}
        return {"keys": keys, "seeds": {site: received[site][2] for site in survivors}}

    @property
    def state_file(self) -> Path:
        """The state of the newest attempt."""
        return self.folder / "round.json"

    def read(self) -> dict[str, Any]:
        """The state."""
        state: dict[str, Any] = json.loads(self.state_file.read_text())
        return state

    def write(self, state: Mapping[str, Any]) -> None:
        """Keep the state; the answer leaves after it."""
        write_atomically(self.state_file, json.dumps(state, sort_keys=True).encode())

    def at(self, attempt: int, number: int, *steps: str) -> tuple[dict[str, Any], Terms]:
        """The state, where it is one after one of ``steps`` of this attempt at round ``number``. ``Refusal``
        otherwise."""
        if self.state_file.exists():
            state = self.read()
            terms = Terms(**state["terms"])
            if (terms.round, terms.attempt) == (number, attempt) and state["step"] in steps:
                return state, terms
        raise Refusal("this site is at another step of the secure sum, or in another round")

    def pair(self, terms: Terms, peer: str, purpose: str) -> bytes:
        """The key that only this site and ``peer`` have, for one purpose in one attempt at one round."""
        low, high = sorted((self.name, peer))
        return derive(agreed(self.private, self.peer(peer)), terms.digest, purpose, low, high)

    def about(self, terms: Terms, source: str, to: str, public: bytes) -> bytes:
        """What sealed shares are tied to: the terms, who sealed them for whom, and the public key of the round."""
        return canonical({"terms": terms.digest.hex(), "from": source, "to": to, "public": public.hex()})

    def word(self, received: Mapping[str, list[str]], survivors: list[str]) -> str:
        """What a confirmation is about: the sites of the masks, their public keys, and the survivors."""
        publics = {site: row[0] for site, row in received.items()}
        return hashlib.sha256(canonical({"publics": publics, "survivors": survivors})).hexdigest()

    def mac(self, terms: Terms, source: str, to: str, word: str) -> str:
        """The confirmation of ``word`` by ``source`` for ``to`` (HMAC-SHA256); one of the two is this site."""
        key = self.pair(terms, to if source == self.name else source, "confirmation")
        return hmac.new(key, canonical({"from": source, "to": to, "word": word}), hashlib.sha256).hexdigest()
