"""``sslmed where``: the numbered things of the thesis that are implemented say so where they are written."""

import re

import pytest

from sslmed_dist import cli
from sslmed_dist.verbs.where import mentions, numbers, where

# What computes each of the thesis's equations and algorithms that are implemented. Those that are steps of a derivation
# have no code of their own; the docstring of what they lead to names them.
EQUATIONS = {
    "combined": ("3.1", "3.4", "4.19"),
    "weights": ("3.2", "4.20"),
    "Sampling": ("3.3",),
    "NTXent": ("4.2", "4.3", "4.4", "4.5", "6.1"),
    "Binary": ("4.14",),
    "Contr": ("4.17",),
    "Combo": ("4.18",),
    "MIOv1": ("5.13",),
    "MIOv2": ("5.15",),
    "MIOv3": ("5.21",),
    "value": ("5.29",),
    "gradient": ("5.35", "5.36", "5.37", "5.38"),
    "hessian": ("5.39", "5.42", "5.43", "5.44", "5.45", "5.48"),
    "rates": ("5.52", "5.53", "5.54", "5.55"),
    "pair_gradients": ("6.2", "6.3", "6.6", "6.7"),
    "ode_solution": ("6.9", "6.12", "6.13", "6.14"),
    "integral_constants": ("6.15",),
    "Dystress": ("6.16",),
    "collect": ("7.2", "7.3"),
    "unit": ("7.4", "7.5"),
    "CoWProHead": ("7.6", "7.7", "7.8", "7.9", "7.10"),
    "CoWPro": ("7.12", "7.13", "7.14"),
}
ALGORITHMS = {"arrangements": "3.1", "JumbledViews": "3.2", "divided": "3.3", "DystressShifted": "6.1"}
# Not recipes: 3.1 is an architecture, 3.2, 4.1 and 5.1 describe data, 3.9 is a part of 3.11, 4.3 is an augmentation.
TABLES = [
    *(f"3.{k}" for k in (3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14)),
    *(f"4.{k}" for k in (2, 4, 5, 6)),
    *(f"5.{k}" for k in range(2, 12)),
    *(f"6.{k}" for k in range(1, 16)),
    *(f"7.{k}" for k in range(1, 5)),
]


@pytest.fixture(scope="module")
def defined() -> set[tuple[str, str, str]]:
    return {(m.kind, m.number, m.around) for m in mentions() if m.defines}


def test_every_implemented_equation_and_algorithm_is_found_where_it_is_computed(
    defined: set[tuple[str, str, str]],
) -> None:
    asked = {("equation", number, around) for around, all_of in EQUATIONS.items() for number in all_of}
    asked |= {("algorithm", number, around) for around, number in ALGORITHMS.items()}
    assert asked - defined == set()


def test_every_table_has_its_recipe(defined: set[tuple[str, str, str]]) -> None:
    assert {("table", number, "recipe") for number in TABLES} - defined == set()


def test_what_computes_it_comes_first() -> None:
    first = where("5.21")[0]
    assert re.match(r"sslmed_dist/losses/mio\.py:\d+  equation 5\.21, MIOv3: ", first)
    for words in ("Eq. 5.21", "eq 5.21", "equation 5.21", "(5.21)"):
        assert where(words)[0] == first
    assert where("table-5.2")[0] == "configs/thesis/table-5.2.yaml:1  table 5.2, recipe: sslmed reproduce table-5.2"


def test_lists_and_ranges_of_numbers() -> None:
    assert list(numbers("7.2 to 7.5")) == ["7.2", "7.3", "7.4", "7.5"]
    assert list(numbers("5.2, 5.8 and 6.1")) == ["5.2", "5.8", "6.1"]
    assert list(numbers("3.14a")) == ["3.14a"]


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ("mio", "'mio' is no number of the thesis"),
        ("loss 5.21", "'loss 5.21' is no number of the thesis"),
        ("5.99", "nothing here is said to be number 5.99; there are 3.1, "),
        ("algorithm 5.21", "nothing here is said to be algorithm 5.21; there are 3.1, 3.2, 3.3, 6.1"),
    ],
)
def test_what_is_not_there_is_said(asked: str, line: str) -> None:
    with pytest.raises(ValueError, match=re.escape(line)):
        where(asked)


def test_several_numbers_on_a_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["where", "5.13", "5.21"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == [*where("5.13"), *where("5.21")]
    assert cli.main(["where", "Eq.", "5.21"]) == 0
    assert capsys.readouterr().out.splitlines() == where("Eq. 5.21")
