"""``sslmed where 5.21``: the file and line of a numbered equation, algorithm, table or figure of the thesis.

The numbers are those that docstrings, comments and recipes name, so that what is found is what is written there.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sslmed_dist import installation
from sslmed_dist.verbs.reproduce.read_table import natural

OWN = ("where.py", "cli_parser.py", "cli_lookup.py")  # which give numbers as examples
KINDS = {"eq": "equation", "tab": "table", "alg": "algorithm", "fig": "figure", "sec": "section"}
NUMBER = r"[3-8]\.\d+(?:\.\d+)*[a-z]?"
# "Eq. 5.13", "thesis Eq. 7.2 to 7.10", "Tables 3.4, 3.10 and 3.11"
MENTION = re.compile(
    rf"\b(Eqs?|Equations?|Tables?|Algs?|Algorithms?|Figs?|Figures?|Secs?|Sections?)\.? "
    rf"({NUMBER}(?:(?:,? and |, | to )(?:(?:Eq|Table|Fig|Sec)\. )?{NUMBER})*)"
)
ASKED = re.compile(rf"(?:([a-z]+)s?\.?[ -]?)?\(?({NUMBER})\)?", re.IGNORECASE)


@dataclass(frozen=True)
class Mention:
    """A place that names something numbered: what ``kind`` it is, its ``number``, the ``file`` from the installation's
    root on, the ``line``, the class or function around it (the "module" without one), and the text of the line.
    ``defines``: it stands in the docstring of a class or function, which is then what computes it."""

    kind: str
    number: str
    file: str
    line: int
    around: str
    text: str
    defines: bool


def where(asked: str) -> list[str]:
    """A line for each place, those that compute it first. ``asked``: a number, with its kind in front where one is
    meant: ``5.21``, ``"Eq. 5.21"``, ``table-5.2``. ``ValueError`` for what is no number, or is named nowhere."""
    match = ASKED.fullmatch(asked.strip())
    kind = kind_of(match[1]) if match and match[1] else None
    if match is None or (match[1] and kind is None):
        raise ValueError(f"{asked!r} is no number of the thesis; expected one such as 5.21, 'Eq. 5.21' or table-5.2")
    found = [m for m in mentions() if m.number == match[2] and kind in (None, m.kind)]
    if not found:
        there = sorted({m.number for m in mentions() if kind in (None, m.kind)}, key=natural)
        raise ValueError(f"nothing here is said to be {kind or 'number'} {match[2]}; there are {', '.join(there)}")
    found.sort(key=lambda m: (not m.defines, m.file.startswith("configs"), m.file, m.line))
    return [f"{m.file}:{m.line}  {m.kind} {m.number}, {m.around}: {m.text}" for m in found]


def kind_of(word: str) -> str | None:
    """The kind that a word such as "Eqs", "Table" or "alg" names; None for another one."""
    return next((kind for begin, kind in KINDS.items() if word.lower().startswith(begin)), None)


@cache
def mentions() -> tuple[Mention, ...]:
    """Every number that the package's code and the recipes name."""
    return tuple(everywhere())


def everywhere() -> Iterator[Mention]:
    """``mentions``, one after another."""
    root = installation.root()
    for file in sorted(installation.PACKAGE.rglob("*.py")):
        if file.name not in OWN:
            yield from in_code(file, str(file.relative_to(installation.PACKAGE.parent)))
    for file in sorted((root / "configs").rglob("*.yaml")):
        name = str(file.relative_to(root))
        yield from in_lines(file.read_text(encoding="utf-8").splitlines(), name, "recipe", 1)
        match = re.fullmatch(rf"(table|figure)-({NUMBER})(-pretext)?", file.stem)
        if match:
            yield Mention(match[1], match[2], name, 1, "recipe", f"sslmed reproduce {file.stem}", True)


def in_code(path: Path, name: str) -> Iterator[Mention]:
    """The mentions in a Python file."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    around, defining = ["module"] * (len(lines) + 1), [False] * (len(lines) + 1)
    for node in ast.walk(ast.parse(text)):  # breadth first: what is within comes after what is around it
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            for number in range(node.lineno, (node.end_lineno or node.lineno) + 1):
                around[number] = node.name
            first = node.body[0]
            if ast.get_docstring(node) is not None:
                for number in range(first.lineno, (first.end_lineno or first.lineno) + 1):
                    defining[number] = True
    for mention in in_lines(lines, name, "", 1):
        yield Mention(
            mention.kind, mention.number, name, mention.line, around[mention.line], mention.text, defining[mention.line]
        )


def in_lines(lines: list[str], name: str, around: str, first: int) -> Iterator[Mention]:
    """The mentions in single lines of text."""
    for line, text in enumerate(lines, first):
        for match in MENTION.finditer(text):
            kind = kind_of(match[1]) or ""
            shown = text.strip().lstrip("#").strip().strip('"').strip()
            for number in numbers(match[2]):
                yield Mention(kind, number, name, line, around, shown, False)


def numbers(words: str) -> Iterator[str]:
    """The numbers of "5.2, 5.8 and 6.1"; "7.2 to 7.5" has those between, too."""
    previous = ""
    for between, number in re.findall(rf"(\D*?)({NUMBER})", words):
        if " to " in between:
            chapter, low = previous.split(".")[0], int(previous.split(".")[1])
            yield from (f"{chapter}.{k}" for k in range(low + 1, int(number.split(".")[1])))
        yield number
        previous = number
