"""A part of the acceptance: what it is given, what it measures, and how a comparison decides."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.differences import Tensors, Tolerance, differences

Group = Literal["correctness", "speed", "learning"]


class NotRun(Exception):  # noqa: N818  (no error: the part has nothing to run on)
    """A part cannot run here. The message says why."""


@dataclass(frozen=True)
class Value:
    """One figure. ``most`` and ``least`` bound it. Outside of them the part has failed, or, where the bound is a
    ``goal``, has missed it. A value that is not finite is outside."""

    name: str
    value: float
    unit: str = ""
    most: float | None = None
    least: float | None = None
    goal: bool = False

    @property
    def held(self) -> bool | None:
        """Whether the bound holds; None where there is none."""
        if not math.isfinite(self.value):
            return False
        if self.most is None and self.least is None:
            return None
        return (self.most is None or self.value <= self.most) and (self.least is None or self.value >= self.least)

    def to_tree(self) -> dict[str, Any]:
        """As it stands in the JSON; null for a value that is not finite."""
        tree: dict[str, Any] = {"name": self.name, "value": self.value if math.isfinite(self.value) else None}
        tree["unit"] = self.unit
        kind = "goal" if self.goal else "tolerance"
        bounds = {word: bound for word, bound in (("most", self.most), ("least", self.least)) if bound is not None}
        return tree | ({kind: bounds} if bounds else {}) | {"held": self.held}


@dataclass(frozen=True)
class Bench:
    """What a part is given. ``device`` is what is tested, ``data`` the folder of ``make gpu-pack``, ``scratch`` a
    folder of its own, ``seconds`` what it may take. ``tiny``: the sizes of a rehearsal, at which no goal applies.
    ``disturb``: a comparison changes what the device computed, beyond its tolerance, and so has to fail."""

    device: str
    data: Path
    scratch: Path
    seconds: float
    tiny: bool = False
    disturb: bool = False

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU is tested."""
        return self.device == "cuda"


@dataclass(frozen=True)
class Comparison:
    """``expected`` against ``actual``, tensor by tensor, each within its tolerance."""

    expected: Callable[[Bench], Tensors]
    actual: Callable[[Bench], Tensors]
    tolerance_of: Callable[[str], Tolerance]

    def __call__(self, bench: Bench) -> list[Value]:
        """The differences with their bounds."""
        expected, actual = self.expected(bench), self.actual(bench)
        if bench.disturb:
            actual = {name: self.tolerance_of(name).broken(value) for name, value in actual.items()}
        return self.judge(expected, actual)

    def judge(self, expected: Tensors, actual: Tensors) -> list[Value]:
        """The differences of given tensors. ``ValueError`` where names or shapes are not the same."""
        found = differences(expected, actual, self.tolerance_of)
        tolerances = {name: self.tolerance_of(name) for name in found}
        return [
            Value(name, value, f"{tolerances[name].measure} difference", most=tolerances[name].most)
            for name, value in found.items()
        ]


@dataclass(frozen=True)
class Part:
    """``run`` measures; it is given at most ``seconds``. ``needs``: files of the data folder without which it cannot
    run. ``alone``: in a process of its own. ``shares``: takes what is left of the call, in equal shares with the parts
    like it, up to ``seconds``."""

    name: str
    group: Group
    run: Callable[[Bench], list[Value]]
    seconds: float
    needs: tuple[str, ...] = ()
    alone: bool = False
    shares: bool = False

    def __post_init__(self) -> None:
        if self.group == "correctness" and not isinstance(self.run, Comparison):
            raise ValueError(f"{self.name}: a part of correctness is a Comparison, so that it can be broken")


def state_of(values: list[Value]) -> str:
    """``failed``, ``missed`` or ``passed``. A part without a value has failed: it has shown nothing."""
    broken = [value for value in values if value.held is False]
    if not values or any(not value.goal or not math.isfinite(value.value) for value in broken):
        return "failed"
    return "missed" if broken else "passed"
