"""How far a training has come, for one who watches it from another thread: whether it moves, and what it is at."""

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from sslmed_dist import distributed
from sslmed_dist.training.phases import STARTING, TRAINING
from sslmed_dist.training.state import TrainState

REMEMBERED = 50  # steps whose durations the median is of


class Pulse:
    """The pulse of this process's training. ``phase``: what it is at; the first step is still part of the start,
    because kernels are compiled and chosen in it. ``asked``: whoever watches sets it to ask for a stop."""

    def __init__(self) -> None:
        self.phase, self.asked, self.averaged = STARTING, False, False
        self.state: TrainState | None = None
        self.begun: float | None = None  # when the step before this one was averaged
        self.durations: deque[float] = deque(maxlen=REMEMBERED)

    def average(self, parameters: Iterable[nn.Parameter], extras: Sequence[Tensor] = ()) -> list[Tensor]:
        """``distributed.average_gradients``, which comes once in every step."""
        now = time.monotonic()
        if self.begun is not None:
            self.durations.append(now - self.begun)
        if self.averaged:  # a step before this one is done, be it the last one of an epoch
            self.phase = TRAINING
        self.begun, self.averaged = now, True
        return distributed.average_gradients(parameters, extras)

    @contextmanager
    def at(self, phase: str) -> Iterator[None]:
        """For a block that is no step."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase, self.begun = before, None

    def during(self, phase: str, work: Callable[[TrainState], None]) -> Callable[[TrainState], None]:
        """``work``, done ``at`` this phase."""

        def timed(state: TrainState) -> None:
            with self.at(phase):
                work(state)

        return timed

    def stops(self, stop: Callable[[], bool]) -> Callable[[], bool]:
        """Whether ``stop`` says so, or whoever watches has asked for it."""
        return lambda: self.asked or stop()

    def look(self) -> dict[str, Any]:
        """Where training stands: ``step`` (done), ``calls`` (``distributed.calls``), ``phase``, ``median_s``, the
        median duration of the last steps in seconds, 0 before there were any, and ``asked``."""
        durations = list(self.durations)
        return {
            "step": 0 if self.state is None else self.state.step,
            "calls": distributed.calls(),
            "phase": self.phase,
            "median_s": statistics.median(durations) if durations else 0.0,
            "asked": self.asked,
        }
