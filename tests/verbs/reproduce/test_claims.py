"""What a figure claims is decided by the interval over seeds, on the right side of every border."""

from pathlib import Path
from typing import Any

import pytest

from sslmed_dist.verbs.reproduce import claims, read_table
from sslmed_dist.verbs.reproduce.published import CellFigure
from sslmed_dist.verbs.reproduce.seed_interval import interval, student

FOLDER = Path(__file__).parents[3] / "configs" / "thesis"
FIGURES = sorted(path.stem for path in FOLDER.glob("figure-*.yaml"))


@pytest.mark.parametrize(
    "freedom, expected", [(1, 12.7062047), (2, 4.3026527), (3, 3.1824463), (9, 2.2621572), (30, 2.0422725)]
)
def test_student_is_that_of_the_tables(freedom: int, expected: float) -> None:
    assert student(freedom) == pytest.approx(expected, abs=1e-6)


def test_the_interval_of_a_mean() -> None:
    assert interval([1.0]) is None
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 4.3026527 / 3**0.5, 2 + 4.3026527 / 3**0.5))
    assert interval([5.0, 5.0]) == (5.0, 5.0)


def figures(column: str = "c", **rows: list[float]) -> list[CellFigure]:
    """Figures of the metric ``accuracy`` by row; the values are those of seeds 0, 1, ..."""
    return [CellFigure(row, column, "accuracy", dict(enumerate(them)), 3, "", ()) for row, them in rows.items()]


def decide(leaf: dict[str, Any], found: list[CellFigure]) -> str:
    """The answer on one claim in the column c."""
    made = claims.read(Path("f.yaml"), [leaf], {"c": ["accuracy", "other"]}, ["A", "B", "C"])
    (verdict,) = claims.verdicts(made, found)
    return verdict.answer


RISING = {"name": "rising", "metric": "accuracy", "rows": ["A", "B"]}


@pytest.mark.parametrize(
    "a, b, answer",
    [
        ([1, 2, 3], [11, 12.1, 13], "shown"),  # far apart as the seeds of one row are: the difference is what counts
        ([11, 12.1, 13], [1, 2, 3], "not shown"),
        ([1, 2, 3], [2, 1, 4], "cannot be told at 3 seeds"),
        ([1, 2], [11, 12], "cannot be told at 2 seeds"),
        ([1, 2, 3], [11], "cannot be told at 1 seed"),
        ([1, 2, 3], [], "cannot be told: not run: B"),
    ],
)
def test_an_order_of_two_rows(a: list[float], b: list[float], answer: str) -> None:
    assert decide(RISING, figures(A=a, B=b)) == answer


def test_a_difference_is_paired_by_its_seeds() -> None:
    """Seed 0 of one row and seed 1 of the other are no pair."""
    made = claims.read(Path("f.yaml"), [RISING], {"c": ["accuracy"]}, ["A", "B"])
    a, b = figures(A=[1.0, 5.0, 9.0], B=[2.0, 6.0, 10.0])
    (verdict,) = claims.verdicts(made, [a, b])
    assert verdict.answer == "shown" and verdict.differences == ("B - A: +1 (+1 to +1)",)
    other = CellFigure("B", "c", "accuracy", {3: 2.0}, 3, "", ())
    assert claims.verdicts(made, [a, other])[0].answer == "cannot be told at 0 seeds"


@pytest.mark.parametrize(
    "b, answer", [([0.2, 0.3, 0.4], "shown"), ([-3, -2.9, -2.8], "not shown"), ([-1.1, -0.9, -1], "cannot be told at")]
)
def test_a_margin_is_allowed_below(b: list[float], answer: str) -> None:
    leaf = {"name": "best", "metric": "accuracy", "row": "B", "others": ["A"], "margin": 1.0}
    assert decide(leaf, figures(A=[0, 0, 0], B=b)).startswith(answer)


@pytest.mark.parametrize(
    "c, answer", [([3, 3.1, 3.2], "shown"), ([0.9, 1, 1.1], "not shown"), ([1.9, 2.1, 2], "cannot be told at 3 seeds")]
)
def test_a_chain_holds_where_every_step_does(c: list[float], answer: str) -> None:
    leaf = {**RISING, "rows": ["A", "B", "C"]}
    assert decide(leaf, figures(A=[1, 1, 1], B=[2, 2, 2], C=c)) == answer


