"""Files and folders that are there as a whole or not at all. The only place that writes whole ones.

One rule for all: what is written has a hidden temporary name beside its place, which no other process or thread uses;
its bytes are forced to the disk; it is renamed; and the folder's new entry is forced to the disk. A reader, or a crash
at any moment, sees the old content or the new one and nothing between.

Files that grow (metrics, logs) and locks are opened here too, never through a link: a run folder may come from
elsewhere, and a link in it would make us write to, empty or delete what lies outside. A hard link is one, too.
"""

import csv
import hashlib
import io
import itertools
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import BufferedRandom, TextIOWrapper
from pathlib import Path
from typing import IO, Any

LINK = "is a link; in a run folder nothing is written or deleted through one"
HARD_LINK = "is a hard link: what is appended to it would stand elsewhere, too; put a copy in its place"
GROWING = (".log", ".lock")  # endings of files that are opened as they are; all others are replaced as a whole
ENDING = ".tmp"  # of every temporary name, so that what a killed process left can be found
UNFINISHED = re.compile(r"\..+\.\d+-\d+\.tmp")  # such a name as a whole: of the file, the process and a number
NUMBERS = itertools.count()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file, and the folders above it where they are missing. ``ValueError`` naming it when that fails."""
    with writing(path) as file:
        file.write(content)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Write ``rows`` as CSV under their column names, as a whole; what a row lacks, or does not know, is empty.
    ``columns``: which, in what order; default: all keys that occur, in the order of their first use."""
    stream = io.StringIO()
    names = list(dict.fromkeys(key for row in rows for key in row)) if columns is None else columns
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, stream.getvalue().encode())


def write_private(path: Path, content: bytes) -> None:
    """Write a new file that this user alone may read, such as a key, and the folders above it (0700) where they are
    missing. ``ValueError`` where something is in its place: a key is never written over."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise ValueError(f"{path}: exists; a key is never written over, since others know it") from None
    except OSError as error:
        raise ValueError(f"{path}: could not be written: {error.strerror or error}") from None
    try:
        with open(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)
        raise ValueError(f"{path}: could not be written: {error.strerror or error}") from None
    sync_folder(path.parent)


def read_private(path: Path, most: int) -> bytes:
    """The content of a file that ``write_private`` wrote, of at most ``most`` bytes. ``ValueError`` where there is no
    such file, or other users may read it."""
    with open(open_itself(path, os.O_RDONLY), "rb") as file:
        if os.fstat(file.fileno()).st_mode & 0o077:
            raise ValueError(f"{path}: other users may read the key; chmod 600, and make a new one if they have")
        return file.read(most)


@contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """An open file that becomes ``path`` when the block ends well, and is removed when not. ``ValueError`` naming
    ``path`` when it cannot be written."""
    unfinished = path.with_name(f".{path.name[:64]}.{os.getpid()}-{next(NUMBERS)}{ENDING}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        sync_folder(path.parent)
    except OSError as error:
        raise ValueError(f"{path}: could not be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # where the folder itself is none, there is nothing to remove
            unfinished.unlink(missing_ok=True)


@contextmanager
def continuing(path: Path, from_start: bool = False) -> Iterator[tuple[BufferedRandom, Callable[[], None]]]:
    """(an open file that holds what an interrupted block wrote of ``path``, a function). The file becomes ``path`` when
    the block calls the function and ends well; otherwise what was written stays, for the next block to go on with.
    ``from_start``: nothing of it is kept. The caller holds a lock: the file's name, ``.NAME.part``, is always the same.
    ``ValueError`` naming ``path`` when it cannot be written."""
    unfinished, done = path.with_name(f".{path.name}.part"), []
    flags = os.O_RDWR | os.O_CREAT | (os.O_TRUNC if from_start else 0)
    try:
        with open(open_itself(unfinished, flags), "r+b") as file:
            yield file, lambda: done.append(True)
            file.flush()
            os.fsync(file.fileno())
        if done:
            os.replace(unfinished, path)
            sync_folder(path.parent)
    except OSError as error:
        raise ValueError(f"{path}: could not be written: {error.strerror or error}") from error


@contextmanager
def all_or_none(*files: Path) -> Iterator[None]:
    """Files that belong together and are made in the block, each as a whole: when the block ends in an error, those go
    that were not there before it. So what has failed can be tried again, and finds no half of itself in its way."""
    new = [path for path in files if not path.exists()]
    try:
        yield
    except BaseException:
        for path in new:
            with suppress(OSError):
                path.unlink(missing_ok=True)
        raise


@contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """A temporary folder beside ``target`` that becomes ``target`` (absent or empty) when the block ends well, and is
    removed when not. A killed process leaves only the hidden temporary folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield unfinished
        unfinished.chmod(0o755)
        sync_below(unfinished)
        os.replace(unfinished, target)
        sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


@contextmanager
def arriving(folder: Path, name: str, *, last: str) -> Iterator[Path]:
    """A temporary folder in ``folder``, called after ``name``, whose files move to ``folder`` when the block ends well:
    in the order of their names, but those that end in ``last`` come last, so where these are, the others are. When the
    block ends in an error none of them stays. ``ValueError`` naming what cannot be written."""
    unfinished = folder / f".{name[:64]}.{os.getpid()}-{next(NUMBERS)}{ENDING}"
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        sync_below(unfinished)
        for path in sorted(unfinished.iterdir(), key=lambda path: (path.name.endswith(last), path.name)):
            os.replace(path, folder / path.name)
        sync_folder(folder)
    except OSError as error:
        raise ValueError(f"{error.filename or folder}: could not be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def refuse_links(folder: Path) -> None:
    """``ValueError`` that names the first link below ``folder``, at any depth; of hard links only one of a file that
    grows, since all others are replaced or deleted as this one name. ``folder`` itself may be a link: a person may keep
    runs on another disk. A folder that is not there holds none."""
    places = [folder] if folder.is_dir() else []
    while places:
        with os.scandir(places.pop()) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.is_symlink():
                    raise ValueError(f"{entry.path}: {LINK}")
                if entry.name.endswith(GROWING) and entry.is_file() and entry.stat().st_nlink > 1:
                    raise ValueError(f"{entry.path}: {HARD_LINK}")
                if entry.is_dir(follow_symlinks=False):
                    places.append(Path(entry.path))


def open_itself(path: Path, flags: int) -> int:
    """A descriptor of the regular file ``path``, opened by ``os.open`` with ``flags``; never of what a link points to,
    to write never of a file that has a second name, and it waits for nobody (a pipe). ``ValueError`` that names
    ``path`` for anything else."""
    try:
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        reason = LINK if path.is_symlink() else f"could not be opened: {error.strerror}"
        raise ValueError(f"{path}: {reason}") from None
    state = os.fstat(handle)
    to_write = flags & os.O_ACCMODE != os.O_RDONLY
    if not stat.S_ISREG(state.st_mode) or (to_write and state.st_nlink > 1):
        os.close(handle)
        raise ValueError(f"{path}: {HARD_LINK if stat.S_ISREG(state.st_mode) else 'not a regular file'}")
    return handle


def appending(path: Path) -> TextIOWrapper:
    """The file ``path``, made where it is missing, open for text at its end; folders above it are made too.
    ``ValueError`` as of ``open_itself``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = open_itself(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    return open(handle, "a", encoding="utf-8")


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to the disk: what was renamed in it stays so."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_below(folder: Path) -> None:
    """Force all files and folders below ``folder`` to the disk."""
    for place, _, files in os.walk(folder):
        for name in files:
            sync_folder(Path(place) / name)
        sync_folder(Path(place))


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
