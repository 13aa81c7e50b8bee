"""One process at a time in a folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sslmed_dist.atomic_files import open_itself


@contextmanager
def alone(folder: Path, what: str, wait: bool = False) -> Iterator[int]:
    """A lock on ``folder`` as long as the block lasts. ``ValueError`` where another process, ``what``, has it, unless
    this one is to ``wait`` for its end. It ends with its process, however that ends. The block gets the descriptor of
    the lock's file."""
    handle = open_itself(folder / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(handle)
        raise ValueError(f"{folder}: {what} runs here already") from None
    try:
        yield handle
    finally:
        os.close(handle)


@contextmanager
def alone_in_output(folder: Path, what: str) -> Iterator[None]:
    """``alone`` in a folder of results, which is made where it is missing. The lock's file goes with the lock, and so
    does the folder if it was made here and nothing has been written into it."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    try:
        while True:
            with alone(folder, what) as handle:
                if not (path.exists() and os.path.samestat(os.fstat(handle), path.stat())):
                    continue  # who held it before has removed the file since it was opened: it locks nothing any more
                try:
                    yield
                    return
                finally:
                    path.unlink(missing_ok=True)
    finally:
        with suppress(OSError):  # one that is not empty stays, and those above it
            for place in made:
                place.rmdir()


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
