"""The door of a site: what comes in is checked, what goes out is written down first, and no text of an error leaves."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sslmed_dist.config import Config
from sslmed_dist.federation import payload, site_work
from sslmed_dist.federation.door import ANSWERS, Door
from sslmed_dist.federation.doorway import FAILED
from sslmed_dist.federation.ledger import Ledger, verify
from sslmed_dist.federation.local_round import initial_arrays, local_update
from sslmed_dist.federation.shared import Arrays, model_digest
from sslmed_dist.federation.sites import own_site
from tests.federation import hospital, tiny
from tests.federation.hospital import accept, door, reason, said, train

Change = Callable[[Arrays], Arrays]


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Settings of a run; the data lie beside its runs."""
    return tiny.settings(tmp_path_factory.mktemp("run"), federated={"rounds": 4})


def site(folder: Path, chosen: Config, changes: dict[str, str] | None = None) -> Any:
    """A site that has accepted the run."""
    own = hospital.site(folder, Path(str(chosen.data["root"])), changes)
    accept(own, chosen)
    return own


def kinds(own: Any) -> list[str]:
    """The kinds of the ledger's entries."""
    return [entry["kind"] for entry in Ledger(own.ledger).entries]


def test_a_round_gives_the_bits_of_research_and_stands_in_the_ledger(tmp_path: Path, chosen: Config) -> None:
    own = site(tmp_path, chosen)
    front = door(own)
    greeting = said(front.answer(hospital.hello(chosen)))
    data = own_site(chosen, "north").pretrain
    assert (greeting.fields["samples"], greeting.fields["channels"]) == (len(data), 1)
    first = initial_arrays(chosen)
    answer = front.answer(train(chosen))
    assert answer is not None
    opened, key = payload.unseal(answer, bytes.fromhex(greeting.fields["key"]))
    update = opened.message
    expected, scalars = local_update(chosen, "north", data, 0, first, tmp_path / "research")
    assert tiny.same(update.tensors, expected)
    assert update.fields["scalars"] == {"loss": scalars["loss"]}
    assert update.fields["model"] == model_digest(first) and update.fields["sequence"] == 2
    entry = front.ledger.entries[-1]
    assert (entry["number"], entry["digest"]) == (opened.anchor.number, opened.anchor.digest)
    assert [name for name, *_ in entry["tensors"]] == list(expected) and entry["epsilon"] is None
    assert entry["scalars"] == {"loss": scalars["loss"], "samples": len(data)}
    assert set(entry["withheld"]) == scalars.keys() - {"loss"}
    assert kinds(own) == ["accepted", "reserved", "answer", "reserved", "answer"]
    assert verify(own.ledger, opened.anchor).problems == ()
    front.delivered(answer)
    front.delivered(answer)
    assert kinds(own)[-2:] == ["answer", "delivered"]


def test_rounds_go_on_and_an_answered_one_is_repeated_to_the_byte(tmp_path: Path, chosen: Config) -> None:
    own = site(tmp_path, chosen)
    front = door(own)
    answers = [front.answer(train(chosen))]
    for number in (1, 2):
        answers.append(front.answer(train(chosen, number, said(answers[-1]).tensors)))
    count = len(front.ledger.entries)
    again = door(own)  # after a restart, too
    assert again.answer(train(chosen, 2, said(answers[1]).tensors)) == answers[2]
    assert again.answer(train(chosen, 1, said(answers[0]).tensors)) == answers[1]
    assert len(again.ledger.entries) == count
    other = {name: tensor + 0.01 for name, tensor in said(answers[1]).tensors.items()}
    assert reason(again.answer(train(chosen, 2, other))) == "this round was answered already, to another model"
    assert "lies before the last ones" in reason(again.answer(train(chosen)))
    folder = site_work.folder_of(own, hospital.asked(own, chosen).digest)
    assert sorted(path.name for path in folder.glob("answer_*")) == ["answer_00001.bin", "answer_00002.bin"]


def test_a_run_that_nobody_accepted_waits(tmp_path: Path, chosen: Config) -> None:
    own = hospital.site(tmp_path, Path(str(chosen.data["root"])))
    front = door(own)
    digest = hospital.asked(own, chosen).digest
    assert reason(front.answer(train(chosen))).endswith(digest)
    assert (tmp_path / "state" / "pending" / f"{digest}.json").is_file()
    assert kinds(own) == ["refusal"]
    accept(own, chosen)
    assert said(front.answer(train(chosen))).kind == "update"


def test_only_listed_runs_where_the_site_says_so(tmp_path: Path, chosen: Config) -> None:
    own = hospital.site(tmp_path, Path(str(chosen.data["root"])), {"accept: each": "accept: listed"})
    assert "has not accepted" in reason(door(own).answer(train(chosen)))
    assert not (tmp_path / "state" / "pending").exists()
    listed = {"digests: []": f"digests: [{hospital.asked(own, chosen).digest}]", "accept: each": "accept: listed"}
    own = hospital.site(tmp_path, Path(str(chosen.data["root"])), listed)
    assert said(door(own).answer(hospital.hello(chosen))).kind == "greeting"


