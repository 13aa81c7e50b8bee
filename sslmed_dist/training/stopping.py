"""Asking a run to stop: SIGTERM, SIGINT or SIGHUP to the process, or a file named ``stop`` in the run folder."""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from sslmed_dist.endings import Stopped

BURST_S = 1.0  # signals within it are one request: who has lost its parent is told once for every thread of it


def finish(stopped: bool) -> None:
    """``Stopped`` where a training that others wait for was stopped before its end."""
    if stopped:
        raise Stopped("stopped; run the same command again to go on")


def started_at(pid: int) -> int | None:
    """When the process ``pid`` began, in clock ticks since the system's start; None where there is no such process.
    With the id it names a process: ids are given again, this pair is not. Linux only."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return int(fields[19])  # the 22nd of all; the second, the program's name, may hold blanks
    except (OSError, IndexError):
        return None


class Stop:
    """Callable for ``fit``: True once a stop was asked for. On exit the former handlers of the signals are put back.

    The file is how a driver that is not the training process (Ray's) passes the request on. It is looked for at most
    once a second, because the folder may be on a network disk. ``within`` is the stop of the run that this
    one is a part of: its folder may have the file, too, and it learns of a signal that came meanwhile.
    """

    def __init__(self, folder: Path, within: "Stop | None" = None) -> None:
        self.file, self.within = folder / "stop", within
        self.asked = False
        self.signalled = -math.inf  # when the first signal came, by the monotonic clock
        self.looked = 0.0  # when the file was last looked for
        self.former: dict[int, Any] = {}  # the handlers that this one replaced, by signal
        self.line: str | None = None  # what a stop says that is obeyed ``at_once``

    @classmethod
    def anew(cls, folder: Path) -> "Stop":
        """For a run that begins or goes on: a file of before belongs to the attempt that it ended."""
        (folder / "stop").unlink(missing_ok=True)
        return cls(folder)

    def __enter__(self) -> "Stop":
        # Only the main thread may set handlers; a Ray worker's loop runs in another one and relies on the file.
        if threading.current_thread() is threading.main_thread():
            for signal_number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                if signal_number == signal.SIGHUP and signal.getsignal(signal_number) == signal.SIG_IGN:
                    continue  # under nohup a terminal may close
                self.former[signal_number] = signal.signal(signal_number, self.ask)
        return self

    def listen_again(self) -> None:
        """Put the handlers in place once more, where a library has put its own over them."""
        for signal_number in self.former:
            signal.signal(signal_number, self.ask)

    def __exit__(self, *_: Any) -> None:
        for signal_number, handler in self.former.items():
            signal.signal(signal_number, handler)
        if self.within is not None and self.asked:
            self.within.asked = True

    def ask(self, signal_number: int, frame: FrameType | None) -> None:
        """Signal handler: the next step boundary saves and stops. A second signal, ``BURST_S`` later, acts at once."""
        now = time.monotonic()
        if self.asked and now - self.signalled < BURST_S:
            return
        if self.asked:
            raise KeyboardInterrupt
        self.asked, self.signalled = True, now
        if self.line is not None:
            raise Stopped(self.line)

    @contextmanager
    def at_once(self, line: str) -> Iterator[None]:
        """For a block that has nothing to save: a signal ends it at once, wherever it is, with ``Stopped(line)``. One
        that came before the block, or that the block has swallowed, ends it too. The file does not: before a run
        begins it may be of an earlier start."""
        self.line = line
        try:
            self.obey(line)
            yield
            self.obey(line)
        finally:
            self.line = None

    def obey(self, line: str) -> None:
        """``Stopped(line)`` where a signal has asked for it."""
        if self.asked:
            raise Stopped(line)

    def __call__(self) -> bool:
        now = time.monotonic()
        if not self.asked and now - self.looked >= 1.0:
            self.looked = now
            self.asked = self.file.exists() or (self.within is not None and self.within())
        return self.asked
