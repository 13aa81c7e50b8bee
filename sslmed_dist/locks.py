"""One process at a time in a folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sslmed_dist.atomic_files import open_itself


@contextmanager
def alone(folder: Path, what: str, wait: bool = False) -> Iterator[None]:
    """A lock on ``folder`` as long as the block lasts. ``ValueError`` where another process, ``what``, has it, unless
    this one is to ``wait`` for its end. It ends with its process, however that ends."""
    handle = open_itself(folder / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(handle)
        raise ValueError(f"{folder}: {what} runs here already") from None
    try:
        yield
    finally:
        os.close(handle)


def held(folder: Path) -> bool:
    """Whether a process holds the lock of ``folder``."""
    path = folder / ".lock"
    if not path.exists():
        return False
    handle = open_itself(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False
