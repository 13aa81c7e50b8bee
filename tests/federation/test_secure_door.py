"""Secure sums at the doors of hospitals: rules, ledger, and what a server that asks in other ways gets."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from sslmed_dist import config
from sslmed_dist.config import Config
from sslmed_dist.federated_section import Secure
from sslmed_dist.federation import ledger_page, payload, site_file, site_key
from sslmed_dist.federation.averages import parts
from sslmed_dist.federation.door import Door
from sslmed_dist.federation.ledger import Ledger, verify
from sslmed_dist.federation.local_round import initial_arrays, local_update
from sslmed_dist.federation.secure_sum import Terms
from sslmed_dist.federation.shared import Arrays
from sslmed_dist.federation.site_file import SiteFile
from sslmed_dist.federation.site_work import perform
from sslmed_dist.federation.sites import own_site
from sslmed_dist.verbs.site import check
from tests.federation import hospital, tiny
from tests.federation.hospital import door, reason, said
from tests.federation.summing import Server

NAMES = ("east", "north", "south")


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run whose updates leave in secure sums."""
    return tiny.settings(tmp_path_factory.mktemp("run"), federated={"rounds": 4, "secure": {}})


def hospitals(folder: Path, chosen: Config, changes: Mapping[str, str] | None = None) -> dict[str, SiteFile]:
    """Three sites that know each other's peer keys and have accepted the run."""
    data = Path(str(chosen.data["root"]))
    keys = {}
    for name in NAMES:
        own = hospital.site(folder / name, data, name=name)
        keys[name] = site_key.load(Path(own.state) / "key").peer
    found = {}
    for name in NAMES:
        others = ", ".join(f"{peer}: {key!r}" for peer, key in keys.items() if peer != name)
        found[name] = hospital.site(folder / name, data, {"peers: {}": f"peers: {{{others}}}", **(changes or {})}, name)
        hospital.accept(found[name], chosen)
    return found


class Asking(Server):
    """The server of ``summing``, whose sites are doors that are opened anew for each request."""

    def __init__(self, sites: dict[str, SiteFile], chosen: Config, **changes: Any) -> None:
        data = own_site(chosen, "any").pretrain
        self.sites, self.chosen, self.model = sites, chosen, changes.pop("model", None) or initial_arrays(chosen)
        super().__init__(Path(), tuple(sites), Secure(), samples=dict.fromkeys(sites, len(data)), **changes)
        self.answers: dict[str, list[bytes]] = {name: [] for name in sites}

    def request(self, kind: str, fields: Mapping[str, Any], model: Arrays | None = None) -> bytes:
        """A request of this kind."""
        common = {**hospital.common(self.chosen), "round": self.number, "attempt": self.attempt}
        return payload.pack(kind, {**common, **fields}, model)

    def tell(self, name: str, request: bytes) -> payload.Message:
        """What the door of a site answers, opened anew."""
        answer = door(self.sites[name]).answer(request)
        assert answer is not None
        self.answers[name].append(answer)
        return said(answer)

    def step(self, name: str, kind: str, fields: Mapping[str, Any]) -> payload.Message:
        """One later step at one site."""
        return self.tell(name, self.request(kind, fields))

    def train(self, name: str) -> payload.Message:
        """Step 1 at one site."""
        fields = {"sites": self.terms.samples, "share": self.terms.share}
        return self.tell(name, self.request("secure_train", fields, self.model))

    def round(self) -> Arrays:
        """A whole round: the mean that comes out."""
        self.shares = {name: dict(self.train(name).fields) for name in self.sites}
        run = next(iter(self.shares.values()))["run"]
        for name in self.sites:
            publics, sealed = self.relayed(name)
            message = self.step(name, "secure_mask", {"publics": publics, "sealed": sealed})
            self.vectors[name] = message.tensors["sum"].numpy().view(self.terms.ring.kind)
        for name in self.sites:
            message = self.step(name, "secure_confirm", {"survivors": sorted(self.vectors)})
            self.words[name] = dict(message.fields["confirmations"])
        for name in self.sites:
            shown = {peer: words[name] for peer, words in self.words.items() if peer != name}
            message = self.step(name, "secure_reveal", {"confirmations": shown})
            self.parts[name] = {kind: dict(message.fields[kind]) for kind in ("keys", "seeds")}
        told = next(iter(self.shares.values()))["model"]
        self.terms = Terms(run, self.number, self.attempt, told, self.terms.samples, 0.7, 3, 16.0, 32)
        return self.terms.ring.mean(self.total(), float(len(self.sites)), self.model)