def put(value: float) -> Change:
    """One number of the first weights."""

    def change(model: Arrays) -> Arrays:
        model["encoder.conv1.weight"][0, 0, 0, 0] = value
        return model

    return change


MODELS: list[tuple[Change, str]] = [
    (put(float("nan")), "the model is not finite in encoder.conv1.weight"),
    (put(float("inf")), "the model is not finite in encoder.conv1.weight"),
    (put(3e38), "the model is larger than this site's rules allow in encoder.conv1.weight"),
    (put(0.123), "the first model is not the one that this run's seed gives"),
    (lambda model: {n: -t if n.endswith("running_var") else t for n, t in model.items()}, "has a variance below 0"),
    (lambda model: dict(list(model.items())[1:]), "the first model is not the one"),
    (lambda model: {f"module.{name}": tensor for name, tensor in model.items()}, "the first model is not the one"),
    (lambda model: {name: tensor.double() for name, tensor in model.items()}, "the first model is not the one"),
    (lambda model: {name: tensor.flatten() for name, tensor in model.items()}, "the first model is not the one"),
]


@pytest.mark.parametrize(("change", "line"), MODELS)
def test_a_planted_model_is_refused(tmp_path: Path, chosen: Config, change: Change, line: str) -> None:
    own = site(tmp_path, chosen)
    assert line in reason(door(own).answer(train(chosen, 0, change(initial_arrays(chosen)))))
    assert not list(tmp_path.rglob("state_round*"))


def test_a_first_model_that_the_rules_name_and_one_that_comes_late(tmp_path: Path, chosen: Config) -> None:
    model = put(0.123)(initial_arrays(chosen))
    named = {"first_weights: []": f"first_weights: [{model_digest(model)}]"}
    own = site(tmp_path / "a", chosen, named)
    assert said(door(own).answer(train(chosen, 0, model))).kind == "update"
    own = site(tmp_path / "b", chosen)
    assert "not part of the run's first round" in reason(door(own).answer(train(chosen, 1)))
    own = site(tmp_path / "c", chosen, {"late: false": "late: true"})
    assert said(door(own).answer(train(chosen, 1))).kind == "update"


def test_a_later_model_is_compared_with_the_last(tmp_path: Path, chosen: Config) -> None:
    front = door(site(tmp_path, chosen))
    update = said(front.answer(train(chosen))).tensors
    far = {name: tensor + (10.0 if name.endswith("weight") else 0.0) for name, tensor in update.items()}
    assert "the model is further from the model before" in reason(front.answer(train(chosen, 1, far)))
    renamed = {name.replace("encoder.", "encoder.x"): tensor for name, tensor in update.items()}
    assert "has other tensors, shapes or types" in reason(front.answer(train(chosen, 1, renamed)))
    assert said(front.answer(train(chosen, 1, dict(update)))).kind == "update"


@pytest.mark.parametrize(
    ("ending", "round_number", "passes"),
    [("running_var", 0, True), ("running_var", 1, False), ("weight", 0, False), ("running_mean", 0, True)],
)
def test_statistics_that_nobody_measured_may_leap_once(
    tmp_path: Path, chosen: Config, ending: str, round_number: int, passes: bool
) -> None:
    """A first variance of 30 is no sign of an attack; a parameter, or a variance later on, that leaps is one."""
    own = site(tmp_path, chosen)
    model = dict(said(door(own).answer(train(chosen))).tensors) if round_number else initial_arrays(chosen)

    def work(*request: Any) -> tuple[int, bytes]:
        examinations, data = hospital.here(*request)
        done = payload.unpack(data)
        leapt = {n: t + 30.0 if n.endswith(ending) else t for n, t in done.tensors.items()}
        return examinations, payload.pack("update", done.fields, leapt)

    answer = Door(own, work).answer(train(chosen, round_number, model))
    if passes:
        assert said(answer).kind == "update"
    else:
        assert "the update is further from the model before" in reason(answer)


def test_the_life_of_a_data_set(tmp_path: Path, chosen: Config) -> None:
    """Rounds are reserved before the work, a crash gives nothing back, and a new seed is no new life."""
    own = site(tmp_path, chosen, {"rounds: 200": "rounds: 2"})

    def crash(*_: Any) -> Any:
        raise KeyboardInterrupt  # the process ends

    with pytest.raises(KeyboardInterrupt):
        Door(own, crash).answer(train(chosen))
    assert said(door(own).answer(train(chosen))).kind == "update"
    other = tiny.settings(Path(str(chosen.data["root"])).parent, name="other", run={"seed": 7})
    accept(own, other)
    assert "rounds are spent" in reason(door(own).answer(train(other)))
    Ledger(own.ledger).append("reset", data_set="north")
    assert said(door(own).answer(train(other))).kind == "update"


