"""Noise at a site's door: nothing leaves without it, it is accounted for life before the work, and the budget ends."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from sslmed_dist.cli import main
from sslmed_dist.config import Config
from sslmed_dist.federation import accountant, ledger_page, payload, site_privacy
from sslmed_dist.federation.door import Door
from sslmed_dist.federation.ledger import Ledger, verify
from sslmed_dist.federation.local_round import first_sent, initial_arrays
from sslmed_dist.federation.policy import Spent
from sslmed_dist.federation.shared import Arrays, is_statistic, model_digest
from tests.federation import hospital, tiny
from tests.federation.hospital import hello, reason, said, train

QUIET = {"    clip: 1.0 ": "    clip: 1.0 ", "noise_multiplier: 10.0 ": "noise_multiplier: 10.0 "}
NOISE = {**QUIET, "    change: 2.0              # L2 norm of (u": "    change: 900.0            # L2 norm of (u"}
EACH = accountant.rho(10.0)


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Settings of a run; the data lie beside its runs."""
    return tiny.settings(tmp_path_factory.mktemp("run"), federated={"rounds": 4})


def site(folder: Path, chosen: Config, changes: dict[str, str] | None = None) -> Any:
    """A site with noise that has accepted the run."""
    own = hospital.site(folder, Path(str(chosen.data["root"])), {**NOISE, **(changes or {})})
    hospital.accept(own, chosen)
    return own


def work(tensors: Arrays, sent: Arrays, scalars: dict[str, float]) -> Any:
    """Work that gives back ``tensors`` and 96 as the number of images."""
    fields = {"run": "0" * 64, "round": 0, "sequence": 0, "site": "north", "samples": 96, "scalars": scalars}
    return lambda *_: (96, payload.pack("update", {**fields, "model": model_digest(sent)}, tensors))


def moved(sent: Arrays, by: float) -> Arrays:
    """Every number of a model moved by as much, statistics too."""
    return {key: value + by for key, value in sent.items()}


def test_every_value_that_leaves_is_noised_or_does_not_come_from_the_data(tmp_path: Path, chosen: Config) -> None:
    """Two sites of very different data: whatever field of their answers differs, differs by the noise alone."""
    sent = initial_arrays(chosen)
    answers = []
    for name, by, loss in (("one", 0.5, 7.0), ("two", -0.5, 1.0)):
        own = site(tmp_path / name, chosen)
        front = Door(own, work(moved(sent, by), sent, {"loss": loss, "missed_rounds": 1.0, "effective_rank": 3.0}))
        answers.append(said(front.answer(train(chosen))))
        entry = front.ledger.entries[-1]
        assert entry["scalars"] == {"samples": 1}
        statistics = [key for key in sent if is_statistic(key)]
        assert entry["withheld"] == [*statistics, "effective_rank", "loss", "missed_rounds"] and statistics
        assert (entry["epsilon"], entry["delta"]) == (accountant.epsilon(EACH, 1e-6), 1e-6)
    assert answers[0].fields.keys() == set(payload.FIELDS["update"])
    for field, value in answers[0].fields.items():
        assert value == answers[1].fields[field], field
    assert answers[0].fields["samples"] == 1 and answers[0].fields["scalars"] == {}
    untouched = 0
    for key, value in sent.items():
        first, second = (answer.tensors[key] for answer in answers)
        if is_statistic(key):
            assert torch.equal(first, value) and torch.equal(second, value), key
        else:
            untouched += int((first == value).sum()) + int((first == second).sum())
    assert untouched <= 3  # one number in ten million by chance
    learned = [key for key in sent if not is_statistic(key)]
    numbers = sum(sent[key].numel() for key in learned)
    for answer in answers:  # sd 10 x clip 1; the update itself has norm 1
        square = sum(float((answer.tensors[key].double() - sent[key].double()).square().sum()) for key in learned)
        assert abs(math.sqrt(square / numbers) / 10 - 1) < 7 / math.sqrt(2 * numbers)


def test_the_greeting_names_the_number_of_the_rules(tmp_path: Path, chosen: Config) -> None:
    front = hospital.door(site(tmp_path, chosen, {"    samples: 1 ": "    samples: 100 "}))
    assert said(front.answer(hello(chosen))).fields["samples"] == 100
    entry = front.ledger.entries[-1]
    assert entry["scalars"]["samples"] == 100 and entry["epsilon"] is None
    assert Spent.of(front.ledger.entries, "north").rho == 0.0


