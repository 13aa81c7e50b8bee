"""The private folder of one start of a runtime, and what a launcher that was killed left of an earlier one.

A run folder may have been copied, or come from somebody else. So its note ``.runtime.json`` says only where the private
folder is. What may be ended and removed is read from the mark in the private folder itself, and only where that folder
lies in the place for temporary files, belongs to this user alone, and its mark names the very folder and the very run
(both by device and inode) that it was made for.
"""

import json
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from sslmed_dist.atomic_files import open_itself
from sslmed_dist.drivers.processes import Processes
from sslmed_dist.json_files import Fields, checked
from sslmed_dist.printable import say
from sslmed_dist.run_folder import write_json
from sslmed_dist.training.stopping import started_at

PREFIX, MARK, NOTE = "sslmed-flower-", "mark.json", ".runtime.json"
LONGEST_NOTE = 1 << 16  # bytes


@dataclass(frozen=True)
class Mark:
    """What a private folder says of itself. ``folder`` and ``run``: device and inode of this folder and of the run
    folder. ``token`` marks its processes, none of which began before ``since``."""

    token: str
    since: int
    folder: list[int]
    run: list[int]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The mark of ``folder``. ``ValueError`` for a folder that is not private or holds no mark."""
        if folder.parent != temporary() or not folder.name.startswith(PREFIX):
            raise ValueError(f"{folder}: no private folder in {temporary()}")
        state = folder.lstat()
        if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid() or state.st_mode & 0o077:
            raise ValueError(f"{folder}: not a folder of this user alone")
        types = {"token": str, "since": int, "folder": list, "run": list}
        tree = read_json(folder / MARK, types)
        if tree.keys() != types.keys() or not tree["token"]:
            raise ValueError(f"{folder / MARK}: not a mark")
        if tree["folder"] != identity(folder):
            raise ValueError(f"{folder / MARK}: the mark of another folder")
        return cls(**tree)


@contextmanager
def private_folder(run: Path) -> Iterator[tuple[Path, Processes]]:
    """A private folder for one start in the run folder ``run``, and its processes; on exit these are ended and it is
    removed. It is noted in the run folder first, so that a later start finds what a killed launcher left."""
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=temporary()))
    mark = Mark(uuid.uuid4().hex, started_at(os.getpid()) or 0, identity(folder), identity(run))
    processes = Processes(mark.token, mark.since)
    try:
        write_json(folder / MARK, asdict(mark))
        write_json(run / NOTE, {"folder": str(folder)})
        yield folder, processes
    finally:
        processes.stop()
        shutil.rmtree(folder, ignore_errors=True)
        (run / NOTE).unlink(missing_ok=True)


def clear_remains(run: Path) -> None:
    """End what a former start of the run in ``run`` left running, and remove its private folder and the note of it. A
    note of a start elsewhere goes, too, but nothing is ended or removed that it names, and a line says so.
    ``ValueError`` for what is no note of ours: it stays."""
    note = run / NOTE
    if not os.path.lexists(note):
        return
    try:
        folder = Path(read_json(note, {"folder": str})["folder"])
    except ValueError as error:
        raise ValueError(f"{note}: is not a note that this program wrote ({error}); move it away") from None
    try:
        if os.path.lexists(folder):
            mark = Mark.read(folder)
            if mark.run != identity(run):
                raise ValueError(f"{folder}: belongs to another run folder")
            Processes(mark.token, mark.since).stop()
            shutil.rmtree(folder, ignore_errors=True)
    except (ValueError, OSError) as error:
        say(f"{note}: not of a former start here, nothing was ended or removed but this note ({error})")
    note.unlink()


def read_json(path: Path, fields: Fields) -> dict[str, Any]:
    """The mapping in a small file of our own, with these fields. ``ValueError`` for a link, and for what is none."""
    with open(open_itself(path, os.O_RDONLY), "rb") as file:
        content = file.read(LONGEST_NOTE)
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError(f"{path}: not JSON") from None
    return checked(tree, str(path), fields)


def temporary() -> Path:
    """The place for temporary files, without links."""
    return Path(tempfile.gettempdir()).resolve()


def identity(folder: Path) -> list[int]:
    """Device and inode of a folder: what a copy of it does not have."""
    state = folder.stat()
    return [state.st_dev, state.st_ino]
