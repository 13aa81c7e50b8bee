"""What a command line prints, and the words ``KEY=VALUE`` that it is given."""

from collections.abc import Sequence

from sslmed_dist.endings import USER_ERROR
from sslmed_dist.printable import printable, speaks


def show(*lines: object) -> None:
    """The answer, one line each on stdout, by the process that ``speaks``. What they name may hold control characters,
    which are escaped."""
    for line in lines if speaks() else ():
        print(printable(str(line)))


def found(lines: Sequence[str], problems: Sequence[str]) -> int:
    """Print what an inspection says. Returns the exit code, which is that of a mistake where there are problems."""
    show(*lines, *(f"problem: {problem}" for problem in problems))
    return USER_ERROR if problems else 0


def options(words: Sequence[str]) -> dict[str, object]:
    """Words ``KEY=VALUE`` as one tree, the values read as YAML."""
    from sslmed_dist import config

    return config.overridden({}, words)
