"""A server of secure sums that lies: about keys, terms, dropouts, survivors and rounds. It learns nothing more."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sslmed_dist.federation.secure_keys import public_of
from sslmed_dist.federation.secure_site import Member
from sslmed_dist.federation.secure_sum import own_mask, pair_mask
from sslmed_dist.federation.shamir import join
from tests.federation.summing import (
    KEYS,
    NAMES,
    SENT,
    Server,
    close,
    member,
    one_step_after,
    plain_mean,
    refusal,
    update_of,
)


def test_substituted_keys_are_refused(tmp_path: Path) -> None:
    """A key of the server's own in place of a site's, for the round or for life."""
    server = Server(tmp_path, NAMES[:4])
    server.begin()
    publics, sealed = server.relayed("east")
    line = "shares were not sealed by the pinned key of their site for this round"
    for name in ("north", "south"):
        own = {**publics, name: public_of(b"k" * 32).hex()}
        assert refusal(server.site("east").masked, 1, 0, own, sealed) == line
    stranger = Member("north", b"n" * 32, lambda peer: public_of(KEYS[peer]), tmp_path / "stranger")
    said = stranger.begin(server.terms, SENT, SENT, server.samples["north"])
    forged = {**publics, "north": said["public"]}, {**sealed, "north": said["sealed"]["east"]}
    assert refusal(server.site("east").masked, 1, 0, *forged) == line
    for byte in range(0, 160, 13):
        changed = bytearray(bytes.fromhex(sealed["north"]))
        changed[byte] ^= 1
        assert refusal(server.site("east").masked, 1, 0, publics, {**sealed, "north": changed.hex()}) == line
    swapped = {**sealed, "north": server.shares["north"]["sealed"]["west"]}  # what was meant for another site
    assert refusal(server.site("east").masked, 1, 0, publics, swapped) == line
    assert server.site("east").masked(1, 0, publics, sealed) is not None


def test_shares_of_an_older_round_or_attempt_are_refused(tmp_path: Path) -> None:
    old = Server(tmp_path, NAMES[:3])
    old.run()
    for number, attempt in ((1, 1), (2, 5)):
        server = Server(tmp_path, NAMES[:3], number=number, attempt=attempt)
        server.begin()
        publics, sealed = server.relayed("east")
        before = (
            {**publics, "north": old.shares["north"]["public"]},
            {**sealed, "north": old.shares["north"]["sealed"]["east"]},
        )
        assert "not sealed by the pinned key" in refusal(server.site("east").masked, attempt, number, *before)
        assert refusal(server.site("east").masked, 1, 0, publics, sealed).startswith("this site is at another step")
        old = server
    behind = Server(tmp_path, NAMES[:3], number=1, attempt=9)
    assert "lies behind" in refusal(behind.begin)


CHANGES: dict[str, dict[str, Any]] = {
    "other numbers of samples": {"samples": {"east": 10, "north": 10**6, "south": 10**6}},
    "another cap of the weights": {"share": 0.34},
    "another round": {"number": 3},
    "another attempt": {"attempt": 2},
    "another site beside": {"samples": {"east": 10, "north": 17, "south": 24, "west": 9}},
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_sites_that_were_told_different_terms_have_no_sum(tmp_path: Path, change: str) -> None:
    server = Server(tmp_path, NAMES[:3])
    server.begin()
    other = server.terms_of(**CHANGES[change])
    server.shares["east"] = member(tmp_path / "b", "east").begin(other, SENT, update_of("east"), 10)
    assert "not sealed by the pinned key" in refusal(server.mask, "north")
    publics, sealed = server.relayed("east")
    told = (other.attempt, other.round, publics, sealed)
    assert "not sealed by the pinned key" in refusal(member(tmp_path / "b", "east").masked, *told)


def test_a_site_knows_its_own_number_of_samples(tmp_path: Path) -> None:
    """Weights of nearly 0 for all others would make the sum that of one."""
    server = Server(tmp_path, NAMES[:3])
    lie = server.terms_of(samples={"east": 10, "north": 1, "south": 1})
    assert "another number of samples" in refusal(member(tmp_path, "north").begin, lie, SENT, SENT, 17)


def test_false_dropouts_give_no_single_update(tmp_path: Path) -> None:
    """The server has east's masked update and says that it never came: the others' key shares open the masks that it
    has with them, and its own mask stays."""
    server = Server(tmp_path, NAMES[:4])
    one_step_after(server, "mask")
    hidden = server.vectors.pop("east")
    for name in server.vectors:
        server.confirm(name)
    for name in server.vectors:
        assert "east" in server.reveal(name)["keys"] and "east" not in server.parts[name]["seeds"]
    weights = sum(server.terms.weights()[name] for name in server.vectors)
    found = server.terms.ring.mean(server.total(), weights, SENT)
    assert close(found, plain_mean(server, list(server.vectors)))
    places = {server.terms.place(name): bytes.fromhex(server.parts[name]["keys"]["east"]) for name in server.parts}
    private = join(places, 32)
    for peer in server.vectors:
        public = bytes.fromhex(server.shares[peer]["public"])
        hidden = hidden - pair_mask(private, public, server.terms, "east", peer, len(hidden))
    own = server.terms.ring.encode(update_of("east"), SENT, server.terms.weights()["east"])
    assert int((hidden == own).sum()) <= 1
    seed = bytes.fromhex(server.site("east").read()["seed"])
    assert np.array_equal(hidden - own_mask(seed, server.terms, "east", len(own)), own)  # so only its seed is missing
    assert (
        refusal(server.confirm, "east", ["north", "south", "west"]) == "the survivors are not among the sites of "
        "this secure sum"
    )


def test_nobody_reveals_both_kinds_of_shares(tmp_path: Path) -> None:
    server = Server(tmp_path, NAMES[:5])
    one_step_after(server, "confirm")
    for name in server.names:
        server.reveal(name)
        fewer = sorted(set(NAMES[:5]) - {"coast", "centre"} | {name})
        assert "another step" in refusal(server.confirm, name, fewer)
        assert server.reveal(name) == server.parts[name]  # the same again
    for name, part in server.parts.items():
        assert not part["keys"] and part["seeds"].keys() == set(server.names), name


def test_a_second_list_of_survivors_is_refused_and_so_is_a_second_attempt_after_the_end(tmp_path: Path) -> None:
    server = Server(tmp_path, NAMES[:5])
    one_step_after(server, "confirm")
    assert refusal(server.confirm, "east", NAMES[:4]) == "another list of survivors was confirmed already"
    for name in NAMES[:3]:
        server.reveal(name)
    second = Server(tmp_path, NAMES[:5], attempt=2)
    assert "there is no second one" in refusal(second.begin)
    second.begin(gone=NAMES[:3])  # those that have revealed nothing may try again, but two are too few
    assert "too few" in refusal(second.mask, NAMES[3])


def test_different_lists_for_different_sites_give_nothing(tmp_path: Path) -> None:
    """Without a word between the sites, five of them could be told so that the sum of two comes out."""
    told = {
        "east": ("east", "north", "south"),
        "north": ("east", "north", "west"),
        "south": ("east", "south", "centre"),
        "west": ("north", "west", "centre"),
        "centre": ("north", "south", "centre"),
    }
    server = Server(tmp_path, NAMES[:5])
    one_step_after(server, "mask")
    for name, survivors in told.items():
        server.confirm(name, survivors)
    lines = {refusal(server.reveal, name) for name in told}
    assert lines <= {
        "a survivor was told another list of survivors, or did not say this",
        "a confirmation is not that of another survivor",
        "too few survivors have confirmed the list",
    }
    for name, survivors in told.items():  # nor when only those are shown who say nothing else
        assert refusal(server.reveal, name, {}) == "too few survivors have confirmed the list"
        some = {peer: server.words[peer][name] for peer in survivors if peer != name and name in server.words[peer]}
        assert refusal(server.reveal, name, some) in lines | {"too few survivors have confirmed the list"}


def test_different_sites_of_the_masks_for_different_sites_give_nothing(tmp_path: Path) -> None:
    server = Server(tmp_path, NAMES[:4])
    server.begin()
    server.mask("east", ["east", "north", "south"])
    for name in NAMES[1:4]:
        server.mask(name)
    for name in NAMES[:3]:
        server.confirm(name, NAMES[:3])
    assert "another list of survivors" in refusal(server.reveal, "east")
    assert refusal(server.mask, "east", NAMES[:4]).startswith("this site is at another step")


@pytest.mark.parametrize("shown", ["forged", "reflected", "of another round"])
def test_confirmations_cannot_be_made_up(tmp_path: Path, shown: str) -> None:
    before = Server(tmp_path, NAMES[:3])
    before.run()
    server = Server(tmp_path, NAMES[:3], number=1)
    one_step_after(server, "confirm")
    made: dict[str, Callable[[str], str]] = {
        "forged": lambda _: "0" * 64,
        "reflected": lambda peer: server.words["east"][peer],  # its own word, sent back
        "of another round": lambda peer: before.words[peer]["east"],
    }
    words = {peer: made[shown](peer) for peer in ("north", "south")}
    assert "did not say this" in refusal(server.reveal, "east", words)