@pytest.mark.parametrize("strategy", ["fedavg", "fedbn"])
def test_real_rounds_go_on_and_are_kept_with_their_noise(tmp_path: Path, strategy: str) -> None:
    chosen = tiny.settings(tmp_path, federated={"strategy": {"name": strategy}})
    sent = first_sent(chosen)
    assert any(map(is_statistic, sent)) == (strategy == "fedavg")
    own = site(
        tmp_path, chosen, {"    change: 2.0              # L2 norm of (n": "    change: 999.0   # L2 norm of (n"}
    )
    front = hospital.door(own)
    first = front.answer(train(chosen, arrays=sent))
    again = front.answer(train(chosen, arrays=sent))
    assert first == again  # the same bits: a second draw would be a second answer
    second = said(front.answer(train(chosen, 1, said(first).tensors)))
    assert second.kind == "update" and Spent.of(front.ledger.entries, "north").rho == pytest.approx(2 * EACH)
    assert verify(own.ledger).problems == ()
    page = ledger_page.page("north", front.ledger.entries, verify(own.ledger))
    assert f"epsilon {accountant.epsilon(2 * EACH, 1e-6):.3g} at delta 1e-06 in 2 rounds, for a site's whole" in page
    assert ledger_page.line(front.ledger.entries[-1]).endswith(
        f"; epsilon {accountant.epsilon(2 * EACH, 1e-6):.3g} spent"
    )
    assert ",rho,delta," in ledger_page.as_csv(front.ledger.entries).splitlines()[0]


