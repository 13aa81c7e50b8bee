"""``docs/methods.md``: every method that a recipe can name, with its paper, its row of the thesis, recipes and figures.

``python -m tests.methods_page`` writes it anew; ``test_docs.py`` says when that is due. Nothing is written here by
hand: names come from the registries, papers from docstrings, rows and published figures from the tables, recipes from
what they name, our figures from ``docs/measured.md`` and the recipes' headers.
"""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslmed_dist import config, installation
from sslmed_dist.losses import LOSSES, TEMPERATURES
from sslmed_dist.methods import METHODS
from sslmed_dist.models import ENCODERS, PROTOTYPE_HEADS, SLICE_HEADS
from sslmed_dist.verbs.catalogue import described
from sslmed_dist.verbs.recipes import header
from sslmed_dist.verbs.reproduce import read_table
from sslmed_dist.verbs.reproduce.table import Table
from sslmed_dist.verbs.where import MENTION
from tests.configs_page import said

DOCS = Path(__file__).parents[1] / "docs"
PAGE, MEASURED = DOCS / "methods.md", DOCS / "measured.md"
HEAD = """# Methods

Every method that a recipe can name (`method.name`), and with it the loss, head or encoder that makes it what it is.
`sslmed list methods NAME`, `sslmed list losses NAME` and `sslmed list prototype_heads NAME` show one whole: signature,
equation, source. *Published* is the first figure of that row in the first table that has one; tables that the thesis
quotes from others say so themselves. *Measured* is ours, at other and much smaller settings: see
[measured.md](measured.md) for which, with intervals and floors, and never set it against a published figure. "not run"
is said where we have none. Figures with CoWPro's head are from before a correction that measured.md names. This page is
generated: `python -m tests.methods_page`.

| method | with | paper | thesis | recipes | published | measured |
| --- | --- | --- | --- | --- | --- | --- |
"""
AUTHORS = re.compile(r"\b(?:Guha )?[A-Z][a-z][\w-]+(?: et al\.| and (?:van der )?[A-Z]\w+)? (?:19|20)\d\d\b")
OWN = re.compile(rf"\b[Tt]hesis(?:,|'s)? (?P<what>(?:[Cc]hapter|section) [3-8](?:\.\d+)*|{MENTION.pattern})")
LOOSE = re.compile(rf"\b[Tt]hesis\b.*?(?P<what>{MENTION.pattern})")
# A method is made what it is by one of its parts: the key of its leaf, and the table of what may stand there.
PARTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "contrastive": ("loss", LOSSES),
    "cowpro": ("head", PROTOTYPE_HEADS),
    "diagnose": ("head", SLICE_HEADS),
    "jigsaw": ("encoder", {name: ENCODERS[name] for name in ("sslacl", "skid")}),
}


@dataclass(frozen=True)
class Line:
    """One method: the ``method`` and ``part`` that recipes name, and what computes it."""

    method: str
    part: str
    constructor: Any

    @property
    def key(self) -> tuple[str, str]:
        """What ``key_of`` says of a recipe that uses it."""
        return self.method, self.part


def lines() -> Iterator[Line]:
    """Every method, with each of its parts where it has ``PARTS``; NT-Xent with each temperature."""
    for method, constructor in METHODS.items():
        if method not in PARTS:
            yield Line(method, "", constructor)
            continue
        key, table = PARTS[method]
        for name, entry in table.items():
            # an encoder of jigsaw is not where its task is written
            yield Line(method, name, constructor if key == "encoder" else entry)
        if key == "loss":
            yield from (Line(method, f"nt_xent at {t}", TEMPERATURES[t]) for t in TEMPERATURES if t != "constant")
        if method == "jigsaw":
            yield Line(method, "streams: single", constructor)


def key_of(leaf: Mapping[str, Any]) -> tuple[str, str]:
    """The key of the line that a recipe's ``method`` leaf belongs to."""
    method = str(leaf["name"])
    if method == "jigsaw" and leaf.get("streams") == "single":
        return method, "streams: single"
    if method not in PARTS:
        return method, ""
    key, _ = PARTS[method]
    default = inspect.signature(METHODS[method]).parameters[key].default
    part = leaf.get(key, default)
    name = part if isinstance(part, str) else str(part["name"])
    temperature = part.get("temperature") if isinstance(part, Mapping) else None
    if isinstance(temperature, Mapping) and temperature["name"] != "constant":
        name += f" at {temperature['name']}"
    return method, name