def test_hospitals_add_up_and_every_step_stands_in_the_ledger(tmp_path: Path, chosen: Config) -> None:
    sites = hospitals(tmp_path, chosen)
    server = Asking(sites, chosen)
    mean = server.round()
    shares = parts(server.samples)
    updates = {}
    for site in sites:
        data = own_site(chosen, site).pretrain
        updates[site] = local_update(chosen, site, data, 0, server.model, tmp_path / "research" / site)[0]
    for name, found in mean.items():
        expected = sum(updates[site][name].double() * shares[site] for site in sites)
        assert float((found - expected).abs().max()) < 1e-6, name
    entries = Ledger(sites["east"].ledger).entries
    answers = [entry for entry in entries if entry["kind"] == "answer"]
    assert [entry["message"] for entry in answers] == [
        f"secure_{w}" for w in ("shares", "masked", "confirmed", "revealed")
    ]
    assert [entry["secrets"] for entry in answers if "secrets" in entry] == [
        {"sealed": ["north", "south"]},
        {"confirmations": ["north", "south"]},
        {"keys": [], "seeds": ["east", "north", "south"]},
    ]
    (tensor,) = answers[1]["tensors"]
    assert tensor == ["sum", "int32", [sum(t.numel() for t in mean.values())], 4 * tensor[2][0], None]
    assert not any(entry["tensors"] for entry in answers if entry is not answers[1])
    assert sum(entry["count"] for entry in entries if entry["kind"] == "reserved") == 1
    assert verify(sites["east"].ledger).problems == ()
    page = ledger_page.page("east", entries, verify(sites["east"].ledger))
    assert "| sum | int32 |" in page and "under masks" in page and "Answers with tensors: 1" in page
    assert server.step("east", "secure_reveal", {"confirmations": {}}).kind == "refusal"
    # The next round begins from the mean, which the door compares with the model before.
    following = {name: tensor.float() for name, tensor in mean.items()}
    assert Asking(sites, chosen, number=1, model=following).train("east").kind == "secure_shares"
    far = {name: tensor + 10.0 for name, tensor in following.items()}
    later = Asking(sites, chosen, number=2, model=far)
    assert "further from the model before" in later.train("north").fields["reason"]


def test_the_update_alone_is_not_to_be_had(tmp_path: Path, chosen: Config) -> None:
    """The same run asked for as a plain round; and a plain run at a site that adds up only."""
    sites = hospitals(tmp_path, chosen, {"sums: optional": "sums: required"})
    front = door(sites["east"])
    assert reason(front.answer(hospital.train(chosen))) == "the updates of this run leave in secure sums alone"
    plain = tiny.settings(Path(str(chosen.data["root"])).parent, name="plain")
    hospital.accept(sites["east"], plain)
    assert "this site's updates leave in secure sums alone" in reason(front.answer(hospital.train(plain)))
    asked = Asking(sites, plain).request("secure_train", {"sites": {"east": 1}, "share": 1.0}, initial_arrays(plain))
    assert reason(front.answer(asked)) == "this run has no secure sum (federated.secure)"


def lines(entries: Any) -> list[str]:
    """The kinds of entries."""
    return [entry["kind"] for entry in entries]


def test_what_a_door_refuses_before_any_work(tmp_path: Path, chosen: Config) -> None:
    sites = hospitals(tmp_path, chosen)
    server = Asking(sites, chosen)

    def asked(samples: dict[str, int], share: float = 0.7) -> str:
        fields = {"sites": samples, "share": share}
        return str(server.tell("east", server.request("secure_train", fields, server.model)).fields["reason"])

    assert "at least 3 sites, here are 2" in asked({"east": 96, "north": 96})
    assert "without this site" in asked({"west": 96, "north": 96, "south": 96})
    assert asked({"east": 96, "north": 96, "west": 96}) == "this site knows no peer key of west (peers)"
    assert "reserved" not in lines(Ledger(sites["east"].ledger).entries)  # so nothing was spent
    assert (
        "another step of the secure sum"
        in server.step("east", "secure_confirm", {"survivors": ["east"]}).fields["reason"]
    )
    assert "another number of samples" in asked({"east": 5, "north": 96, "south": 96})


def test_an_update_outside_the_range_stays(tmp_path: Path, chosen: Config) -> None:
    narrow = tiny.settings(
        Path(str(chosen.data["root"])).parent, name="narrow", federated={"secure": {"clip": 0.001}, "rounds": 4}
    )
    sites = hospitals(tmp_path, narrow)
    refused = Asking(sites, narrow).train("east")
    assert refused.fields["reason"].startswith("the update leaves the range of the secure sum in encoder.")
    assert not list(tmp_path.rglob("own.bin"))


def test_the_run_by_another_name_gives_no_second_sum(tmp_path: Path, chosen: Config) -> None:
    """What a site calls unused may differ and the digest that was accepted stays; the round was done all the same."""
    sites = hospitals(tmp_path, chosen)
    server = Asking(sites, chosen)
    server.round()
    again = tiny.settings(
        Path(str(chosen.data["root"])).parent, federated={"rounds": 4, "secure": {}, "timeout_s": 77.0}
    )
    assert hospital.asked(sites["east"], again).digest == hospital.asked(sites["east"], chosen).digest
    line = Asking(sites, again, attempt=9).train("east").fields["reason"]
    assert line == "this site has revealed its part of this round's secure sum; there is no second one"


