"""Damaged files: whatever a parser raises becomes one line that names the file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MOST_WORDS = 200  # letters of a parser's own message


@contextmanager
def damage_named(path: str | Path, what: str) -> Iterator[None]:
    """A block that reads ``path``: every exception in it becomes a ``ValueError`` "PATH: WHAT: reason" in one line.

    A ``ValueError`` that begins with the path passes as it is. The block should hold the reading alone.
    """
    try:
        yield
    except Exception as error:  # parsers of damaged bytes raise what they like, MemoryError and TypeError included
        if isinstance(error, ValueError) and str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path}: {what}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """A parser's own message in one line, not too long; the name of the error where it has none."""
    return " ".join(str(error).split())[:MOST_WORDS] or type(error).__name__
