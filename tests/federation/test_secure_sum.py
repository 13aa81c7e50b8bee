"""The secure sum is the plain weighted mean, whoever drops out when, and a server that lies learns nothing more."""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslmed_dist import config
from sslmed_dist.federated_section import Secure
from sslmed_dist.federation import strategies
from sslmed_dist.federation.averages import parts
from sslmed_dist.federation.secure_keys import public_of
from sslmed_dist.federation.secure_site import Member
from sslmed_dist.federation.secure_sum import own_mask, pair_mask, threshold_of
from sslmed_dist.federation.shamir import join
from tests.federation import tiny
from tests.federation.summing import KEYS, NAMES, SENT, Server, member, refusal, update_of

STEPS = ("begin", "mask", "confirm", "reveal")
CASES = [(count, step, lost) for count in (3, 4, 5) for step in STEPS for lost in (0, 1, 2)]
CASES = [(count, step, lost) for count, step, lost in CASES if count - lost >= 3 and (lost or step == "begin")]


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


@pytest.mark.parametrize(("count", "step", "lost"), CASES)
@pytest.mark.parametrize("bits", [32, 64])
def test_it_is_the_plain_mean_whoever_drops_out(tmp_path: Path, count: int, step: str, lost: int, bits: int) -> None:
    """Of five sites two may go at any step, of four one; those that go after step 2 are in the sum."""
    server = Server(tmp_path, NAMES[:count], Secure(bits=bits))  # type: ignore[arg-type]
    gone = list(NAMES[1 : 1 + lost])
    found = server.run({step: gone})
    left = [name for name in server.names if name not in gone or step in ("confirm", "reveal")]
    assert sorted(server.vectors) == sorted(left)
    assert close(found, plain_mean(server, left))


def test_sites_may_drop_out_at_every_step_of_one_round_and_the_next_goes_on(tmp_path: Path) -> None:
    server = Server(tmp_path, NAMES, Secure(threshold=4))
    assert close(server.run({"mask": ["east"], "confirm": ["north"]}), plain_mean(server, list(NAMES[1:])))
    again = Server(tmp_path, NAMES, Secure(threshold=4), number=1)
    assert close(again.run(), plain_mean(again, list(NAMES)))


def test_below_the_threshold_nothing_comes_out(tmp_path: Path) -> None:
    server = Server(tmp_path, NAMES[:5])
    server.begin()
    for name in ("east", "north"):
        server.mask(name)
    assert refusal(server.confirm, "east") == "too few sites are left for a secure sum"
    assert refusal(server.mask, "south", ["east", "south"]) == "too few sites have sent their shares for a secure sum"
    server = Server(tmp_path / "late", NAMES[:5])
    with pytest.raises(ValueError, match=r"2 shares for \w+, 3 needed"):
        server.run({"reveal": NAMES[:3]})


def test_masked_updates_look_like_noise_and_differ_from_round_to_round(tmp_path: Path) -> None:
    seen = []
    for number in (0, 1):
        server = Server(tmp_path, NAMES[:4], number=number)
        server.begin()
        vector = server.mask("east")
        own = server.terms.ring.encode(update_of("east", number), SENT, server.terms.weights()["east"])
        assert int((vector == own).sum()) <= 1
        seen.append(vector - own)
    assert int((seen[0] == seen[1]).sum()) <= 1
    assert np.abs((seen[0].astype(np.float64) / 2**32).mean() - 0.5) < 0.25  # 43 uniform numbers: 5.7 deviations


def one_step_after(server: Server, step: str) -> None:
    """An honest round up to and with a step."""
    server.begin()
    for name in server.names if step != "begin" else ():
        server.mask(name)
    for name in server.names if step in ("confirm", "reveal") else ():
        server.confirm(name)
    for name in server.names if step == "reveal" else ():
        server.reveal(name)


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


def test_a_site_that_was_started_again_goes_on_and_keeps_no_secret_after_the_round(tmp_path: Path) -> None:
    """Every call above is one of a site that was started anew; what it decides is on the disk first."""
    server = Server(tmp_path, NAMES[:3])
    server.begin()
    first = server.mask("east").copy()
    assert np.array_equal(server.mask("east"), first)
    assert refusal(server.mask, "east", ["east"]) == "too few sites have sent their shares for a secure sum"
    state = server.site("east").read()
    for name in ("north", "south"):
        server.mask(name)
    for step in (server.confirm, server.reveal):
        for name in NAMES[:3]:
            step(name)
    text = server.site("east").state_file.read_text()
    assert state["private"] not in text and state["seed"] not in text
    assert not (tmp_path / "east" / "own.bin").exists()


