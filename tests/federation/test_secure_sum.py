"""The secure sum is the plain weighted mean, whoever drops out when; restarts, and bad lines of a configuration."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sslmed_dist import config
from sslmed_dist.federated_section import Secure
from sslmed_dist.federation import strategies
from sslmed_dist.federation.secure_sum import threshold_of
from tests.federation import tiny
from tests.federation.summing import NAMES, SENT, Server, close, member, one_step_after, plain_mean, refusal, update_of

STEPS = ("begin", "mask", "confirm", "reveal")
CASES = [(count, step, lost) for count in (3, 4, 5) for step in STEPS for lost in (0, 1, 2)]
CASES = [(count, step, lost) for count, step, lost in CASES if count - lost >= 3 and (lost or step == "begin")]


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