def paper(line: Line) -> str:
    """The paper that the docstring names, else what of the thesis; else those of its module's docstring."""
    own, module = (" ".join((text or "").split()) for text in (described(line.constructor), module_doc(line)))
    for text, pattern in ((own, AUTHORS), (own, OWN), (module, AUTHORS), (own, LOOSE), (module, OWN)):
        match = pattern.search(text)
        if match:
            return match[0] if pattern is AUTHORS else f"the thesis, {match['what']}"
    return "none named"


def module_doc(line: Line) -> str | None:
    """The docstring of the module that computes a line."""
    return inspect.getdoc(inspect.getmodule(line.constructor))


def cells() -> Iterator[tuple[Table, str, tuple[str, str]]]:
    """(table, row, key) of all shipped tables, figures last; a row's method is that of its first column."""
    for folder in installation.TABLES:
        tables = (read_table.load(path) for path in (DOCS.parent / "configs" / folder).glob("*.yaml"))
        for table in sorted(tables, key=lambda t: (t.name.startswith("figure"), read_table.natural(t.name))):
            for row in table.rows:
                yield table, row, key_of(table.settings(row, next(iter(table.columns))).method)


def published(table: Table, row: str) -> str:
    """The first published figure of a row; empty where it has none."""
    for (name, column, metric), values in table.published.items():
        if name == row and values:
            return f"{values[0]:g} ({table.name}, {column}, {metric})"
    return ""


def measured(table: Table, row: str) -> str:
    """The mean of a row, else its first figure, in the section of ``docs/measured.md`` that names the table."""
    text = MEASURED.read_text(encoding="utf-8")
    section = next((part for part in text.split("\n## ") if f"configs/tables/{table.path.name}" in part), "")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    for number, words in enumerate(rows):
        if re.split(r" \(|, ", words[0])[0] == row and len(words) > 1:
            head = next(rows[k - 1] for k in range(number, -1, -1) if set(rows[k][0]) == {"-"})
            column = head.index("mean") if "mean" in head else 1
            return f"{row} {words[column]} ({head[0]}: {head[column]}; `{table.path.name}`)"
    return ""


def short(words: Sequence[str], most: int = 4) -> str:
    """A list of at most ``most``; how many more there are."""
    shown = ", ".join(words[:most])
    return f"{shown} and {len(words) - most} more" if len(words) > most else shown


def page() -> str:
    """The whole page."""
    rows = list(cells())
    recipes = {name: key_of(config.read(path)["method"]) for name, path in installation.recipes().items()}
    return HEAD + "".join(f"| {' | '.join(row_of(line, rows, recipes))} |\n" for line in lines())


def row_of(
    line: Line, rows: Sequence[tuple[Table, str, tuple[str, str]]], recipes: Mapping[str, tuple[str, str]]
) -> list[str]:
    """The cells of one line."""
    own = [(table, row) for table, row, key in rows if key == line.key]
    thesis = [(table, row) for table, row in own if table.path.parent.name == "thesis"]
    used = [name for name, key in recipes.items() if key == line.key]
    figures = [figure for table, row in thesis if (figure := published(table, row))]
    ours = [figure for table, row in own if (figure := measured(table, row))]
    paths = installation.recipes()
    for name in used if not ours else ():
        words = header(paths[name])
        text = said(words, r"Measured:?")
        ours += [f"{'phantoms: ' * ('hantom' in words)}{text} (`{name}`)"] if text else []
    by_table: dict[str, list[str]] = {}
    for table, row in thesis:
        by_table.setdefault(table.name.removeprefix("table-"), []).append(row)
    named = [f"{number} {short(found, 2)}" for number, found in by_table.items()]
    return [
        f"`{line.method}`",
        f"`{line.part}`" if line.part else "",
        paper(line),
        short(named) or "not in it",
        short([f"`{name}`" for name in used]) or "none",
        figures[0] if figures else "none",
        "; ".join(ours) or "not run",
    ]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(DOCS.parent)}")
