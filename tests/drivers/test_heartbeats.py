"""Which worker of a run has hung, told from what they say of themselves."""

import dataclasses
import subprocess
import sys
from typing import Any

import pytest

from sslmed_dist.drivers.heartbeats import Beat, Ledger, hung, idle, line_of
from sslmed_dist.training.phases import MEASURING, SAVING, STARTING, TRAINING
from sslmed_dist.training.pulse import Pulse


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def beat(rank: int, **changes: Any) -> Beat:
    """A beat of one of two workers in the middle of training."""
    whole = Beat("a:1", rank, 2, 100 + rank, "10.0.0.7", step=12, calls=40, phase=TRAINING, median_s=0.1, asked=False)
    return dataclasses.replace(whole, **changes)


def after(seconds: float, *beats: Beat, silent: int | None = None, every: float = 1.0) -> Ledger:
    """The ledger when these beats have been said every second for so long; rank ``silent`` said its only once."""
    clock = Clock()
    ledger = Ledger(clock)
    for second in range(int(seconds / every) + 1):
        clock.now = second * every
        for said in beats:
            if second == 0 or said.rank != silent:
                ledger.beat(said)
    return ledger


BEHIND = (beat(0, calls=41), beat(1))


@pytest.mark.parametrize(
    ("seconds", "beats", "silent", "rank"),
    [
        (29, BEHIND, None, None),
        (31, BEHIND, None, 1),
        (31, (beat(0), beat(1, calls=41)), None, 0),
        (31, BEHIND, 1, 1),  # its process is stopped as a whole and says nothing any more
        (31, (beat(0), beat(1)), 0, 0),  # both wait, and one is silent
        (59, tuple(dataclasses.replace(b, median_s=6.0) for b in BEHIND), None, None),
        (61, tuple(dataclasses.replace(b, median_s=6.0) for b in BEHIND), None, 1),
        (99, (beat(0, calls=41), beat(1, phase=STARTING)), None, None),
        (99, (beat(0, phase=SAVING), beat(1, calls=41)), None, None),
        (99, (beat(0, phase=MEASURING), beat(1, calls=41)), None, None),
        (29, (beat(0, phase=SAVING), beat(1, calls=41)), 0, None),
        (31, (beat(0), beat(1, phase=STARTING, calls=0)), 1, 1),  # stopped less than a second after its first step
        (99, (beat(0, phase=STARTING), beat(1, phase=STARTING)), 1, None),
        (31, (beat(0, phase=SAVING), beat(1, calls=41)), 0, 0),  # stopped while it saved: storage makes nobody mute
        (31, (beat(0, phase=SAVING, calls=41), beat(1)), None, 1),
        (99, (beat(0),), None, None),  # the other one is not there yet
        (31, (beat(0, world=1),), None, 0),
    ],
)
def test_the_worker_that_others_wait_for_is_named(
    seconds: float, beats: tuple[Beat, ...], silent: int | None, rank: int | None
) -> None:
    found = hung(after(seconds, *beats, silent=silent).look())
    assert (None if found is None else found.beat.rank) == rank


def test_nothing_is_said_of_workers_that_are_gone_and_the_next_ones_begin_anew() -> None:
    ledger = after(10, *BEHIND)
    assert isinstance(ledger.clock, Clock)
    ledger.clock.now = 300.0
    assert hung(ledger.look()) is None
    ledger.beat(beat(0, attempt="a:2", phase=STARTING, step=0, calls=0))
    ledger.beat(beat(1))  # a late word of the attempt before
    assert [seen.beat.attempt for seen in ledger.look()] == ["a:2"]


def test_one_that_moves_resets_the_count() -> None:
    ledger = after(25, *BEHIND)
    assert isinstance(ledger.clock, Clock)
    ledger.clock.now = 26.0
    ledger.beat(beat(1, calls=41))
    for _ in range(29):
        ledger.clock.now += 1
        ledger.beat(beat(0, calls=41))
        ledger.beat(beat(1, calls=41))
    assert hung(ledger.look()) is None
    ledger.clock.now += 3
    ledger.beat(beat(0, calls=41))
    found = hung(ledger.look())
    assert found is not None and found.beat.rank == 1


def test_the_line_names_rank_step_and_process() -> None:
    found = hung(after(33, *BEHIND).look())
    assert found is not None
    said = "rank 1 hangs after step 12: it has not moved for 33 s (process 101 on 10.0.0.7); its worker is ended"
    assert line_of(found).startswith(said)


def test_a_stop_is_the_answer_to_the_next_beat() -> None:
    ledger = Ledger()
    assert not ledger.beat(beat(0))
    ledger.ask_stop()
    assert ledger.beat(beat(1))


@pytest.mark.parametrize(
    ("asked", "phases", "silent_s", "idles"),
    [
        ((True, True), (STARTING, STARTING), 0, True),
        ((True, True), (STARTING, TRAINING), 0, False),
        ((True, True), (SAVING, STARTING), 0, False),
        ((False, True), (STARTING, STARTING), 0, False),  # its word is older than the stop: it may train since
        ((True, True), (STARTING, STARTING), 6, False),  # nobody speaks
    ],
)
def test_a_worker_is_idle_by_its_own_word_from_after_the_stop(
    asked: tuple[bool, bool], phases: tuple[str, str], silent_s: float, idles: bool
) -> None:
    """Seen on a fast machine: the last word before a stop said "starting", and 25 steps were saved since."""
    clock = Clock()
    ledger = Ledger(clock)
    for rank in (0, 1):
        ledger.beat(beat(rank, phase=phases[rank], asked=asked[rank]))
    clock.now = silent_s
    assert idle(ledger.look()) is idles
    assert not idle([])


def test_the_ledger_needs_no_torch() -> None:
    code = "import sys, sslmed_dist.drivers.heartbeats; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_pulse_is_in_its_start_until_the_second_step() -> None:
    pulse = Pulse()
    told = []
    for _ in range(3):
        pulse.average([])
        told.append(pulse.look()["phase"])
    with pulse.at(SAVING):
        told.append(pulse.look()["phase"])
    pulse.average([])  # what came between was no step: its duration is not counted
    assert told == [STARTING, TRAINING, TRAINING, SAVING] and pulse.look()["phase"] == TRAINING
    assert len(pulse.durations) == 2 and pulse.look()["median_s"] == pytest.approx(sum(pulse.durations) / 2)
    assert not pulse.stops(lambda: False)() and not pulse.look()["asked"]
    pulse.asked = True
    assert pulse.stops(lambda: False)() and pulse.look()["asked"]


def test_epochs_of_one_step_are_past_the_start_too() -> None:
    """What comes after an epoch takes the beginning of its last step away, and with it the duration of the next."""
    pulse = Pulse()
    for _ in range(2):
        pulse.average([])
        pulse.during(MEASURING, lambda state: None)(None)  # type: ignore[arg-type]
    assert pulse.look()["phase"] == TRAINING and not pulse.durations
