"""``sslmed list recipes``: what comes with the program, and the text of one recipe."""

import re
from pathlib import Path

from sslmed_dist import installation
from sslmed_dist.verbs.reproduce import read_table


def listing() -> list[str]:
    """A line for each recipe, with its family and its subject; then the tables."""
    found = installation.recipes().values()
    names = [f"{path.parent.name}/{path.stem}" for path in found]
    width = max(map(len, names))
    lines = [f"{name:{width}}  {subject(path)}" for name, path in zip(names, found, strict=True)]
    return [*lines, f"tables (sslmed reproduce TABLE --dry-run): {', '.join(read_table.shipped())}"]


def text(path: Path) -> str:
    """The recipe as it is written, to be kept and changed."""
    return path.read_text(encoding="utf-8")


def header(path: Path) -> str:
    """The comment at a recipe's top as one text, commands left out."""
    lines = []
    for line in text(path).splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("#  "):
            lines.append(line.removeprefix("#").strip())
    return " ".join(lines)


def sentences(words: str) -> list[str]:
    """The sentences of a header: a full stop and a capital end one, an abbreviation's or a number's does not."""
    return [
        part.strip()
        for part in re.split(r"(?<=[.):])\s+(?=[A-Z])(?<!al\. )(?<!Sec\. )(?<!Eq\. )", words)
        if part.strip()
    ]


def subject(path: Path) -> str:
    """What a recipe is for: the first sentence of its header, up to what it shares with another recipe."""
    return re.split(r": as ", sentences(header(path))[0].rstrip(":."))[0]
