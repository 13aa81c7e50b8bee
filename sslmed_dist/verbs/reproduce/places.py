"""Paths in a table that is handed on: as seen from the table's folder, or only their last name."""

import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from sslmed_dist import config, plain_yaml
from sslmed_dist.printable import without_folders
from sslmed_dist.verbs.reproduce.cell import Cell
from sslmed_dist.verbs.reproduce.published import Outcome


def seen_from(folder: Path, outcome: Outcome, cells: Iterable[Cell]) -> Outcome:
    """The outcome without the paths of this machine, as it goes into ``folder``, which lies beside those of other
    tables: what lies in one of these is given as seen from ``folder``, of any other path only the last name is left.
    ``cells`` have the paths that states, errors and overrides may name."""
    known = {path for cell in cells for path in paths_of(cell)}

    def shown(text: str) -> str:
        return with_short(text, {path: short(path, folder) for path in known})

    def override(text: str) -> str:
        key, _, value = shown(text).partition("=")
        plain = plain_yaml.parse(value)
        if plain == without_folders(plain) or value.startswith(".."):
            return f"{key}={value}"
        hidden = without_folders(plain)
        return f"{key}={hidden if isinstance(hidden, str) else plain_yaml.write(hidden).strip()}"

    lines = [replace(line, state=shown(line.state)) for line in outcome.lines]
    changing = [override(text) if text in outcome.overrides else shown(text) for text in outcome.changing]
    return replace(outcome, lines=lines, overrides=[override(text) for text in outcome.overrides], changing=changing)


def paths_of(cell: Cell) -> set[str]:
    """Every path that the cell's settings name, and its run folder, as they were written."""
    return {*config.paths(config.to_tree(cell.settings)).values(), str(cell.settings.folder)}


def short(path: str, folder: Path) -> str:
    """``../table-5.2/SimCLR/cifar10/seed-0``, or ``…/cifar10`` of a path that lies elsewhere."""
    absolute, tables = Path(path).expanduser().absolute(), folder.absolute().parent
    inside = absolute == tables or tables in absolute.parents
    return os.path.relpath(absolute, folder.absolute()) if inside else str(without_folders(str(absolute)))


def with_short(text: str, names: dict[str, str]) -> str:
    """``text`` with each path in it replaced by its short name; the longest path counts where one begins another."""
    if not names:
        return text
    longest_first = sorted(names, key=len, reverse=True)
    pattern = "|".join(map(re.escape, longest_first))
    return re.sub(rf"(?<![\w/.~-])(?:{pattern})(?![\w-])", lambda found: names[found[0]], text)
