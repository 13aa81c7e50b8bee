"""What the workers of a run say of themselves every second, and which of them has hung. Nothing here needs Ray,
and nothing torch: the actor that keeps the ledger starts soon and stays small."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sslmed_dist.training.phases import STARTING, TRAINING

STILL_S, STEPS = 30.0, 10  # a worker has hung that did not move for so many seconds, and so many median steps
SILENT_S = 5.0  # one of whom nothing was heard for so long says nothing any more


@dataclass(frozen=True)
class Beat:
    """What one worker says. ``attempt`` is another one after every restart; ``process`` and ``node`` say where it is;
    the rest is ``Pulse.look``."""

    attempt: str
    rank: int
    world: int
    process: int
    node: str
    step: int
    calls: int
    phase: str
    median_s: float
    asked: bool


@dataclass(frozen=True)
class Seen:
    """A worker as the ledger knows it: its last beat, how long ago that was, and how long it has been ``still``, at the
    same step and the same message."""

    beat: Beat
    silent_s: float
    still_s: float


class Ledger:
    """Takes beats and tells what they come to. All times are of its own clock. ``handles``: whatever a worker gives to
    be ended by."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.attempts: list[str] = []  # the last one is the present one
        self.beats: dict[int, Beat] = {}
        self.heard: dict[int, float] = {}
        self.moved: dict[int, float] = {}
        self.handles: dict[int, Any] = {}
        self.stop = False

    def beat(self, beat: Beat, handle: Any = None) -> bool:
        """Note a beat; returns whether a stop is asked for. One of an attempt before the present one is not noted."""
        if beat.attempt not in self.attempts:
            self.attempts.append(beat.attempt)
            for table in (self.beats, self.heard, self.moved, self.handles):
                table.clear()
        if beat.attempt == self.attempts[-1]:
            now, before = self.clock(), self.beats.get(beat.rank)
            place = (beat.step, beat.calls, beat.phase)
            if before is None or place != (before.step, before.calls, before.phase):
                self.moved[beat.rank] = now
            self.beats[beat.rank], self.heard[beat.rank], self.handles[beat.rank] = beat, now, handle
        return self.stop

    def ask_stop(self) -> None:
        """Answer every further beat with the wish to stop."""
        self.stop = True

    def look(self) -> list[Seen]:
        """The workers of the present attempt by rank."""
        now = self.clock()
        return [Seen(self.beats[r], now - self.heard[r], now - self.moved[r]) for r in sorted(self.beats)]

    def handle(self, rank: int) -> Any:
        """What ends the worker of this rank; None where there is none."""
        return self.handles.get(rank)


def speaking(workers: Sequence[Seen]) -> list[Beat]:
    """The last beats of those of whom something was heard lately."""
    return [worker.beat for worker in workers if worker.silent_s <= SILENT_S]


def idle(workers: Sequence[Seen]) -> bool:
    """Whether workers are known that speak, and every one of them knows of the stop and is still at its start: nothing
    was trained that has to be saved. What one said before it knew is no answer: between two of its words it may have
    begun to train, and saved."""
    beats = speaking(workers)
    return bool(beats) and all(beat.asked and beat.phase == STARTING for beat in beats)


def hung(workers: Sequence[Seen]) -> Seen | None:
    """The worker that all others wait for, where none has moved for ``STILL_S`` seconds and ``STEPS`` median steps;
    else None. It is the one that has begun the fewest messages.

    One that has said nothing for as long, while another is past its start, is stopped as a whole, whatever it was at
    when it last spoke. None where one that speaks still starts, saves or measures (storage may be slow), and where
    nothing is heard of any: they are gone, and Ray starts others."""
    if not workers or len(workers) < workers[0].beat.world:
        return None
    if not speaking(workers):
        return None
    limit = max(STILL_S, STEPS * max(worker.beat.median_s for worker in workers))
    if min(worker.still_s for worker in workers) <= limit:
        return None
    mute = max(workers, key=lambda worker: worker.silent_s)
    if mute.silent_s > limit and any(worker.beat.phase != STARTING for worker in workers if worker is not mute):
        return mute
    if any(worker.beat.phase == STARTING for worker in workers):
        return None
    behind = min(workers, key=lambda worker: (worker.beat.calls, -worker.silent_s))
    return behind if behind.beat.phase == TRAINING else None


def line_of(worker: Seen) -> str:
    """What is said of a worker that has hung."""
    beat = worker.beat
    return (
        f"rank {beat.rank} hangs after step {beat.step}: it has not moved for {worker.still_s:.0f} s (process "
        f"{beat.process} on {beat.node}); its worker is ended, and Ray starts all of them again"
    )
