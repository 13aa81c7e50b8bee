"""Files of a folder on a disk, or in an object store that fsspec reads: read in parts, with retries."""

import importlib.util
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

from sslmed_dist.addresses import STORES, is_address, without_secrets
from sslmed_dist.printable import excerpt

PART = 2**23  # bytes that are asked for at a time
TRIES, PAUSE_S = 5, 0.5  # how often one part is asked for; the pause after the first failure, doubled after each


class WholeOnly(Exception):
    """The store gives no parts of a file."""


FINAL = (
    WholeOnly,
    FileNotFoundError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
)  # another try would fail, too
CREDENTIAL = re.compile(r"(?i)\b\S*(key|token|secret|signature|credential|password)\S*\s*[=:]\s*\S+")
Answer = TypeVar("Answer")


class Store(Protocol):
    """A folder of files. Each method may raise whatever the store's library raises."""

    where: str

    def size(self, name: str) -> int:
        """Bytes of a file."""

    def read(self, name: str, start: int, end: int) -> bytes:
        """The bytes ``start`` to ``end`` of a file, or fewer."""


class Folder:
    """A folder on a disk."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.where = folder, str(folder)

    def size(self, name: str) -> int:
        return (self.folder / name).stat().st_size

    def read(self, name: str, start: int, end: int) -> bytes:
        with (self.folder / name).open("rb") as file:
            file.seek(start)
            return file.read(end - start)


class ObjectStore:
    """A folder of an object store, by fsspec. Credentials are looked for where the store's own tools do (environment,
    ``~/.aws``, the machine's role), never in the configuration."""

    def __init__(self, address: str) -> None:
        """``ValueError`` where the package that reads this store is not installed."""
        self.where = address.rstrip("/")
        name = address.partition("://")[0]
        package = STORES[name]
        missing = [each for each in ("fsspec", package) if each and importlib.util.find_spec(each) is None]
        if missing:
            raise ValueError(
                f"data.root: {name}:// needs {missing[0]}, which is not installed: pip install 'sslmed-dist[cloud]'"
            )
        import fsspec

        # Listings are not kept: a file that is not there yet may come.
        self.files: Any = fsspec.filesystem(name, use_listings_cache=False)

    def size(self, name: str) -> int:
        return int(self.files.info(f"{self.where}/{name}")["size"])

    def read(self, name: str, start: int, end: int) -> bytes:
        data = self.files.cat_file(f"{self.where}/{name}", start=start, end=end)
        if len(data) > end - start:  # the whole file, each time
            raise WholeOnly("it answers with more than the part that was asked for")
        return bytes(data)


def open_store(root: str | Path) -> Store:
    """The store at a path or an address. ``ValueError`` for an address whose store cannot be read here."""
    if is_address(str(root)):
        return ObjectStore(str(root))
    return Folder(Path(root).expanduser())


def blocks(store: Store, name: str, start: int = 0) -> Iterator[bytes]:
    """The bytes of a file from ``start`` on, ``PART`` at a time. A part that does not come whole is asked for again
    from where it broke off. ``ValueError`` naming the file where ``TRIES`` tries in a row bring nothing."""
    size = persistent(lambda: store.size(name), f"{store.where}/{name}")
    position = start
    while position < size:

        def part(first: int = position) -> bytes:
            data = store.read(name, first, min(first + PART, size))
            if not data:
                raise OSError(f"it ends after {first:,} of {size:,} bytes")
            return data

        data = persistent(part, f"{store.where}/{name}")
        position += len(data)
        yield data


def persistent(ask: Callable[[], Answer], where: str) -> Answer:
    """The answer of ``ask``, which is asked up to ``TRIES`` times, with pauses. ``ValueError`` beginning with ``where``
    where none came, at once where another try would bring none."""
    for attempt in range(1, TRIES + 1):
        try:
            return ask()
        except Exception as raised:  # every store's library has errors of its own
            error = behind(raised)
            if isinstance(error, FINAL) or attempt == TRIES:
                tried = "" if isinstance(error, FINAL) else f" (tried {attempt} times)"
                # Not ``from error``: a library's error may hold what no log should.
                raise ValueError(f"{where}: cannot be read: {in_words(error)}{tried}") from None
        time.sleep(PAUSE_S * 2 ** (attempt - 1))
    raise AssertionError("unreachable")


def behind(error: Exception) -> Exception:
    """The error itself, or what it stands for: fsspec calls a file of an HTTP server "not found" whatever went wrong,
    a refused connection or an unknown host as well."""
    cause = error.__cause__
    absent = getattr(cause, "status", None) == 404 or isinstance(cause, FileNotFoundError)
    return cause if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) and not absent else error


def in_words(error: Exception) -> str:
    """The kind of an error and its first line, without what may be a credential."""
    first = next(iter(str(error).splitlines()), "")
    said = CREDENTIAL.sub("(left out)", without_secrets(first))
    return f"{type(error).__name__}: {excerpt(said, 160)}" if said else type(error).__name__