@pytest.mark.parametrize(
    "a, answer",
    [([27, 28, 29], "shown"), ([70, 71, 72], "not shown"), ([49, 50, 51], "cannot be told at 3 seeds"), ([0, 0, 0],
     "cannot be told at 3 seeds")],
)  # fmt: skip
def test_a_range(a: list[float], answer: str) -> None:
    leaf = {"name": "between", "metric": "accuracy", "low": 0, "high": 50, "rows": ["A"]}
    assert decide(leaf, figures(A=a)) == answer


def test_an_order_of_metrics_within_a_row() -> None:
    leaf = {"name": "metrics_rising", "metrics": ["accuracy", "other"], "rows": ["A"]}
    made = claims.read(Path("f.yaml"), [leaf], {"c": ["accuracy", "other"]}, ["A"])
    low, high = (CellFigure("A", "c", name, dict.fromkeys(range(3), at), 3, "", ()) for name, at in
                 (("accuracy", 1.0), ("other", 2.0)))  # fmt: skip
    (verdict,) = claims.verdicts(made, [low, high])
    assert verdict.answer == "shown" and verdict.differences == ("A other - A accuracy: +1 (+1 to +1)",)


def test_one_step_that_is_contradicted_is_enough_and_a_missing_row_is_not() -> None:
    leaf = {**RISING, "rows": ["A", "B", "C"]}
    assert decide(leaf, figures(A=[2, 2, 2], B=[1, 1, 1])) == "not shown"
    assert decide(leaf, figures(A=[1, 1, 1], B=[2, 2, 2])) == "cannot be told: not run: C"


def test_a_claim_of_some_columns_is_made_of_these() -> None:
    leaf = {**RISING, "columns": ["c"]}
    made = claims.read(Path("f.yaml"), [leaf], {"c": ["accuracy"], "d": ["other"]}, ["A", "B"])
    found = [*figures("c", A=[1.0], B=[2.0]), *figures("d", A=[1.0], B=[2.0])]
    assert [it.column for it in claims.verdicts(made, found)] == ["c"]
    assert claims.verdicts(made, figures(A=[], B=[])) == []


@pytest.mark.parametrize(
    "leaf, line",
    [
        (
            {"name": "between", "metric": "accuracy", "low": 50, "high": 0, "rows": ["A"]},
            "expected low < high, got 50 and 0",
        ),
        ({"name": "rising", "metric": "accuracy", "rows": ["A", "A"]}, "claims.0: A accuracy: compared with itself"),
        (
            {"name": "best", "metric": "accuracy", "row": "A", "others": ["A"]},
            "claims.0: A accuracy: compared with itself",
        ),
        ({"name": "rising", "metric": "accuracy", "rows": ["A", "B"], "columns": []}, "claims.0: columns: is empty"),
        ({"name": "falling"}, "f.yaml: claims.0.name: 'falling' is unknown; allowed: best, between, "),
        ({**RISING, "rows": ["A", "X"]}, "f.yaml: claims.0: row 'X': unknown; allowed: A, B, C"),
        ({**RISING, "metric": "x"}, "f.yaml: claims.0: metric 'x': unknown; allowed: accuracy"),
        ({**RISING, "columns": ["x"]}, "f.yaml: claims.0: column 'x': unknown; allowed: c"),
        ({**RISING, "rows": ["A"]}, "f.yaml: claims.0: expected something to compare and a margin >= 0, got 0 and 0"),
        ({**RISING, "margin": -1.0}, "expected something to compare and a margin >= 0, got 1 and -1"),
        ({**RISING, "seeds": 3}, "f.yaml: claims.0.seeds: unknown key"),
    ],
)
def test_a_claim_of_what_the_table_does_not_have_is_refused(leaf: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError) as error:
        claims.read(Path("f.yaml"), [leaf], {"c": ["accuracy"]}, ["A", "B", "C"])
    assert line in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", FIGURES)
def test_the_published_figures_do_not_contradict_the_message(name: str) -> None:
    """What the thesis prints of a figure, taken for three equal seeds, shows its claim as far as it goes."""
    table = read_table.load(FOLDER / f"{name}.yaml")
    assert table.message and table.claims and "message" not in table.note
    printed = [
        CellFigure(row, column, metric, dict.fromkeys(range(3), values[0]) if values else {}, 3, "", ())
        for (row, column, metric), values in table.published.items()
    ]
    answers = [it.answer for it in claims.verdicts(table.claims, printed)]
    assert all(it == "shown" or it.startswith("cannot be told: not run") for it in answers)
    assert ("shown" in answers) == (name in ("figure-5.1", "figure-6.4"))
