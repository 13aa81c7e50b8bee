"""The blocks of code of a Markdown page, with the mark above each: ``<!-- run -->``, ``<!-- not run: REASON -->``, ...

A block is indented by four blanks or more after an empty line, or stands between fences. A mark is a comment on the
lines above it; an empty line may stand between.
"""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

MARK = re.compile(r"<!--\s*(.*?)\s*-->", re.DOTALL)
PAGE_MARK = re.compile(r"<!--\s*commands of this page are not run:\s*(\S.*?)\s*-->", re.DOTALL)
COMMANDS = "sslmed make pip python python3 ray torchrun sbatch kubectl docker systemctl systemd-run git npm mkdocs $"
COMMANDS += " cat cp mkdir apt-get apt curl ssh srun mlflow tensorboard"


@dataclass(frozen=True)
class Block:
    """A block of code: of which ``page``, its first ``line``, its ``text`` without indentation, and its ``mark``."""

    page: Path
    line: int
    text: str
    mark: str

    @property
    def is_command(self) -> bool:
        """Whether a line of it begins with a command of ``COMMANDS``."""
        return any(line.split()[:1] and line.split()[0] in COMMANDS.split() for line in self.text.splitlines())


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page, in their order."""
    lines = page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        fenced = lines[number].lstrip().startswith("```")
        opens = lines[number].startswith("    ") and (number == 0 or not lines[number - 1].strip())
        opens &= not lines[number].lstrip().startswith("<!--")  # a mark in a list
        if not (fenced or (opens and lines[number].strip())):
            number += 1
            continue
        first = number
        if fenced:
            number += 1
            while not lines[number].lstrip().startswith("```"):
                number += 1
            inside, number = lines[first + 1 : number], number + 1
        else:
            indent = lines[first][: len(lines[first]) - len(lines[first].lstrip())]
            while number < len(lines) and (lines[number].startswith(indent) or not lines[number].strip()):
                number += 1
            inside = lines[first:number]
        yield Block(page, first + 1, textwrap.dedent("\n".join(inside)).strip("\n"), mark_above(lines, first))


def commands(page: Path) -> list[Block]:
    """The blocks of a page that hold commands. Without a mark of its own a block has that of its page, where there is
    one: ``<!-- commands of this page are not run: REASON -->``."""
    whole = PAGE_MARK.search(page.read_text(encoding="utf-8"))
    mark = f"not run: {' '.join(whole[1].split())}" if whole else ""
    return [replace(block, mark=block.mark or mark) for block in blocks(page) if block.is_command]


def joined(block: Block) -> list[str]:
    """The lines of a block, those that end in a backslash joined with the next."""
    return block.text.replace("\\\n", " ").splitlines()


def mark_above(lines: list[str], first: int) -> str:
    """The words of the comment that ends on the last line with text above ``first``; "" where none does."""
    above = "\n".join(lines[:first]).rstrip()
    if not above.endswith("-->"):
        return ""
    match = MARK.fullmatch(above[above.rindex("<!--") :])
    return " ".join(match[1].split()) if match else ""
