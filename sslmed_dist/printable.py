"""Text from files and folders in a form that is safe to print and to hand on."""

import html
import os
import re
import sys
import unicodedata
from collections.abc import Mapping
from typing import Any

HOMES = ("home", "Users")  # what lies in them is called like its owner


def printable(text: str) -> str:
    r"""``text`` without control characters: line breaks, terminal codes, marks that turn the direction of writing and
    bytes that are no UTF-8 stand as escapes (``\n``, ``\x1b``, ``\u202e``, ``\udc80``). All else stays as it is."""
    return "".join(letter if shows(letter) else letter.encode("unicode_escape").decode() for letter in text)


def speaks() -> bool:
    """Whether this process is the one of its group that speaks: rank 0 of those that torchrun started, or alone. What
    all of them would say is said once; an error is its process's own and is always said."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def say(line: str) -> None:
    """One line on standard error for the person who waits, by the process that ``speaks``."""
    if speaks():
        print(printable(line), file=sys.stderr, flush=True)


def note(line: str) -> None:
    """``say`` for what is worth knowing and no mistake."""
    say(f"note: {line}")


def said_lines(text: str, otherwise: str) -> list[str]:
    """The lines of ``text`` that say something, without the blanks around them; ``otherwise`` where none does. Of what
    another program says of its failure the last one mostly tells why."""
    return [line.strip() for line in text.splitlines() if line.strip()] or [otherwise]


def excerpt(text: str, most: int = 80) -> str:
    """``text`` as ``printable`` gives it, at most ``most`` letters of it: what a message quotes of a file."""
    return printable(text)[:most]


def shows(letter: str) -> bool:
    """Whether a character prints as itself; any kind of space does."""
    return letter.isprintable() or unicodedata.category(letter) == "Zs"


def as_html(text: str) -> str:
    """``text`` as content or attribute of an HTML page, in which it is nothing but text."""
    return html.escape(printable(text))


def as_markdown(text: str) -> str:
    """``text`` as part of a line or a table's cell of Markdown, in which it is nothing but text: no border of a cell,
    no HTML, no link, no emphasis by stars."""
    return re.sub(r"([\\|`*\[\]])", r"\\\1", html.escape(printable(text), quote=False))


def without_folders(value: Any) -> Any:
    """A configuration, or a value of it, as it may be handed on: of each path only the last part is left, since where a
    file lies is nobody's business but the site's. Of a home folder not even that, since it names its owner."""
    if isinstance(value, Mapping):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_folders(item) for item in value]
    if not isinstance(value, str) or not (re.search(r"[/\\]", value) or value.startswith("~")):
        return value
    *above, last = re.split(r"[/\\]+", value.rstrip("/\\"))
    is_home = last.startswith("~") or (above and above[-1] in HOMES)
    return "\N{HORIZONTAL ELLIPSIS}" if is_home else f"\N{HORIZONTAL ELLIPSIS}/{last}"


def duration(seconds: float) -> str:
    """A span in the unit that a person would use: ``40 s``, ``2.5 min``, ``12 min``, ``3.5 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 120 * 60:
        return f"{seconds / 60:.1f} min" if seconds < 600 else f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def plural(count: int, thing: str, things: str | None = None) -> str:
    """``1 step``, ``2 steps``: a number and what it counts. ``things``: of a word that takes no s."""
    return f"{count} {thing if count == 1 else things or f'{thing}s'}"
