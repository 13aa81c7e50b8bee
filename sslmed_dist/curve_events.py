"""A run's scalars as TensorBoard events: of a finished run, or written while it trains.

The files are our own: TensorBoard's writer puts the host's name into theirs. What we wrote is known by a mark in its
first event, and nothing else is ever renamed, replaced or removed.
"""

import importlib.util
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sslmed_dist.atomic_files import open_itself

EVENTS = "events.out.tfevents.*"  # the files that TensorBoard reads, in the order of their names
VERSION = "brain.Event:2"  # of the format
WRITER = "sslmed-dist"  # who wrote a file, in its first event
LARGEST_FIRST = 4096  # bytes of a first event, which holds a version and a name


def require(asked_by: str) -> None:
    """``ValueError`` naming who asks, where tensorboard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ValueError(f"{asked_by} needs tensorboard: pip install 'sslmed-dist[report]'")


class EventFile:
    """One new file of events in ``folder``, which is made where it is missing. TensorBoard forgets what older files
    there hold."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.event = event_pb2.Event
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard goes on to the file whose name comes next; the time puts ours behind those of earlier starts.
        now = time.time()
        path = folder / f"{EVENTS[:-1]}{now:020.9f}.{WRITER}"
        self.records = RecordWriter(os.fdopen(open_itself(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb"))
        mark = event_pb2.SourceMetadata(writer=WRITER)
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self.put(wall_time=now, file_version=VERSION, source_metadata=mark)
        self.put(wall_time=now, step=0, session_log=start)  # from step 0 on, what older files hold is void

    def put(self, **fields: Any) -> None:
        """Write one event."""
        self.records.write(self.event(**fields).SerializeToString())

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows of ``metrics.jsonl``, and hand them to the operating system."""
        for row in rows:
            tag, step = place(row)
            summary = {"value": [{"tag": tag, "simple_value": row["value"]}]}
            self.put(wall_time=row.get("time") or time.time(), step=step, summary=summary)
        self.records.flush()

    def close(self) -> None:
        """End the file."""
        self.records.close()


def place(row: Mapping[str, Any]) -> tuple[str, int]:
    """(tag, step) of a row of metrics: the step is the round of a federation, else the optimiser step, else 0."""
    tag = "/".join(str(part) for part in (row.get("split"), row.get("site"), row["name"]) if part)
    steps = (row.get("round"), row.get("step"))
    return tag, next((step for step in steps if step is not None), 0)


def is_ours(path: Path) -> bool:
    """Whether a file is an ``EventFile`` of this program: its first event says so. The length of that stands before it
    in 8 bytes, with 4 of a checksum (TensorFlow's record format); a text in it has its own length before it."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        first = file.read(min(length, LARGEST_FIRST) + 4)[4:]
    return VERSION.encode() in first and b"\n%c%b" % (len(WRITER), WRITER.encode()) in first


def ours_in(folder: Path) -> Iterator[Path]:
    """The event files in ``folder`` that this program wrote; no link counts as one."""
    for path in sorted(folder.glob(EVENTS)):
        if path.is_file() and not path.is_symlink() and is_ours(path):
            yield path


class LiveCurves:
    """TensorBoard events that follow ``metrics.jsonl`` while a run writes it. Each start writes all of its rows anew,
    so that after a kill no scalar is missing or there twice, and those of before ``run.tensorboard`` are there too. Of
    the files beside it only our own, of earlier starts, are removed."""

    def __init__(self, folder: Path) -> None:
        """``ValueError`` where tensorboard is not installed, or ``folder`` is a link."""
        require("run.tensorboard")
        if folder.is_symlink():
            raise ValueError(f"{folder}: is a link; nothing is written through it")
        self.folder = folder
        self.file: EventFile | None = None

    def write(self, rows: list[dict[str, Any]], before: Iterable[Mapping[str, Any]]) -> None:
        """Add rows. ``before`` are those that ``metrics.jsonl`` has already; they are read at the first call only."""
        if self.file is None:
            old = list(ours_in(self.folder))
            self.file = EventFile(self.folder)
            self.file.add(before)
            for path in old:  # what they hold is in the new one
                path.unlink()
        self.file.add(rows)

    def close(self) -> None:
        """End the file; the next ``write`` starts anew."""
        if self.file is not None:
            self.file.close()
            self.file = None
