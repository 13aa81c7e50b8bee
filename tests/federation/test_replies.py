"""The closed schema: each fault of a reply that was ever met is a row here, and is named with its numbers."""

import ast
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

import sslmed_dist
from sslmed_dist.federation.messages import Account, Greeting, Unreadable
from sslmed_dist.federation.replies import SCALARS, TERM, Asked, misfit, screen
from sslmed_dist.federation.shared import Arrays, model_digest
from sslmed_dist.losses import LOSSES


def model() -> Arrays:
    """A shared model: a layer, a norm with its statistics."""
    generator = torch.Generator().manual_seed(0)
    tensors: Arrays = {"encoder.conv.weight": torch.randn(4, 3, 3, 3, generator=generator)}
    tensors |= {"encoder.bn.weight": torch.ones(4), "encoder.bn.bias": torch.zeros(4)}
    return tensors | {"encoder.bn.running_mean": torch.zeros(4), "encoder.bn.running_var": torch.full((4,), 2.0)}


ASKED = Asked("north", 3, model_digest(model()), model(), most=32)
GOOD = Account("north", 32, {"loss": 1.0, "mio_v3_1": 2.0}, 3, ASKED.model)
OLDER = model_digest({**model(), "encoder.bn.bias": torch.ones(4)})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"site": "south"}, "its reply bears another site's name"),
        ({"round": 2}, "it answers round 3"),
        ({"model": OLDER}, "it started from another model than this round's"),
        ({"samples": 33}, "it reports 33 samples, allowed 1 to 32"),
        ({"samples": 0}, "it reports 0 samples, allowed 1 to 32"),
        ({"samples": -5}, "it reports -5 samples, allowed 1 to 32"),
        ({"samples": 10**18}, "it reports 1000000000000000000 samples, allowed 1 to 32"),
        ({"samples": 2**62}, f"it reports {2**62} samples, allowed 1 to 32"),
        ({"scalars": {"loss": 1.0, "patient_age": 71.0}}, "scalar patient_age is unknown (1 such)"),
        ({"scalars": {"mio_v3_100": 1.0}}, "scalar mio_v3_100 is unknown (1 such)"),
    ],
)
def test_what_a_reply_says_of_itself(change: dict[str, Any], reason: str | None) -> None:
    assert screen(replace(GOOD, **change), model(), ASKED) == reason


def with_value(key: str, value: float) -> Callable[[Arrays], None]:
    def change(tensors: Arrays) -> None:
        tensors[key].view(-1)[0] = value

    return change


def renamed(tensors: Arrays) -> None:
    tensors["encoder.\x1b[2Jconv.weight"] = tensors.pop("encoder.conv.weight")


def further(tensors: Arrays) -> None:
    tensors.update({f"z{number}": torch.zeros(1) for number in range(1000)})


def flat(tensors: Arrays) -> None:
    tensors["encoder.conv.weight"] = tensors["encoder.conv.weight"].flatten()


def wide(tensors: Arrays) -> None:
    tensors["encoder.bn.bias"] = tensors["encoder.bn.bias"].double()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (renamed, r"tensor encoder.\x1b[2Jconv.weight is unknown (2 such)"),
        (further, "tensor z0 is unknown (1000 such)"),
        (flat, "tensor encoder.conv.weight has shape (108,), expected (4, 3, 3, 3)"),
        (wide, "tensor encoder.bn.bias is torch.float64, expected torch.float32"),
        (with_value("encoder.bn.bias", float("nan")), "tensor encoder.bn.bias is not finite"),
        (with_value("encoder.conv.weight", float("-inf")), "tensor encoder.conv.weight is not finite"),
        (with_value("encoder.bn.running_var", -1e6), "has variances from -1e+06 to 2, allowed 0 to 1e+12"),
        (with_value("encoder.bn.running_var", -1e-9), "has variances from -1e-09 to 2, allowed 0 to 1e+12"),
        (with_value("encoder.bn.running_var", 3e38), "has variances from 2 to 3e+38, allowed 0 to 1e+12"),
    ],
)
def test_tensors_that_cannot_stand_for_the_model(change: Callable[[Arrays], None], reason: str) -> None:
    tensors = model()
    change(tensors)
    said = screen(GOOD, tensors, ASKED)
    assert said is not None and reason in said and said.isprintable()


@pytest.mark.parametrize(("value", "fits"), [(5, True), (9, True), (4, False), (2**60, False)])
def test_a_counter_neither_runs_back_nor_leaps(value: int, fits: bool) -> None:
    assert (misfit({"n": torch.tensor(value)}, {"n": torch.tensor(5)}) is None) == fits


MOST = {f"a{number}": 1.0 for number in range(65)}


