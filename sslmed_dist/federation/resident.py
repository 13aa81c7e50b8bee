"""The data side's resident worker: one Unix socket, one connection at a time, and behind it the door.

A request is its length (8 bytes, little-endian) and its bytes; an answer is the same, and no bytes at all where the
site says nothing. The length is checked before anything is allocated for it.
"""

import fcntl
import os
import signal
import socket
import stat
import struct
import threading
from collections.abc import Callable
from pathlib import Path

from sslmed_dist.federation import housekeeping
from sslmed_dist.federation.door import Door
from sslmed_dist.federation.doorway import FAILED
from sslmed_dist.federation.policy import Refusal
from sslmed_dist.federation.site_file import SiteFile
from sslmed_dist.federation.site_work import errors_log

READ_S = 30.0  # without a byte from the other side
LENGTH = struct.Struct("<Q")


def listening(site: SiteFile) -> socket.socket:
    """The socket of the door, open to the site's network user alone: 0660 in a folder of 0750. ``ValueError`` where
    another worker listens, or something else lies in its place."""
    path = Path(site.socket)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.parent.chmod(0o750)
    if path.exists() or path.is_symlink():
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ValueError(f"{path}: is no socket; nothing is written over it")
        with socket.socket(socket.AF_UNIX) as attempt:
            if attempt.connect_ex(str(path)) == 0:
                raise ValueError(f"{path}: another data side listens there; `sslmed site status`")
        path.unlink()
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o117)
    try:
        door.bind(str(path))
    finally:
        os.umask(before)
    door.listen(1)
    return door


def is_open(site: SiteFile) -> bool:
    """Whether a worker holds the site's state."""
    path = Path(site.state) / "data_side.lock"
    if not path.exists():
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def own_alone(site: SiteFile) -> int:
    """A lock on the site's state, held as long as the descriptor is open. ``ValueError`` where another worker has
    it."""
    folder = Path(site.state)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(folder / "data_side.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise ValueError(f"{folder}: another data side works on this state; `sslmed site status`") from None
    return handle


def serve(site: SiteFile, door: Door, stop: threading.Event, say: Callable[[str], None]) -> None:
    """Answer requests until ``stop`` is set. What goes wrong with one connection is said and ends that one. Once a day
    what is not needed any more is thrown away."""

    def tidy() -> None:
        for line in housekeeping.prune(site, door.ledger):
            say(line)

    daily = housekeeping.Every(housekeeping.DAY_S, tidy)
    lock = own_alone(site)
    with listening(site) as listener:
        listener.settimeout(0.5)
        say(f"{site.site}: the door is open at {site.socket}")
        while not stop.is_set():
            daily()
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            with connection:
                connection.settimeout(READ_S)
                try:
                    say(one(site, door, connection))
                except (OSError, ValueError) as error:
                    say(f"a connection ended: {type(error).__name__}: {error}")
        Path(site.socket).unlink(missing_ok=True)
    os.close(lock)


def peer(connection: socket.socket) -> int:
    """The user id of the process at the other end, as the kernel says it."""
    said = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", said)[1])


def one(site: SiteFile, door: Door, connection: socket.socket) -> str:
    """One request and its answer; returns a line about it. ``Refusal`` for another user, ``ValueError`` for a length
    that is not allowed; nothing is read or answered then."""
    user = peer(connection)
    if user != site.peer:
        raise Refusal(f"user {user} may not connect; network_user does")
    (length,) = LENGTH.unpack(received(connection, LENGTH.size))
    if not 0 < length <= site.resources.message_bytes:
        raise ValueError(f"a request of {length:,} bytes; allowed: up to {site.resources.message_bytes:,}")
    answer = door.answer(received(connection, length))
    if answer is None:
        connection.sendall(LENGTH.pack(0))
        return "a request got no answer: the messages of this data set's life are spent"
    connection.sendall(LENGTH.pack(len(answer)) + answer)
    door.delivered(answer)
    return told(site, door, int.from_bytes(answer[8:16], "little"))


def told(site: SiteFile, door: Door, number: int) -> str:
    """What the site's people read of the answer that stands in the ledger under this number."""
    entry = door.ledger.entries[number - 1]
    what = "answered"
    if entry["kind"] == "refusal":
        why = f" ({errors_log(site)})" if entry["reason"] == FAILED else ""
        what = f"refused: {entry['reason']}{why}"
    return f"{what}: entry {number} of the ledger"


def received(connection: socket.socket, length: int) -> bytearray:
    """Exactly ``length`` bytes. ``OSError`` where the other side ends before, or is silent for ``READ_S`` seconds."""
    data = bytearray(length)
    view, start = memoryview(data), 0
    while start < length:
        count = connection.recv_into(view[start:], min(length - start, 1 << 20))
        if count == 0:
            raise OSError("the other side ended before its request was whole")
        start += count
    return data


def until_signal() -> threading.Event:
    """An event that SIGTERM and SIGINT set, so that a round in progress is finished first."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop
