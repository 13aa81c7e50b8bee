"""Starting programs and being sure that they, and all that they started, are gone afterwards.

Flower's and Ray's programs start daemons that leave their parent's process group. So every program started here gets a
token in its environment, which all its children inherit. ``stop`` ends the processes of this user that carry the
token, by their ids and start times. Linux only, as is the lock of a run folder.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sslmed_dist.atomic_files import appending
from sslmed_dist.training.stopping import started_at

TOKEN = "SSLMED_PROCESSES"
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded before any fork


class Processes:
    """The programs of one federation. ``token`` is what their environment carries under ``SSLMED_PROCESSES``. None of
    them began before ``since`` (``stopping.started_at``)."""

    def __init__(self, token: str, since: int = 0) -> None:
        self.token, self.since = token, since
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, command: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path) -> subprocess.Popen[bytes]:
        """Start ``command`` with its output in ``log``. ``ValueError`` when there is no such program."""
        with appending(log) as out:
            try:
                process = subprocess.Popen(
                    command,
                    env={**env, TOKEN: self.token},
                    cwd=cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=end_with_parent,
                )
            except FileNotFoundError:
                raise ValueError(f"{command[0]}: no such program; pip install 'sslmed-dist[flower]'") from None
        self.started.append(process)
        return process

    def alive(self) -> list[int]:
        """Ids of the running processes that are ours."""
        return [pid for pid, _ in self.ours()]

    def ours(self) -> list[tuple[int, int]]:
        """(id, start time) of the running processes of this user that carry the token, without this one. A program that
        lets nobody look into it (Flower's SuperExec) shows no token; it is known as a child of ours."""
        mark = f"{TOKEN}={self.token}".encode()
        children = {process.pid for process in self.started if process.poll() is None}
        found = [(pid, started) for pid in children if (started := started_at(pid)) is not None]
        for pid in process_ids():
            started = started_at(pid)
            if (
                pid == os.getpid()
                or pid in children
                or started is None
                or started < self.since
                or owner(pid) != os.geteuid()
            ):
                continue
            if mark in environment(pid):
                found.append((pid, started))
        return found

    def stop(self, patience_s: float = 10.0) -> None:
        """End them all: SIGTERM once to each, and SIGKILL to those that are left after ``patience_s`` seconds."""
        end = time.monotonic() + patience_s
        asked: set[tuple[int, int]] = set()  # those that were sent SIGTERM
        while processes := self.ours():  # looked up anew each time: a process may have started another one meanwhile
            late = time.monotonic() > end
            for process in processes:
                if late or process not in asked:
                    end_process(*process, signal.SIGKILL if late else signal.SIGTERM)
                asked.add(process)
            self.reap()
            time.sleep(0.1)
        self.reap()

    def reap(self) -> None:
        """Collect the exit codes of our own children, so that none is left as a zombie."""
        for process in self.started:
            process.poll()


def end_with_parent() -> None:
    """In a new process before its program starts: ask for SIGTERM when the launcher dies, even by SIGKILL."""
    if LIBC is not None:
        LIBC.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def end_process(pid: int, started: int, signal_number: int) -> None:
    """Send the signal to the process ``pid`` that began at ``started``; to no later one that got its id."""
    if started_at(pid) == started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal_number)


def owner(pid: int) -> int | None:
    """The user id of a process, None where it has ended."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def process_ids() -> Iterator[int]:
    """Ids of all processes of this machine."""
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def environment(pid: int) -> list[bytes]:
    """The environment a process was started with, empty where it may not be read."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # it has ended, or is another user's
        return []


def free_port(taken: Sequence[int] = ()) -> int:
    """A TCP port on the loopback interface that nobody listens on, and that is not in ``taken``."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))  # port 0: the system chooses
            port = int(probe.getsockname()[1])
        if port not in taken:
            return port


def check_port(port: int, name: str) -> int:
    """``port`` if it is free, else ``ValueError`` that names the setting ``name``."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise ValueError(f"{name}: port {port} on 127.0.0.1 cannot be used ({error})") from None
    return port
