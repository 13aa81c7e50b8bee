"""Files and folders that are there as a whole or not at all."""

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is either there as a whole or not at all."""
    unfinished = hidden(path)
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            settle(file)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def hidden(path: Path) -> Path:
    """The temporary name of a file: of this process and thread alone (sites of a simulated federation are threads)."""
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")


def settle(file: Any) -> None:
    """Force an open file to the disk."""
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """A temporary folder beside ``target`` that becomes ``target`` (absent or empty) when the block ends well, and is
    removed when not. A killed process leaves only the hidden temporary folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield unfinished
        unfinished.chmod(0o755)
        os.replace(unfinished, target)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