def test_privacy_is_spent_over_runs_and_only_the_site_begins_anew(
    tmp_path: Path, chosen: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """A budget for three rounds: two of one run, one of another run of the same data, then no further one."""
    enough = f"epsilon: {accountant.epsilon(3.5 * EACH, 1e-6):.4f} "
    own = site(tmp_path, chosen, {"epsilon: 8.0 ": enough})
    other = tiny.settings(Path(str(chosen.data["root"])).parent, "other", federated={"rounds": 3})
    hospital.accept(own, other)
    sent = initial_arrays(chosen)
    front = Door(own, work(sent, sent, {}))
    runs = front.site.state + "/runs"
    for run in (chosen, chosen, other):
        assert said(front.answer(train(run))).kind == "update"
        for kept in Path(runs).glob("*/answered.json"):
            kept.unlink()  # else the round is answered from what is kept
    line = "this site's privacy (epsilon) is spent; only the site can allow more"
    assert reason(front.answer(train(chosen))) == line and reason(front.answer(train(other))) == line
    assert said(front.answer(hello(chosen))).kind == "refusal"  # the work gives no greeting here; it costs nothing
    spent = Spent.of(Ledger(own.ledger).entries, "north")
    assert spent.rho == pytest.approx(3 * EACH) and spent.rounds == 3
    file = str(tmp_path / "site.yaml")
    assert main(["site", "status", file]) == 0
    assert (
        f"epsilon {accountant.epsilon(3 * EACH, 1e-6):.3g} of {own.policy.privacy.epsilon:g}" in capsys.readouterr().out
    )
    assert main(["site", "reset", file]) == 0
    assert said(front.answer(train(chosen))).kind == "update"
    page = ledger_page.page("north", front.ledger.entries, verify(own.ledger))
    assert f"epsilon {accountant.epsilon(4 * EACH, 1e-6):.3g}" in page  # a reset forgets nothing on the page


class Killed(BaseException):
    """Stands for a machine that stops."""


def test_a_crash_between_reservation_and_answer_gives_nothing_back(
    tmp_path: Path, chosen: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = site(tmp_path, chosen, {"epsilon: 8.0 ": f"epsilon: {accountant.epsilon(2.5 * EACH, 1e-6):.4f} "})
    sent = initial_arrays(chosen)

    def stop(*_: Any) -> Any:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(site_privacy.Mechanism, "released", stop)  # the noise is drawn, nothing has left
        with pytest.raises(Killed):
            Door(own, work(sent, sent, {})).answer(train(chosen))
    after = Door(own, work(sent, sent, {}))
    assert Spent.of(after.ledger.entries, "north").rho == EACH
    said(after.answer(train(chosen)))
    assert after.ledger.entries[-1]["epsilon"] == accountant.epsilon(2 * EACH, 1e-6)
    other = {key: value + 0.0 for key, value in sent.items()}
    for kept in Path(own.state).glob("runs/*/answered.json"):
        kept.unlink()
    assert "is spent" in reason(after.answer(train(chosen, arrays=other)))


def test_rounds_without_noise_leave_no_epsilon_to_speak_of(tmp_path: Path, chosen: Config) -> None:
    sent = initial_arrays(chosen)
    bare = hospital.site(tmp_path, Path(str(chosen.data["root"])))
    hospital.accept(bare, chosen)
    front = Door(bare, work(sent, sent, {"loss": 1.0}))
    answer = said(front.answer(train(chosen)))
    assert answer.fields["scalars"] == {"loss": 1.0} and answer.fields["samples"] == 96
    assert front.ledger.entries[-1]["epsilon"] is None
    assert "not bounded; no noise" in ledger_page.page("north", front.ledger.entries, verify(bare.ledger))
    own = site(tmp_path, chosen)
    for kept in Path(own.state).glob("runs/*/answered.json"):
        kept.unlink()
    noised = Door(own, work(sent, sent, {}))
    assert reason(noised.answer(train(chosen))).startswith("rounds of this site's data left without noise")
    noised.ledger.append("reset", data_set="north")
    assert said(noised.answer(train(chosen))).kind == "update"
    page = ledger_page.page("north", noised.ledger.entries, verify(own.ledger))
    assert "in 1 rounds" in page and "not bounded in 1 more rounds, which had no noise" in page


def test_noise_that_would_drown_the_model_is_refused_before_it_is_paid_for(tmp_path: Path, chosen: Config) -> None:
    own = hospital.site(tmp_path, Path(str(chosen.data["root"])), QUIET)
    hospital.accept(own, chosen)
    front = hospital.door(own)
    assert reason(front.answer(train(chosen))).startswith("the noise that this site's rules add (norm ")
    assert [entry["kind"] for entry in front.ledger.entries] == ["accepted", "refusal"]


def test_sizes_are_looked_at_after_the_noise(tmp_path: Path, chosen: Config) -> None:
    """A refusal for the size of the update itself would tell of the data. With noise a huge one is shortened."""
    sent = initial_arrays(chosen)
    for name, changes, kind in (("noised", NOISE, "update"), ("bare", {}, "refusal")):
        own = hospital.site(tmp_path / name, Path(str(chosen.data["root"])), changes)
        hospital.accept(own, chosen)
        assert said(Door(own, work(moved(sent, 1e6), sent, {})).answer(train(chosen))).kind == kind
    own = site(tmp_path / "none", chosen)
    broken = {key: value * math.nan if not is_statistic(key) else value for key, value in sent.items()}
    assert "not finite" in reason(Door(own, work(broken, sent, {})).answer(train(chosen)))


def test_clipping_alone_shortens_and_claims_no_epsilon(tmp_path: Path, chosen: Config) -> None:
    sent = initial_arrays(chosen)
    own = hospital.site(tmp_path, Path(str(chosen.data["root"])), {"    clip: 1.0 ": "    clip: 0.25 "})
    hospital.accept(own, chosen)
    front = Door(own, work(moved(sent, 0.1), sent, {"loss": 1.0}))
    answer = said(front.answer(train(chosen)))
    learned = [key for key in sent if not is_statistic(key)]
    square = sum(float((answer.tensors[key].double() - sent[key].double()).square().sum()) for key in learned)
    assert math.sqrt(square) == pytest.approx(0.25, rel=1e-5)
    assert answer.fields["scalars"] == {"loss": 1.0} and front.ledger.entries[-1]["epsilon"] is None


def test_a_person_reads_what_the_rules_are_worth(
    tmp_path: Path, chosen: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    site(tmp_path, chosen)
    capsys.readouterr()
    main(["site", "check", str(tmp_path / "site.yaml")])
    count = accountant.answers_within(8.0, 1e-6, EACH)
    line = f"privacy: noise 10 x clip 1; epsilon 8 at delta 1e-06 is enough for {count} rounds in all (a site's whole"
    assert line in capsys.readouterr().out and 20 < count < 100
