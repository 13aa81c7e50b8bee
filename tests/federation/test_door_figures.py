"""Figures at a site's door: a closed form, counted for the data set's life, and nothing else in their place."""

import struct
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from sslmed_dist.config import Config
from sslmed_dist.federation import figures, payload, site_work
from sslmed_dist.federation.door import Door
from sslmed_dist.federation.doorway import FAILED
from sslmed_dist.federation.figures import Figure, Told
from sslmed_dist.federation.ledger import Ledger, canonical, infinite
from sslmed_dist.federation.messages import Unreadable
from sslmed_dist.federation.shared import Arrays
from tests.federation import hospital, tiny
from tests.federation.hospital import reason, said

GOOD = ["random", 0, "auc", 0.7, 0.6, 0.8, 40, 30]
ASKED = {"evaluate": {"protocols": [{"name": "knn", "k": 5}]}}
LOCAL = {"rounds": 1, "evaluate": True, "compare": ["random", "local"]}
FEW = {"    patients: 50": "    patients: 10"}


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Settings of a run that asks for figures."""
    federated = {"rounds": 1, "evaluate": True, "compare": ["random"]}
    return tiny.settings(tmp_path_factory.mktemp("run"), federated=federated, **ASKED)


def changed(place: int, value: Any) -> list[Any]:
    """A good figure with another value at one place."""
    return [*GOOD[:place], value, *GOOD[place + 1 :]]


BAD: list[Any] = [
    None, {}, "JANE", [], GOOD[:7], [*GOOD, 1], changed(0, "JANE_DOE"), changed(0, "pooled"), changed(1, -1),
    changed(1, 0.0), changed(1, 99), changed(1, True), changed(2, "auc/JANE_DOE"), changed(3, float("nan")),
    changed(3, float("inf")), changed(3, "0.7"), changed(3, 1), changed(3, None), changed(4, None), changed(6, 40.0),
    changed(6, 0), changed(7, 41), changed(7, 0), changed(6, 1 << 50),
]  # fmt: skip


@pytest.mark.parametrize("values", BAD)
def test_what_is_no_figure_is_not_read(values: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        Figure.from_list(values)
    assert not figures.are_figures([GOOD, values])


def test_a_figure_is_read_back_and_none_comes_twice() -> None:
    undefined = ["federated", 1, "accuracy", None, None, None, 5, 5]
    assert [figure.to_list() for figure in figures.read([GOOD, undefined])] == [GOOD, undefined]
    for values in ([GOOD, GOOD], [], [changed(1, place % 32) for place in range(300)], {"a": GOOD}, None):
        assert not figures.are_figures(values)
    told = Told("north", 3, "ab", figures.read([GOOD]), {"health_alignment": 0.5})
    assert Told.from_record(told.to_record()) == told
    for wrong in ({"told": "{"}, {"told": '{"figures": [], "scalars": {}}'}, {"round": "3"}, {"site": 3}, {"more": 1}):
        with pytest.raises(Unreadable):
            Told.from_record({**told.to_record(), **wrong})
    scalar = Told("north", 3, "ab", figures.read([GOOD]), {"jane_doe": 0.5})
    with pytest.raises(Unreadable):
        Told.from_record(scalar.to_record())


def evaluate(chosen: Config, arrays: Arrays, number: int = 1) -> bytes:
    """A request "evaluate"."""
    return payload.pack("evaluate", {**hospital.common(chosen), "round": number}, arrays)


def trained(folder: Path, chosen: Config, rules: dict[str, str] | None = None) -> tuple[Any, Door, Arrays]:
    """A site that has done one round, its door, and the update as the next model."""
    own = hospital.site(folder, Path(str(chosen.data["root"])), {**FEW, **(rules or {})})
    hospital.accept(own, chosen)
    front = hospital.door(own)
    return own, front, dict(said(front.answer(hospital.train(chosen))).tensors)


def test_figures_are_counted_for_life_and_the_same_question_is_answered_to_the_byte(
    tmp_path: Path, chosen: Config
) -> None:
    own, front, model = trained(tmp_path, chosen, {"    evaluations: 20": "    evaluations: 1"})
    answer = front.answer(evaluate(chosen, model))
    message = said(answer)
    assert (message.kind, message.fields["round"], message.fields["sequence"]) == ("figures", 1, 2)
    found = figures.read(message.fields["figures"])
    assert [figure.arm for figure in found] == ["random"] * 3 + ["federated"] * 3
    assert {figure.metric for figure in found} == {"accuracy", "balanced_accuracy", "auc"}
    assert {figure.samples for figure in found} == {32}  # a quarter of 128 images
    count = len(Ledger(own.ledger).entries)
    assert hospital.door(own).answer(evaluate(chosen, model)) == answer
    assert len(Ledger(own.ledger).entries) == count
    other = {name: tensor * 1.001 for name, tensor in model.items()}
    assert "evaluations are spent" in reason(front.answer(evaluate(chosen, other)))


def test_what_a_site_does_not_measure(tmp_path: Path, chosen: Config) -> None:
    _, front, model = trained(tmp_path / "a", chosen)
    assert "nothing to evaluate before the first round" in reason(front.answer(evaluate(chosen, model, 0)))
    far = {name: tensor + (10.0 if name.endswith("weight") else 0.0) for name, tensor in model.items()}
    assert "further from the model before" in reason(front.answer(evaluate(chosen, far)))
    silent = tiny.settings(Path(str(chosen.data["root"])).parent, name="silent", federated={"rounds": 1})
    _, front, model = trained(tmp_path / "b", silent)
    assert "asks for no evaluation" in reason(front.answer(evaluate(silent, model)))
    strict = ({"    patients: 50": "    patients: 33"}, {"of_each_class: 5": "of_each_class: 30"})
    for folder, rules in zip("cd", strict, strict=True):
        own = hospital.site(tmp_path / folder, Path(str(chosen.data["root"])), {**FEW, **rules})
        hospital.accept(own, chosen)
        front = hospital.door(own)
        model = dict(said(front.answer(hospital.train(chosen))).tensors)
        assert "fewer patients, in all or of a class" in reason(front.answer(evaluate(chosen, model)))


def test_figures_stay_where_noise_is_added(tmp_path: Path, chosen: Config) -> None:
    own, front, model = trained(tmp_path, chosen)
    object.__setattr__(own.policy, "privacy", replace(own.policy.privacy, clip=1.0, noise_multiplier=0.5))
    front = Door(own, lambda *_: pytest.fail("nothing may be measured"))
    assert "figures of an evaluation carry none" in reason(front.answer(evaluate(chosen, model)))


def message_of(values: Any, **fields: Any) -> bytes:
    """Bytes in the form of an answer to "evaluate", whatever stands in it."""
    header = {"kind": "figures", "run": "0" * 64, "round": 1, "sequence": 0, "site": "north", "figures": values}
    header |= {"scalars": {}, "model": "0" * 64, "tensors": [], **fields}
    text = canonical(header)
    return payload.MAGIC + struct.pack("<I", len(text)) + text


ATTEMPTS: list[Callable[[], bytes]] = [
    *(partial(message_of, [GOOD, values]) for values in BAD if not infinite(values)),  # JSON has no NaN
    partial(message_of, [changed(0, "local")]),  # an arm that nobody asked for
    partial(message_of, [changed(1, 1)]),  # a protocol that nobody asked for
    partial(message_of, [GOOD], note="JANE_DOE"),
    partial(message_of, [GOOD], scalars={"loss": "JANE_DOE"}),
    lambda: payload.pack("update", {**UPDATE}, {"w": torch.arange(256.0)}),
    lambda: message_of([GOOD]) + b"JANE_DOE",
]  # fmt: skip
UPDATE = {"run": "0" * 64, "round": 1, "sequence": 0, "site": "north", "samples": 1, "scalars": {}, "model": "0" * 64}


def test_nothing_but_figures_leaves(tmp_path: Path, chosen: Config) -> None:
    """The work behind the door is played by an attacker who has read a name and an image."""
    own, front, model = trained(tmp_path, chosen, {"    evaluations: 20": "    evaluations: 999"})
    request = evaluate(chosen, model)
    for attempt in ATTEMPTS:
        answer = Door(own, lambda *_, make=attempt: (0, make())).answer(request)  # type: ignore[misc]
        assert answer is not None and b"JANE" not in answer
        assert reason(answer) == FAILED
    hidden = message_of([GOOD], scalars={"jane_doe": 1.0}, site="JANE.DOE", round=7, sequence=9)
    answer = Door(own, lambda *_: (0, hidden)).answer(request)  # in the right form: the door writes these fields itself
    assert answer is not None and b"jane" not in answer.lower()
    assert said(answer).fields["scalars"] == {} and said(answer).fields["figures"] == [GOOD]


@pytest.mark.slow
def test_a_process_of_its_own_gives_the_same_figures(tmp_path: Path, chosen: Config) -> None:
    asked = tiny.settings(Path(str(chosen.data["root"])).parent, name="local", federated=LOCAL, **ASKED)
    _, front, model = trained(tmp_path / "a", asked)
    here = said(front.answer(evaluate(asked, model))).fields["figures"]
    own, _, again = trained(tmp_path / "b", asked)
    front = Door(own, lambda site, digest, data: site_work.in_child(tmp_path / "b" / "site.yaml", site, digest, data))
    assert tiny.same(model, again)
    assert said(front.answer(evaluate(asked, again))).fields["figures"] == here
    assert {figure.arm for figure in figures.read(here)} == {"random", "local", "federated"}
    assert site_work.seconds_of(own, evaluate(asked, model)) == 2 * own.resources.seconds
    assert site_work.seconds_of(own, hospital.hello(asked)) == own.resources.seconds