@pytest.mark.parametrize(
    ("metrics", "site", "line"),
    [
        ({"num-examples": 2.9}, {}, "num-examples is no whole number"),
        ({"num-examples": float("inf")}, {}, "num-examples is no whole number"),
        ({"num-examples": [3]}, {}, "num-examples is no whole number"),
        ({}, {}, "num-examples is no whole number"),
        ({"num-examples": 3, **MOST}, {}, "65 scalars; allowed: 64"),
        ({"num-examples": 3, "loss": float("nan")}, {}, "scalar loss has no plain name or is no finite number"),
        ({"num-examples": 3, "loss": [1.0]}, {}, "scalar loss has no plain name or is no finite number"),
        ({"num-examples": 3, "a\nround 9: fine": 1.0}, {}, r"scalar a\nround 9: fine has no plain name"),
        ({"num-examples": 3}, {"note": "jane"}, "the record of the site: note is unknown (1 such)"),
        ({"num-examples": 3}, {"round": 3.0}, "round is no whole number"),
        ({"num-examples": 3}, {"model": "0" * 5000}, "model is no text"),
    ],
)
def test_records_that_are_none_of_ours(metrics: dict[str, Any], site: dict[str, Any], line: str) -> None:
    with pytest.raises(Unreadable) as caught:
        Account.from_records(metrics, GOOD.to_site() | site)
    assert line in str(caught.value) and str(caught.value).isprintable()


def test_an_account_survives_its_records() -> None:
    assert Account.from_records(GOOD.to_metrics(), GOOD.to_site()) == GOOD


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"samples": float("inf")}, "samples is no whole number"),
        ({"samples": 1e3}, "samples is no whole number"),
        ({"samples": True}, "samples is no whole number"),
        ({"site": "n" * 5000}, "site is no text"),
        ({"channels": "3"}, "channels is no whole number"),
        ({"more": 1}, "the greeting: more is unknown (1 such)"),
    ],
)
def test_greetings_that_are_none(change: dict[str, Any], line: str) -> None:
    greeting = Greeting("north", "1", 1, 32)
    assert Greeting.from_record(greeting.to_record()) == greeting
    with pytest.raises(Unreadable, match=line.replace("(", r"\(").replace(")", r"\)")):
        Greeting.from_record(greeting.to_record() | change)


def message(**records: Any) -> Any:
    """A reply as Flower hands it over, ``records`` laid over those of a good one."""
    content = {
        "arrays": ArrayRecord(torch_state_dict=model()),
        "metrics": MetricRecord(GOOD.to_metrics()),
        "site": ConfigRecord(GOOD.to_site()),
    }
    return SimpleNamespace(content=RecordDict(content | records))


def test_a_good_message_is_read() -> None:
    from server.reading import read

    reply, scalars, reason = read(message(), ASKED)
    assert reply is not None and reason is None and scalars == GOOD.scalars
    assert all(torch.equal(reply.arrays[key], value) for key, value in model().items())


def padded() -> ArrayRecord:
    """A good record with bytes behind the values of a tensor."""
    record = ArrayRecord(torch_state_dict=model())
    record["encoder.bn.bias"].data += b"jane doe" * 1000
    return record


@pytest.mark.parametrize(
    ("records", "line"),
    [
        ({"more": ConfigRecord({"a": 1})}, "unreadable reply (the reply's records: more is unknown (1 such))"),
        (
            {"more": ArrayRecord(torch_state_dict={"a": torch.zeros(10**6)})},
            "unreadable reply (the reply's records: more is unknown (1 such))",
        ),
        (
            {"metrics": MetricRecord({"num-examples": 3} | {f"a{n}": 1.0 for n in range(20_000)})},
            "unreadable reply (20000 scalars; allowed: 64)",
        ),
        ({"arrays": padded()}, "unreadable reply (tensor encoder.bn.bias has 8,"),
        ({"arrays": MetricRecord({"a": 1})}, "unreadable reply (its tensors: a is unknown"),
    ],
)
def test_a_message_with_more_than_was_asked_for(records: dict[str, Any], line: str) -> None:
    from server.reading import read

    reply, scalars, reason = read(message(**records), ASKED)
    assert reply is None and not scalars and reason is not None and reason.startswith(line)


def test_the_scalars_of_every_method_are_known() -> None:
    """What methods report, by the keys of the mappings that their functions make: a new one goes into the table."""
    package = Path(sslmed_dist.__file__).parent
    names: set[str] = set()
    for file in [*(package / "methods").glob("*.py"), package / "losses" / "collapse.py"]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name in (
                "objective",
                "measures",
                "collapse_measures",
                "dice_terms",
            ):
                keys = [key for leaf in ast.walk(node) if isinstance(leaf, ast.Dict) for key in leaf.keys]
                names |= {key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)}
    assert {"loss", "accuracy", "cycled", "overlap", "edge", "loss_jigsaw", "teacher_entropy", "embedding_std"} <= names
    assert names <= SCALARS


def test_every_loss_may_be_a_term() -> None:
    assert all(TERM.fullmatch(name) and TERM.fullmatch(f"{name}_1") for name in LOSSES)
    assert not TERM.fullmatch("mio_v3_jane")
