"""Keeps what Ray says of itself apart from what the program says: the first goes to ``logs/ray.log`` of the run folder.

Ray prints in the driver what its actors print, each line behind ``(TrainController pid=123)``, and its own log. Of its
workers the program's own lines stay, without that mark; what a person waits for (workers have started, workers failed)
is one line; all else is in the file. Nothing here needs Ray.
"""

import re
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import TextIOBase
from pathlib import Path
from typing import TextIO

from sslmed_dist.atomic_files import appending
from sslmed_dist.config import Config
from sslmed_dist.endings import Stopped
from sslmed_dist.log_files import keep_small
from sslmed_dist.printable import printable

MARK = re.compile(r"\((?:(?P<who>[\w.:]+)\s)?pid=\d+(?:, ip=[^)]*)?\) ?(?P<said>.*)")
WORKERS = ("RayTrainWorker", "outcome_of")  # the actors and tasks in which this program runs
# What Ray itself says in them, and how its logs begin: those of Python, and of C++.
OF_RAY = re.compile(r"Setting up process group for|Reporting training result |\[rank\d+\]:\[W")
LOG = re.compile(
    r"\d{4}-\d\d-\d\d [\d:,.]+\s+(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) \S+:\d+ -- |\[\d{4}-\d\d-\d\d [^\]]*\]"
)
# Lines of the controller that a person waits for, and what becomes of them.
NEWS = (
    (re.compile(r"Started training worker group of size (\d+)"), "ray: {} workers have started"),
    (re.compile(r"Error count: (\d+ \(max allowed: \S+\))"), "ray: workers failed, failure {}; logs/ray.log says why"),
)
MOST_KEPT = 10_000  # lines that are kept until there is a file for them


class Sorter:
    """Decides line by line. ``folder``: the run folder, whose ``logs/ray.log`` is opened when work has ``begun`` there:
    before, the folder may be another run's, and refused."""

    def __init__(self, folder: Path, begun: Callable[[], bool]) -> None:
        self.folder, self.begun, self.file, self.screen = folder, begun, None, sys.stderr
        self.kept: deque[str] = deque(maxlen=MOST_KEPT)
        self.lock = threading.RLock()

    file: TextIO | None

    def sort(self, line: str) -> str | None:
        """What a person is to see of a line, None for nothing."""
        mark = MARK.match(line)
        if mark is None:
            if not LOG.match(line):
                return line
            self.keep(line)
            return None
        said = mark["said"]
        if mark["who"] in WORKERS and not OF_RAY.match(said) and not LOG.match(said):
            return said
        self.keep(line)
        for pattern, words in NEWS:
            if match := pattern.search(said):
                return words.format(match[1])
        return None

    def keep(self, line: str) -> None:
        """Put a line into the file, or aside until there is one."""
        with self.lock:
            self.kept.append(line)
            if self.file is not None or self.begun():
                self.write()

    def write(self) -> None:
        """What was put aside goes into the file."""
        with self.lock:
            if self.file is None:
                log = self.folder / "logs" / "ray.log"
                log.parent.mkdir(exist_ok=True)
                keep_small(log)
                self.file = appending(log)
                # past the filter, which may be at work just now
                self.screen.write(f"note: what Ray says of itself goes to {printable(str(log))}\n")
            while self.kept:
                self.file.write(f"{self.kept.popleft()}\n")
            self.file.flush()

    def close(self) -> None:
        """Nothing more comes."""
        with self.lock:
            if self.file is not None:
                self.file.close()
                self.file = None


class Filtered(TextIOBase):
    """A stream before ``stream``: whole lines go through ``sorter``. A write that begins as one of Ray's log does, and
    has several lines, is one record. What this program prints without a line's end (a prompt) comes with its end."""

    def __init__(self, stream: TextIO, sorter: Sorter) -> None:
        self.stream, self.sorter = stream, sorter
        self.begun: dict[int, str] = {}  # by thread, a line without its end

    def write(self, text: str) -> int:
        """Take ``text``; returns its length."""
        whole = self.begun.pop(threading.get_ident(), "") + text
        *lines, rest = whole.split("\n")
        if rest:
            self.begun[threading.get_ident()] = rest
        if lines and LOG.match(lines[0]):
            for line in lines:
                self.sorter.keep(line)
            return len(text)
        for line in lines:
            shown = self.sorter.sort(line)
            if shown is not None:
                self.stream.write(f"{shown}\n")
        return len(text)

    def flush(self) -> None:
        """Whole lines are with the stream already."""
        self.stream.flush()

    def end(self) -> None:
        """Nothing more comes: what was begun is said."""
        for rest in self.begun.values():
            self.stream.write(rest)
        self.begun.clear()
        self.flush()

    def isatty(self) -> bool:
        """As of the stream."""
        return self.stream.isatty()

    def fileno(self) -> int:
        """Of the stream: what is written there by others passes by."""
        return self.stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of the stream."""
        return self.stream.encoding


@contextmanager
def apart(settings: Config, begun: Callable[[], bool]) -> Iterator[None]:
    """As long as the block lasts, what Ray says of itself goes to ``logs/ray.log`` of the run folder, from when work
    has ``begun`` there. Where the block fails before that, it is printed after all, unless a mistake of the user's is
    what ended it. Nothing is changed where Ray starts no workers."""
    if settings.ray.num_workers == 0:
        yield
        return
    sorter = Sorter(settings.folder, begun)
    out, errors = Filtered(sys.stdout, sorter), Filtered(sys.stderr, sorter)
    try:
        with redirect_stdout(out), redirect_stderr(errors):
            yield
    except (ValueError, Stopped):
        raise
    except BaseException:
        if not begun():
            sys.stderr.writelines(f"{line}\n" for line in sorter.kept)
            sorter.kept.clear()
        raise
    finally:
        out.end()
        errors.end()
        if sorter.kept and begun():
            sorter.write()
        sorter.close()