@pytest.mark.parametrize(
    ("peers", "line"),
    [
        ("{north: abc}", "peers.north: expected another site's name and its peer key"),
        (f"{{east: '{'ab' * 32}'}}", "peers.east: expected another site's name"),
        (f"{{'a b': '{'ab' * 32}'}}", "peers.a b: expected"),
        (f"{{north: '{'ab' * 32}', south: '{'ab' * 32}'}}", "peers: expected a different key of every site"),
    ],
)
def test_bad_lines_of_a_site(tmp_path: Path, peers: str, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        hospital.site(tmp_path, tmp_path / "x", {"peers: {}": f"peers: {peers}"}, "east")


@pytest.mark.parametrize("which", ["peer", "public"])
def test_a_site_is_no_peer_of_itself(tmp_path: Path, which: str) -> None:
    own = hospital.site(tmp_path, tmp_path / "x", name="east")
    key = site_key.load(Path(own.state) / "key")
    own = hospital.site(tmp_path, tmp_path / "x", {"peers: {}": f"peers: {{north: {getattr(key, which)!r}}}"}, "east")
    with pytest.raises(ValueError, match="peers.north: is this site's own key"):
        Door(own, perform)
    path = tmp_path / "site.yaml"
    with pytest.raises(ValueError, match="peers.north: is this site's own key"):
        check(path, None, [])


def test_check_against_a_secure_recipe_counts_the_peers(tmp_path: Path, chosen: Config) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(config.dump(chosen))
    lines = [f"peers: {{north: '{'ab' * 32}'}}", f"peers: {{north: '{'ab' * 32}', west: '{'cd' * 32}'}}"]
    for number, line in enumerate(lines):
        hospital.site(tmp_path / str(number), tmp_path / "x", {"peers: {}": line}, "east")
    _, refused = check(tmp_path / "0" / "site.yaml", recipe, [])
    assert len(refused) == 1 and "a secure sum needs 3 sites; peers of" in refused[0] and "has 1" in refused[0]
    assert check(tmp_path / "1" / "site.yaml", recipe, [])[1] == []
    assert check(tmp_path / "0" / "site.yaml", recipe, ["federated.secure=null"])[1] == []


def test_the_keys_of_a_site_are_two_and_stay_the_same(tmp_path: Path) -> None:
    site_key.make(tmp_path / "key")
    first, again = site_key.load(tmp_path / "key"), site_key.load(tmp_path / "key")
    assert (first.public, first.peer) == (again.public, again.peer) and first.public != first.peer
    assert first.exchange.hex() not in repr(first) and len(bytes.fromhex(first.peer)) == 32


def test_a_crash_of_the_work_takes_the_round_and_no_secret(tmp_path: Path, chosen: Config) -> None:
    sites = hospitals(tmp_path, chosen)
    server = Asking(sites, chosen)

    def crash(*_: Any) -> Any:
        raise OSError("/data/jane_doe.dcm")

    request = server.request("secure_train", {"sites": server.terms.samples, "share": 0.7}, server.model)
    answer = Door(sites["east"], crash).answer(request)
    assert answer is not None and b"jane" not in answer and said(answer).kind == "refusal"
    assert server.train("east").kind == "secure_shares"


def test_the_steps_are_a_closed_table() -> None:
    common = {"run": "0" * 64, "round": 0, "attempt": 1, "sequence": 1, "site": "north"}
    vector = {"sum": torch.arange(5, dtype=torch.int32)}
    assert torch.equal(payload.unpack(payload.pack("secure_masked", common, vector)).tensors["sum"], vector["sum"])
    bad: list[tuple[str, dict[str, Any], Any]] = [
        ("secure_masked", {}, {"sum": torch.ones(5)}),  # an update in place of its masked numbers
        ("secure_confirmed", {"confirmations": {"east": "JANE"}}, None),
        ("secure_confirmed", {"confirmations": {"Jane Doe": "0" * 64}}, None),
        ("secure_revealed", {"keys": {"east": "ab"}, "seeds": {}}, None),
        ("secure_revealed", {"keys": {}, "seeds": {"east": "x" * 132}}, None),
        ("secure_revealed", {"keys": {}, "seeds": {}}, vector),
        ("update", {"samples": 2, "scalars": {}, "model": "0" * 64}, vector),
    ]
    for kind, fields, tensors in bad:
        with pytest.raises(ValueError):
            payload.pack(kind, {**common, **fields}, tensors)
    asked = {"protocol": 1, "version": "0.1.0", "config": "", "round": 0, "attempt": 1}
    for survivors in (["b", "a"], ["a", "a"], "ab", [1], ["a b"]):
        with pytest.raises(ValueError):
            payload.pack("secure_confirm", {**asked, "survivors": survivors})
    assert payload.pack("secure_confirm", {**asked, "survivors": ["a", "b"]})
    assert site_file.NAME.fullmatch("a")