def test_bytes_and_messages_end(tmp_path: Path, chosen: Config) -> None:
    own = site(tmp_path / "a", chosen, {"megabytes: 20000": "megabytes: 0.1"})
    assert said(door(own).answer(hospital.hello(chosen))).kind == "greeting"
    assert "bytes are spent" in reason(door(own).answer(train(chosen)))
    own = site(tmp_path / "b", chosen, {"messages: 2000": "messages: 2"})
    front = door(own)
    assert [front.answer(b"nonsense") is None for _ in range(4)] == [False, False, True, True]
    assert kinds(own) == ["accepted", "refusal", "refusal"]


def test_a_small_site_keeps_statistics_or_everything(tmp_path: Path, chosen: Config) -> None:
    own = site(tmp_path / "a", chosen, {"statistics: 200": "statistics: 5000"})
    update, sent = said(door(own).answer(train(chosen))).tensors, initial_arrays(chosen)
    same = {name for name in sent if torch.equal(sent[name], update[name])}
    statistics = {name for name in sent if name.endswith(("running_mean", "running_var"))}
    assert statistics and statistics <= same and "encoder.conv1.weight" not in same
    assert statistics <= set(Ledger(own.ledger).entries[-1]["withheld"])
    own = site(tmp_path / "b", chosen, {"examinations: 50": "examinations: 500"})
    for request in (train(chosen), hospital.hello(chosen)):
        line = reason(door(own).answer(request))
        assert line == "this site has fewer examinations than its own rules ask for"


def test_an_error_of_the_work_never_becomes_text(tmp_path: Path, chosen: Config) -> None:
    own = site(tmp_path, chosen)

    def work(*_: Any) -> Any:
        raise ValueError("/data/jane_doe.dcm: 12 cases")

    answer = Door(own, work).answer(train(chosen))
    assert reason(answer) == FAILED
    assert "jane" not in own.ledger.read_text() and kinds(own)[-2:] == ["failure", "refusal"]


def test_a_full_disk_lets_nothing_out(tmp_path: Path, chosen: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    front = door(site(tmp_path, chosen))
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "no space left")))
    with pytest.raises(OSError, match="no space"):
        front.answer(train(chosen))
    monkeypatch.undo()
    assert verify(front.site.ledger).problems == ()


def test_outside_its_hours_the_site_rests(tmp_path: Path, chosen: Config) -> None:
    own = site(tmp_path, chosen, {'hours: "00:00-24:00"': 'hours: "22:00-06:00"'})
    front = Door(own, hospital.here, lambda: time.struct_time((2026, 11, 26, 12, 0, 0, 3, 330, 0)))
    assert reason(front.answer(train(chosen))) == "this site works from 22:00 to 06:00, its local time"
    assert kinds(own)[-1] == "refusal"


def test_every_kind_of_request_has_its_answer_and_no_other_has() -> None:
    assert tuple(ANSWERS) == payload.REQUESTS
    assert {kind for kind, fields in payload.FIELDS.items() if "protocol" in fields} == set(payload.REQUESTS)
    assert set(payload.WITH_TENSORS) < set(payload.FIELDS)


def test_an_answer_is_no_request(tmp_path: Path, chosen: Config) -> None:
    front = door(site(tmp_path, chosen))
    greeting = front.answer(hospital.hello(chosen))
    assert greeting is not None
    assert reason(front.answer(greeting[48:-64])) == f"the request is none of {', '.join(payload.REQUESTS)}"


@pytest.mark.slow
def test_a_process_of_its_own_gives_the_same_bits_and_has_limits(tmp_path: Path, chosen: Config) -> None:
    def child(own: Any) -> Any:
        return lambda site, digest, data: site_work.in_child(tmp_path / own / "site.yaml", site, digest, data)

    own = site(tmp_path / "a", chosen)
    here = said(door(own).answer(train(chosen))).tensors
    own = site(tmp_path / "b", chosen)
    there = said(Door(own, child("b")).answer(train(chosen))).tensors
    assert tiny.same(here, there)
    own = site(tmp_path / "c", chosen, {"  seconds: 3600": "  seconds: 1"})
    endless = tiny.settings(Path(str(chosen.data["root"])).parent, name="long", plan={"steps_per_epoch": 9999})
    accept(own, endless)
    assert reason(Door(own, child("c")).answer(train(endless))) == FAILED
    assert "longer than resources.seconds" in Ledger(own.ledger).entries[-2]["reason"]
    own = site(tmp_path / "d", chosen, {"  memory_gb: 8": "  memory_gb: 1"})
    before = (tmp_path / "d" / "site.yaml").read_text()
    (tmp_path / "d" / "site.yaml").write_text(before.replace(str(chosen.data["root"]), str(tmp_path / "gone.npz")))
    assert reason(Door(own, child("d")).answer(train(chosen))) == FAILED
    assert "gone.npz" in (tmp_path / "d" / "state" / "errors.log").read_text()
    assert "gone.npz" not in own.ledger.read_text()
