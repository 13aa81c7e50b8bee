"""The one reader of JSON files that a run folder holds: what is missing or of another type is named by file, line and
field, as ``ValueError``."""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from sslmed_dist.registry import matches, readable, usual

Fields = Mapping[str, Any]  # names of fields and their type hints
NONE: Fields = {}
# The keys that a line of ``metrics.jsonl`` may have beside its name and value.
METRIC_KEYS: Fields = {
    "time": float,
    **dict.fromkeys(("step", "epoch", "round"), int | None),
    **dict.fromkeys(("site", "split", "arm"), str | None),
}
LARGEST_OBJECT = 2**25  # bytes of a file that is one object; as Python's it takes up to 20 times as much
LONGEST_LINE = 2**20  # bytes
# Of each type a value that no list of allowed values has, so that it stands for all.
ANY: Mapping[type, Any] = {str: "\0", float: 0.5, int: 2**52 + 1, type(None): None}
LONGEST_INTEGER = 18  # digits; longer ones are read as floats, which may be infinite


def read_object(path: Path, required: Fields = NONE, optional: Fields = NONE) -> dict[str, Any]:
    """A file that holds one JSON object with these fields, and perhaps others, which are not looked at. Numbers that
    are not finite are refused."""
    require_ordinary(path, LARGEST_OBJECT)
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse, parse_int=integer)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from None
    return checked(value, str(path), required, optional)


class Lines:
    """A file that grows by one JSON object a line, each with these fields: ``for number, object in Lines(...)``. It is
    read as it is asked for, since it may be long.

    A last line that is no JSON is left out: the process was killed while it wrote, or is writing now. ``torn`` says
    whether there was one, once all were read. ``ValueError`` names any other line that is none, or lacks a field.
    """

    def __init__(self, path: Path, required: Fields = NONE, optional: Fields = NONE) -> None:
        require_ordinary(path, largest=None)
        self.path, self.required, self.optional, self.torn = path, required, optional, False

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        self.torn = False
        with self.path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), 1):
                try:
                    value = LINE.decode(line.decode("utf-8"))
                except (ValueError, RecursionError) as error:
                    if any(map(bytes.strip, file)):  # it is not the last
                        raise ValueError(f"{self.path}:{number}: not valid JSON: {error}") from None
                    self.torn = bool(line.strip())
                    return
                yield number, checked(value, f"{self.path}:{number}", self.required, self.optional)


def require_ordinary(path: Path, largest: int | None) -> None:
    """``ValueError`` for a pipe or device, which would be waited for, and for more than ``largest`` bytes."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: not a regular file")
    if largest is not None and path.exists() and path.stat().st_size > largest:
        raise ValueError(f"{path}: {path.stat().st_size:,} bytes; at most {largest:,} are read")


def checked(value: Any, where: str, required: Fields, optional: Fields = NONE) -> dict[str, Any]:
    """``value``, which must be a mapping with these fields. ``where`` begins the messages."""
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected an object, got {type(value).__name__}")
    absent = sorted(required.keys() - value.keys())
    if absent:
        raise ValueError(f"{where}: has no {', '.join(absent)}")
    for fields in (required, optional):
        for name, hint in fields.items():
            if name in value and not fits(value[name], hint):
                raise ValueError(f"{where}: {name}: expected {readable(hint)}, got {brief(value[name])}")
    return value


def fits(value: Any, hint: Any) -> bool:
    """``registry.matches``, but for floats that are not finite: a diverged run has them, and they are for the reader of
    the file to say."""
    kind: Any = type(value)
    if kind in ANY and (kind is not int or usual(value)) and of_kind(kind, hint):
        return True  # as it is for most fields of millions of lines
    return matches(ANY[float] if kind is float else value, hint)


@cache
def of_kind(kind: type, hint: Any) -> bool:
    """Whether a hint takes what stands for any value of a type."""
    return matches(ANY[kind], hint)


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


LINE = json.JSONDecoder(parse_int=integer)  # of one line, made once
