"""The lines that docs/troubleshooting.md explains are lines that the program says."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "troubleshooting.md"
# Lines of libraries below this program, which a user sees all the same.
OTHERS = ("certificate has expired", "certificate is not yet valid", "unable to get local issuer certificate")
OTHERS += ("mismatch", "No space left on device")
WORDS = 3  # in succession, that have to stand in one text of the program


def lines() -> Iterator[str]:
    """Every line that the page explains: what stands between backticks in the first column of its tables."""
    for row in PAGE.read_text(encoding="utf-8").splitlines():
        if row.startswith("| "):
            yield from re.findall(r"`([^`]+)`", row.removeprefix("| ").split(" | ")[0])


@cache
def said() -> str:
    """Every text in the program's source but docstrings, a line each; a value in a text ends the line."""
    texts = []
    for package in ("sslmed_dist", "server", "clients"):
        for file in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docs)
            texts += [node.value for node in constants if isinstance(node.value, str)]
    return re.sub(r"[ \t]+", " ", "\n".join(texts))


def known(line: str) -> bool:
    """Whether the program says at least half of the ``WORDS`` words in succession that the line has."""
    parts = [part.split() for part in re.split(r"\.\.\.|[:;()]|'[^']*'|\b[A-Z]{1,}\b|\d[\d,]*", line)]
    runs = [" ".join(part[k : k + WORDS]) for part in parts for k in range(max(1, len(part) - WORDS + 1)) if part]
    return 2 * sum(run.strip(",. ") in said() for run in runs) >= len(runs)


def test_words_that_nothing_says_are_found() -> None:
    assert known("is not divisible by the number of workers N")
    assert (
        not known("is not divisible by what the weather was like")
        and not known("nobody says this line")
        and len(list(lines())) > 200
    )


@pytest.mark.parametrize("line", sorted({line for line in lines() if not any(other in line for other in OTHERS)}))
def test_a_line_of_the_page_is_said_somewhere(line: str) -> None:
    assert known(line), f"nothing in the program says {line!r} any more"
