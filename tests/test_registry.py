"""Every mistake in a leaf of a configuration is one line that names the field and what is allowed."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pytest

from sslmed_dist import registry

NUMBERS = "; a number has to be finite in float32, a whole number within 2^53"


class Optimiser:
    def __init__(
        self,
        lr: float,
        steps: int = 3,
        kind: Literal["cosine", "step"] = "cosine",
        nesterov: bool = False,
        note: str | None = None,
    ) -> None:
        self.lr, self.steps, self.kind, self.nesterov = lr, steps, kind, nesterov


class Crop:
    def __init__(self, channels: int, scale: tuple[float, float] = (0.2, 1.0), mean: tuple[float, ...] | None = None):
        self.channels, self.scale, self.mean = channels, scale, mean


def plain(**options: Any) -> dict[str, Any]:
    return options


TABLE: registry.Table = {"sgd": Optimiser, "crop": Crop, "plain": plain}


def test_build_calls_the_constructor() -> None:
    built = registry.build(TABLE, {"name": "sgd", "lr": 1, "kind": "step"}, "optim")
    assert (built.lr, built.steps, built.kind) == (1, 3, "step")


def test_what_the_caller_gives_is_passed_where_it_is_accepted() -> None:
    crop = registry.build(TABLE, "crop", "views", channels=3, mean=[0.5], seed=1)
    assert (crop.channels, crop.mean) == (3, [0.5])
    assert registry.build(TABLE, {"name": "plain"}, "views", channels=3) == {}


@pytest.mark.parametrize(
    "leaf, message",
    [
        ({"name": "adam"}, "optim.name: 'adam' is unknown; allowed: crop, plain, sgd"),
        ({"name": ["sgd"]}, "optim.name: ['sgd'] is unknown; allowed: crop, plain, sgd"),
        ({"name": None}, "optim.name: None is unknown; allowed: crop, plain, sgd"),
        ({"lr": 0.1}, "optim: expected a mapping with a 'name', one of ['crop', 'plain', 'sgd'], got {'lr': 0.1}"),
        (None, "optim: expected a mapping with a 'name', one of ['crop', 'plain', 'sgd'], got None"),
        ({"name": "sgd", "rate": 1.0}, "optim.rate: unknown key; allowed: lr, steps, kind, nesterov, note"),
        ({"name": "sgd"}, "optim.lr: missing; it is required by optim"),
        ({"name": "sgd", "lr": "1e-3"}, "optim.lr: expected float, got '1e-3'"),
        ({"name": "sgd", "lr": True}, "optim.lr: expected float, got True"),
        ({"name": "sgd", "lr": 1, "steps": 2.0}, "optim.steps: expected int, got 2.0"),
        ({"name": "sgd", "lr": 1, "nesterov": 1}, "optim.nesterov: expected bool, got 1"),
        ({"name": "sgd", "lr": 1, "kind": "line"}, "optim.kind: expected one of 'cosine', 'step', got 'line'"),
        ({"name": "crop", "channels": 3, "scale": [0.1]}, "optim.scale: expected [float, float], got [0.1]"),
        ({"name": "crop", "channels": 3, "mean": 0.5}, "optim.mean: expected [float, ...] or null, got 0.5"),
        ({"name": "sgd", "lr": math.nan}, f"optim.lr: expected float, got nan{NUMBERS}"),
        ({"name": "sgd", "lr": -math.inf}, f"optim.lr: expected float, got -inf{NUMBERS}"),
        ({"name": "sgd", "lr": 10**400}, f"optim.lr: expected float, got 1{'0' * 199}...{NUMBERS}"),
        (
            {"name": "sgd", "lr": 1, "steps": -(2**63) - 1},
            f"optim.steps: expected int, got -9223372036854775809{NUMBERS}",
        ),
        (
            {"name": "crop", "channels": 3, "mean": [0.1, math.nan]},
            f"optim.mean: expected [float, ...] or null, got [0.1, nan]{NUMBERS}",
        ),
        ({"name": "sgd", "lr": 1, "note": 3}, "optim.note: expected text or null, got 3; write it in quotes"),
        ({"name": "sgd", "lr": 1, "note": [3]}, "optim.note: expected text or null, got [3]"),
        ({"name": "plain", "any": 1}, "optim.any: unknown key; allowed: none"),
    ],
)
def test_mistakes(leaf: Any, message: str) -> None:
    for call in (registry.check, registry.build):
        with pytest.raises(ValueError) as caught:
            call(TABLE, leaf, "optim")
        assert str(caught.value) == message


def test_what_the_caller_gives_may_not_stand_in_the_file() -> None:
    with pytest.raises(ValueError, match="^views.channels: unknown key; allowed: scale, mean$"):
        registry.check(TABLE, {"name": "crop", "channels": 3}, "views", given=("channels",))


@pytest.mark.parametrize(
    "value, hint, fits",
    [
        (1, float, True),
        (-(2**53), int, True),
        (math.nan, float, False),
        (3.4e38, float, True),
        (3.5e38, float, False),
        (math.inf, float | None, False),
        ([1.0, math.inf], list[float], False),
        ({"a": math.nan}, Mapping[str, float], False),
        (1.5, int, False),
        (True, int, False),
        (None, int | None, True),
        ("x", int | None, False),
        ([1, 2], tuple[float, float], True),
        ([1, 2, 3], tuple[float, float], False),
        ([1, 2, 3], tuple[float, ...], True),
        ((), tuple[float, ...], True),
        ("12", tuple[str, ...], False),
        ([1, "a"], list[int], False),
        (["a"], Sequence[str], True),
        ({"a": 1}, dict[str, int], True),
        ({"a": "b"}, Mapping[str, int], False),
        (1, Literal[1, 2], True),
        (True, Literal[1, 2], False),
        (True, Literal[1, False], False),
        ([1], Literal[1, 2], False),
        ("anything", Any, True),
    ],
)
def test_matches(value: Any, hint: Any, fits: bool) -> None:
    assert registry.matches(value, hint) is fits
