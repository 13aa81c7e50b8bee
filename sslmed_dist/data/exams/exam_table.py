"""The table of a set of examinations: a CSV file with a row for each, its labels, and what else is known of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sslmed_dist.data.dataset import SPLITS
from sslmed_dist.data.text_files import add_once, read_table
from sslmed_dist.printable import excerpt

KNOWN = ("exam", "patient", "site", "scanner", "laterality", "split", "source")  # every other column is a label
VALUES = {"0": 0.0, "1": 1.0, "": math.nan}
SIDES = {"left": "left", "l": "left", "right": "right", "r": "right", "": ""}
EXPERT = "expert"  # of the column ``source``


@dataclass(frozen=True)
class Row:
    """What the table says of an examination; texts are "" and labels NaN where it says nothing."""

    exam: str
    labels: tuple[float, ...]
    patient: str = ""
    site: str = ""
    scanner: str = ""
    laterality: str = ""
    split: str = ""
    source: str = ""


@dataclass(frozen=True)
class Table:
    """``labels`` are the names of the label columns, ``columns`` those of all; ``rows`` are sorted by exam."""

    labels: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def read_exam_table(path: Path) -> Table:
    """The table in ``path``: the column ``exam`` (a folder below the root, or a StudyInstanceUID), those of ``KNOWN``
    that are there, and one column a label, which holds 0, 1 or nothing.

    ``ValueError`` naming the file and the line: no column ``exam``, no row, an exam that stands in it twice or is
    empty, a label, side or split that is none, a split for some rows only, a patient in two splits.
    """
    found = read_table(path, ("exam",))
    if not found:
        raise ValueError(f"{path}: has a heading and no row")
    columns = tuple(found[0][1])
    labels = tuple(name for name in columns if name not in KNOWN)
    if "" in labels:
        raise ValueError(f"{path}: line 1: a column without a name")
    rows: dict[str, Row] = {}
    for line, cells in found:
        where = f"{path}: line {line}"
        row = read_row(cells, labels, where)
        add_once(rows, row.exam, row, where)
        if "split" in columns and not row.split:
            raise ValueError(f"{where}: no split; allowed: {', '.join(SPLITS)} in every row, or no column split")
    ordered = tuple(rows[exam] for exam in sorted(rows))
    require_whole_patients(ordered, path)
    return Table(labels, columns, ordered)


def read_row(cells: dict[str, str], labels: Sequence[str], where: str) -> Row:
    """One row. ``ValueError`` beginning with ``where`` as ``read_exam_table``."""
    known = {name: cells.get(name, "") for name in KNOWN}
    if not known["exam"]:
        raise ValueError(f"{where}: no exam")
    side = known["laterality"].lower()
    if side not in SIDES:
        raise ValueError(f"{where}: laterality {excerpt(known['laterality'])!r}; allowed: left, right, L, R or nothing")
    if known["split"] not in ("", *SPLITS):
        raise ValueError(f"{where}: split {excerpt(known['split'])!r}; allowed: {', '.join(SPLITS)}")
    for name in labels:
        if cells[name] not in VALUES:
            known_names = ", ".join(KNOWN)
            raise ValueError(
                f"{where}: {excerpt(name)} is {excerpt(cells[name])!r}; a column that is none of {known_names} is a "
                "label: allowed: 0, 1 or nothing"
            )
    return Row(labels=tuple(VALUES[cells[name]] for name in labels), **(known | {"laterality": SIDES[side]}))


def require_whole_patients(rows: Sequence[Row], path: Path) -> None:
    """``ValueError`` for a patient of the table whose exams are in two splits."""
    split_of: dict[str, Row] = {}
    for row in rows:
        if not row.patient or not row.split:
            continue
        first = split_of.setdefault(row.patient, row)
        if first.split != row.split:
            raise ValueError(
                f"{path}: {excerpt(first.exam)} and {excerpt(row.exam)} are of one patient and in two splits "
                f"({first.split}, {row.split})"
            )
