"""Logs that do not grow for ever. Standard library only."""

import os
import shutil
from pathlib import Path

MOST_BYTES, KEPT = 10_000_000, 4


def keep_small(log: Path, most: int = MOST_BYTES, kept: int = KEPT) -> bool:
    """Where ``log`` has more than ``most`` bytes, let it begin anew and keep what it held as ``NAME.1``; what was
    ``NAME.1`` becomes ``NAME.2``, and of these ``kept`` stay. Returns whether it did.

    A program that has the log open to append goes on writing to it: the file is copied and emptied, not renamed. What
    such a program writes between the two is lost. Links are not followed.
    """
    if log.is_symlink() or not log.is_file() or log.stat().st_size <= most:
        return False
    names = [log.with_name(f"{log.name}.{number}") for number in range(kept, 0, -1)]
    for later, earlier in zip(names, names[1:], strict=False):
        if earlier.exists():
            os.replace(earlier, later)
    half = log.with_name(f"{log.name}.half")
    half.unlink(missing_ok=True)
    with log.open("rb") as source, os.fdopen(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as copy:
        shutil.copyfileobj(source, copy)
    os.replace(half, names[-1])
    os.truncate(log, 0)
    return True


def keep_all_small(folder: Path, most: int = MOST_BYTES, kept: int = KEPT) -> None:
    """``keep_small`` for every ``*.log`` in a folder, which need not be there."""
    for log in sorted(folder.glob("*.log")):
        keep_small(log, most, kept)
