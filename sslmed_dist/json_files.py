"""The one reader of JSON files that a run folder holds: what is missing or of another type is named by file, line and
field, as ``ValueError``."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from sslmed_dist.registry import matches, readable

Fields = Mapping[str, Any]  # names of fields and their type hints
NONE: Fields = {}
LARGEST = 2**28  # bytes of one file with an object a line: two million lines of metrics
LARGEST_OBJECT = 2**25  # bytes of a file that is one object; as Python's it takes up to 20 times as much
MOST_LINES = 2**23
LONGEST_INTEGER = 18  # digits; longer ones are read as floats, which may be infinite


@dataclass(frozen=True)
class Lines:
    """The objects of a file with one a line, each with its line's number, and whether the last line was left out."""

    rows: list[tuple[int, dict[str, Any]]]
    torn: bool


def read_object(path: Path, required: Fields = NONE, optional: Fields = NONE) -> dict[str, Any]:
    """A file that holds one JSON object with these fields, and perhaps others, which are not looked at. Numbers that
    are not finite are refused."""
    require_ordinary(path, LARGEST_OBJECT)
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse, parse_int=integer)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from None
    return checked(value, str(path), required, optional)


def read_lines(path: Path, required: Fields = NONE, optional: Fields = NONE) -> Lines:
    """A file that grows by one JSON object a line, each with these fields. A last line that is no JSON is left out: the
    process was killed while it wrote, or is writing now."""
    require_ordinary(path, LARGEST)
    content = path.read_bytes()
    count = content.count(b"\n")
    if count > MOST_LINES:
        raise ValueError(f"{path}: {count:,} lines; allowed: {MOST_LINES:,}")
    lines = content.split(b"\n")
    while lines and not lines[-1].strip():
        lines.pop()
    rows: list[tuple[int, dict[str, Any]]] = []
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line.decode("utf-8"), parse_int=integer)
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                return Lines(rows, torn=True)
            raise ValueError(f"{path}:{number}: not valid JSON: {error}") from None
        rows.append((number, checked(value, f"{path}:{number}", required, optional)))
    return Lines(rows, torn=False)


def require_ordinary(path: Path, most: int) -> None:
    """``ValueError`` for a pipe or device, which would be waited for, and for more than ``most`` bytes."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: not a regular file")
    if path.exists() and path.stat().st_size > most:
        raise ValueError(f"{path}: {path.stat().st_size:,} bytes; at most {most:,} are read")


def checked(value: Any, where: str, required: Fields, optional: Fields = NONE) -> dict[str, Any]:
    """``value``, which must be a mapping with these fields. ``where`` begins the messages."""
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected an object, got {type(value).__name__}")
    absent = sorted(required.keys() - value.keys())
    if absent:
        raise ValueError(f"{where}: has no {', '.join(absent)}")
    for name, hint in (*required.items(), *optional.items()):
        # A diverged run has metrics that are not finite: that is for the reader of the file to say.
        if name in value and not matches(0.0 if isinstance(value[name], float) else value[name], hint):
            raise ValueError(f"{where}: {name}: expected {readable(hint)}, got {brief(value[name])}")
    return value


def brief(value: Any) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def refuse(constant: str) -> NoReturn:
    """NaN and Infinity are no JSON."""
    raise ValueError(f"{constant} is not a number of JSON")


def integer(digits: str) -> int | float:
    """An integer, unless it is so long that arithmetic with floats would overflow."""
    return int(digits) if len(digits) <= LONGEST_INTEGER else float(digits)
