"""The scalars of a run that may be going on: ``metrics.jsonl``, of which each look reads what is new."""

import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from sslmed_dist.json_files import LINE, LONGEST_LINE, METRIC_KEYS, checked

WINDOW = 20  # intervals between lines that a speed is the mean of
PAUSE_S, PAUSE = 30.0, 10.0  # an interval is a pause above these seconds and so many times the usual


class Point(NamedTuple):
    """One time at which scalars were written. ``time`` in seconds since 1970 by the clock of the writing machine;
    ``step`` counts the steps that are done; ``round`` None outside of federations."""

    time: float
    step: int
    epoch: int | None
    round: int | None


class Pause(NamedTuple):
    """A long interval between two lines: it ended before ``step`` and lasted ``seconds``."""

    step: int
    seconds: float


@dataclass
class Read:
    """What was read so far.

    points       one a logged step of the training, or a round of the federation, by ascending step
    newest       the newest value of each scalar of the training
    steps_in     by epoch the last step that was logged in it
    sites        by site the newest values of its scalars, with its ``round``
    lowest       (value, epoch) of the lowest validation loss, and the last epoch that was validated
    unreadable   lines that are no row
    """

    points: list[Point] = field(default_factory=list)
    newest: dict[str, float] = field(default_factory=dict)
    steps_in: dict[int, int] = field(default_factory=dict)
    sites: dict[str, dict[str, float]] = field(default_factory=dict)
    lowest: tuple[float, int] | None = None
    validated: int | None = None
    unreadable: int = 0


class Scalars:
    """The file ``path``, read further by each ``read``. A line that is being written is left for the next time; a file
    that was cut back or replaced (a run that resumes does that) is read anew."""

    def __init__(self, path: Path) -> None:
        self.path, self.read_so_far = path, Read()
        self.file: tuple[int, int] | None = None  # device and number of the file that was read
        self.offset = 0

    def read(self) -> Read:
        """All that stands in the file now; nothing where it is not there yet."""
        if not self.path.is_file():
            self.file, self.offset, self.read_so_far = None, 0, Read()
            return self.read_so_far
        with self.path.open("rb") as file:
            found = self.path.stat()
            if self.file != (found.st_dev, found.st_ino) or found.st_size < self.offset:
                self.file, self.offset, self.read_so_far = (found.st_dev, found.st_ino), 0, Read()
            file.seek(self.offset)
            for line in iter(lambda: file.readline(LONGEST_LINE), b""):
                if not line.endswith(b"\n") and len(line) < LONGEST_LINE:
                    break  # it is being written, or a kill tore it
                self.offset += len(line)
                self.take(line)
        return self.read_so_far

    def take(self, line: bytes) -> None:
        """One whole line."""
        read = self.read_so_far
        try:
            row = checked(LINE.decode(line.decode("utf-8")), "", {"name": str, "value": float}, METRIC_KEYS)
            step = int(row.get("step") or 0)
        except (ValueError, RecursionError, json.JSONDecodeError):
            read.unreadable += bool(line.strip())
            return
        if row.get("arm") is not None:
            return
        if row.get("site") is not None:
            if row.get("split") == "train":
                read.sites.setdefault(row["site"], {}).update({row["name"]: row["value"], "round": row["round"] or 0})
        elif row.get("split") == "train":
            self.take_training(row, step)
        elif row["name"] == f"{row.get('split')}_loss":
            self.take_validation(row)

    def take_training(self, row: dict[str, Any], step: int) -> None:
        """A scalar of the training."""
        read, epoch = self.read_so_far, row.get("epoch")
        read.newest[row["name"]] = row["value"]
        if not read.points or step > read.points[-1].step:
            read.points.append(Point(row.get("time", 0.0), step, epoch, row.get("round")))
        if epoch is not None:
            read.steps_in[epoch] = max(step, read.steps_in.get(epoch, 0))

    def take_validation(self, row: dict[str, Any]) -> None:
        """A validation loss."""
        read, epoch = self.read_so_far, int(row.get("epoch") or 0)
        read.validated = epoch
        if read.lowest is None or row["value"] < read.lowest[0]:
            read.lowest = (row["value"], epoch)


def usual_interval(points: list[Point]) -> float | None:
    """The median of the seconds between two lines, of the newest ones; None before there are two."""
    recent = points[-3 * WINDOW :]
    gaps = [later.time - earlier.time for earlier, later in zip(recent, recent[1:], strict=False)]
    return statistics.median(gaps) if gaps else None


def pauses(points: list[Point]) -> list[Pause]:
    """The intervals that lasted much longer than usual: a restart, an evaluation, a stop."""
    usual = usual_interval(points)
    if usual is None:
        return []
    pairs = zip(points, points[1:], strict=False)
    return [
        Pause(later.step, later.time - earlier.time)
        for earlier, later in pairs
        if later.time - earlier.time > max(PAUSE_S, PAUSE * usual)
    ]


def seconds_per_step(points: list[Point]) -> float | None:
    """Over the newest intervals, pauses left out; None before there are two lines."""
    stopped = {pause.step for pause in pauses(points)}
    pairs = [pair for pair in zip(points, points[1:], strict=False) if pair[1].step not in stopped][-WINDOW:]
    steps = sum(later.step - earlier.step for earlier, later in pairs)
    seconds = sum(later.time - earlier.time for earlier, later in pairs)
    return seconds / steps if steps and seconds > 0 else None