def test_an_attempt_that_failed_is_followed_by_another(tmp_path: Path) -> None:
    server = Server(tmp_path, NAMES[:4])
    server.begin()
    server.mask("east")
    assert "needs a higher number" in refusal(server.begin)
    again = Server(tmp_path, NAMES[:4], attempt=2)
    assert close(again.run({"begin": ["west"]}), plain_mean(again, list(NAMES[:3])))
    other = replace(Server(tmp_path, NAMES[:4], attempt=3).terms, model="c" * 64)
    assert "another model" in refusal(member(tmp_path, "west").begin, other, SENT, SENT, 31)
    assert "there is no second one" in refusal(member(tmp_path, "east").begin, other, SENT, SENT, 10)


def test_wrong_shares_of_a_site_are_seen(tmp_path: Path) -> None:
    server = Server(tmp_path, NAMES[:3])
    one_step_after(server, "reveal")
    good = server.parts["north"]["seeds"]["east"]
    server.parts["north"]["seeds"]["east"] = server.parts["north"]["seeds"]["south"]
    with pytest.raises(ValueError, match="east give another seed|do not belong together"):
        server.total()
    server.parts["north"]["seeds"]["east"] = good
    server.total()


@pytest.mark.parametrize(("count", "expected"), [(3, 3), (4, 3), (5, 3), (6, 4), (7, 4), (10, 6)])
def test_the_least_threshold_is_above_half_and_at_least_three(count: int, expected: int) -> None:
    least = threshold_of(Secure(), count)
    assert least == expected and 2 * least > count and least >= 3
    # Each site reveals one kind of each other's two shares: the two kinds cannot both reach the threshold.
    assert not any(len(some) >= least and count - len(some) >= least for some in combinations(range(count), least))


BAD: list[tuple[dict[str, Any], str]] = [
    ({"secure": {"threshold": 2}}, "federated.secure.threshold: expected an integer >= 3, got 2"),
    ({"secure": {"threshold": 5}}, r"federated.secure.threshold: expected 3 to 4 for 4 sites \(above half"),
    ({"secure": {"clip": 0.0}}, "federated.secure.clip: expected a number from 0.001 to 10000, got 0"),
    ({"secure": {"bits": 16}}, "federated.secure.bits"),
    ({"secure": {"noise": 1}}, "federated.secure.noise"),
    ({"secure": {}, "partition": {"name": "iid", "count": 2}}, "needs at least 3 sites, here are 2"),
    ({"secure": {}, "screen": {"spread": 20.0}}, "federated.screen.spread: compares single updates"),
    ({"secure": {}, "quorum": 3, "strategy": {"name": "median"}}, "name: median needs single updates, which federated"),
    ({"secure": {}, "quorum": 4, "strategy": {"name": "krum"}}, "krum needs single updates.*allowed: fedavg, fedprox"),
    ({"secure": {}, "strategy": {"name": "scaffold"}}, "scaffold needs single updates"),
    (
        {"secure": {"clip": 1e4}},
        r"bits: 32 are too few for 4 sites and a clip of 10000 \(the mean would be off by up to 1.5e-05",
    ),
    ({"secure": {}, "partition": {"name": "iid", "count": 1001}}, "at most 1000 sites, here are 1001"),
]


@pytest.mark.parametrize(("changes", "line"), BAD)
def test_bad_lines_of_a_configuration(tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        tiny.settings(tmp_path, federated={"partition": {"name": "iid", "count": 4}, **changes})


def test_the_strategies_of_the_mean_are_those_that_are_listed() -> None:
    leaves: dict[str, Any] = {"fedu": {"threshold": 1.0}, "krum": {}, "trimmed_mean": {"share": 0.34}}
    able = []
    for name in strategies.STRATEGIES:
        fed = config.Federated(quorum=3, strategy={"name": name, **leaves.get(name, {})})
        able += [name] if strategies.build(fed).average.of_mean else []
    assert sorted(able) == sorted(strategies.OF_MEAN)
