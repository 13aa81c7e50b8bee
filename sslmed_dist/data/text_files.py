"""Reading text, tables and JSON that someone else wrote. Messages name the file and the line as an editor counts it."""

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sslmed_dist.data.damage import damage_named
from sslmed_dist.printable import excerpt

LARGEST = 2**28  # bytes of a text file; the lists of ImageNet's 1.3 million files take 0.1 GB
LARGEST_JSON = 2**25  # bytes of a JSON file; as Python's objects it takes up to 20 times as much
MOST_LINES = 2**22


def read_text(path: Path, most: int = LARGEST) -> str:
    """The text of a file, UTF-8. ``ValueError`` when it is missing, not text, above ``most`` bytes (256 MiB), or a pipe
    or device."""
    try:
        size = path.stat().st_size
        if not path.is_file() and not path.is_dir():  # a pipe would be waited for
            raise ValueError(f"{path}: not a regular file")
        if size > most:
            raise ValueError(f"{path}: {size:,} bytes, allowed for a text file: {most:,}")
        return path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file in UTF-8: {error}") from error
    except OSError as error:
        raise ValueError(f"{path}: not a text file: {error.strerror}") from error


def read_lines(path: Path) -> list[tuple[int, str]]:
    """(number from 1, line) of the lines that are not blank. ``ValueError`` as ``read_text``, and for more than
    ``MOST_LINES`` lines."""
    # only the ends of lines that an editor counts: str.splitlines also cuts at form feeds and the like
    text = read_text(path).replace("\r\n", "\n").replace("\r", "\n")
    count = text.count("\n")
    if count > MOST_LINES:
        raise ValueError(f"{path}: {count:,} lines; allowed: {MOST_LINES:,}")
    return [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


def read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """(number of its line, cells) of the rows of a CSV file that are not blank, without the spaces around cells.

    ``ValueError`` as ``read_text``, and for a row that is no CSV or goes over several lines.
    """
    rows = []
    for number, line in read_lines(path):
        try:
            parsed = list(csv.reader([line], strict=True))
        except csv.Error as error:
            raise ValueError(f"{path}: line {number}: not a row of a table: {error}") from error
        rows.append((number, [cell.strip() for cell in parsed[0]]))
    return rows


def read_table(path: Path, columns: Iterable[str]) -> list[tuple[int, dict[str, str]]]:
    """(number of its line, cells by column) of the rows below a CSV file's heading.

    ``ValueError`` as ``read_rows``, when one of ``columns`` is missing, a column stands in the heading twice, or a row
    has another number of cells than the heading.
    """
    rows = read_rows(path)
    if not rows:
        raise ValueError(f"{path}: is empty; expected the columns {', '.join(columns)}")
    heading = rows[0][1]
    for name in heading:
        if heading.count(name) > 1:
            raise ValueError(f"{path}: line {rows[0][0]}: the column {excerpt(name)!r} stands in it twice")
    absent = [name for name in columns if name not in heading]
    if absent:
        alone = len(heading) == 1 and any(mark in heading[0] for mark in ";\t|")
        hint = "; allowed: commas between columns" if alone else ""
        raise ValueError(f"{path}: no column {absent[0]!r}; it has {excerpt(', '.join(heading), 200)}{hint}")
    for number, cells in rows[1:]:
        if len(cells) != len(heading):
            raise ValueError(f"{path}: line {number}: {len(cells)} cells, {len(heading)} columns in the heading")
    return [(number, dict(zip(heading, cells, strict=True))) for number, cells in rows[1:]]


def read_json(path: Path) -> Any:
    """The content of a JSON file. ``ValueError`` as ``read_text``, when it is no JSON, or names a key twice."""
    return parse_json(read_text(path, LARGEST_JSON), path)


def parse_json(text: str, path: str | Path) -> Any:
    """The content of JSON ``text`` out of the file ``path``. ``ValueError`` as ``read_json``."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table: dict[str, Any] = {}
        for key, value in pairs:
            add_once(table, key, value, str(path))
        return table

    with damage_named(path, "not JSON"):
        try:
            return json.loads(text, object_pairs_hook=once)
        except RecursionError:
            raise ValueError(f"{path}: not JSON that can be read: nested too deeply") from None


def add_once(table: dict[Any, Any], key: Any, value: Any, where: str) -> None:
    """Put a value into ``table``. ``ValueError`` beginning with ``where`` for a key that stands there already."""
    if key in table:
        raise ValueError(f"{where}: {excerpt(str(key))!r} stands in it twice")
    table[key] = value


def whole_number(text: str, where: str, what: str, most: int = 10**9) -> int:
    """The number that ``text`` writes in the digits 0 to 9. ``ValueError`` for anything else, or one above ``most``."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 18 and int(text) <= most):
        raise ValueError(f"{where}: {excerpt(text)!r} is no {what}; allowed: 0 to {most:,}")
    return int(text)


def field(table: Any, name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """The entry ``name`` of a mapping read from a file. ``ValueError`` when it is missing or not of the type ``kind``;
    true and false are no numbers."""
    value = table.get(name) if isinstance(table, Mapping) else None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        expected = " or ".join(each.__name__ for each in kinds)
        raise ValueError(f"{where}: {name}: expected {expected}, got {excerpt(repr(value))}")
    return value
