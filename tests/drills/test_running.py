"""Drills during a run: a site fails in some way, the others go on, and it is back afterwards. One long run for all."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sslmed_dist.federation import resident
from sslmed_dist.federation.site_file import SiteFile
from tests.drills import machine
from tests.drills.hospitals import SMALL_DISK, Hospitals, Run
from tests.drills.seen import line_with, saw

pytestmark = [pytest.mark.flower, pytest.mark.slow]
SILENT = "this site's data side does not answer; its own log says why"


@pytest.fixture(autouse=True)
def all_ledgers_are_in_order(hospitals: Hospitals) -> Iterator[None]:
    """After each drill."""
    yield
    hospitals.check_ledgers()


def test_a_data_side_that_is_killed_while_it_trains(hospitals: Hospitals, run: Run) -> None:
    hospitals.wait_until_trains("north")
    since = len(run.log)
    hospitals.kill("north-data")
    line = run.wait_for("north is excluded", since)
    assert SILENT in line
    hospitals.start_data("north")
    done = run.whole_round()
    reserved = [entry["round"] for entry in hospitals.entries("north") if entry["kind"] == "reserved"]
    answered = [entry["round"] for entry in hospitals.entries("north") if entry.get("message") == "update"]
    assert len(set(reserved) - set(answered)) >= 1  # what the killed one reserved is not given back
    saw("data side killed while it trains", server=line, then=done)


def test_a_site_that_hangs(hospitals: Hospitals, run: Run) -> None:
    hospitals.wait_until_trains("east")
    since = len(run.log)
    with hospitals.hanging("east-data"):
        line = run.wait_for("east is excluded", since)
    assert f"no reply within {run.timeout_s:g} s" in line
    saw("site hangs", server=line, then=run.whole_round())


def test_a_disk_that_is_slow(hospitals: Hospitals, run: Run) -> None:
    if not hospitals.machines:
        pytest.skip("no C compiler (cc): the disk of a program cannot be made slow")
    since = len(run.log)
    hospitals.machines["east"].is_so(slower=run.timeout_s / 5)  # a round writes nine times or more
    try:
        line = run.wait_for("east is excluded", since)
    finally:
        hospitals.machines["east"].is_so()
    assert f"no reply within {run.timeout_s:g} s" in line
    saw("disk is slow", server=line, then=run.whole_round())


def test_a_disk_that_is_full(hospitals: Hospitals, run: Run) -> None:
    if not hospitals.has_small_disk:
        pytest.skip("no disk of its own for a site: mounting a tmpfs is not permitted here")
    since = len(run.log)
    with machine.full(Path(hospitals.made.sites[SMALL_DISK].state)):
        line = run.wait_for(f"{SMALL_DISK} is excluded", since)
        hospitals.made.wait_for("No space left", f"{SMALL_DISK}-data", 20)
    done, said = run.whole_round(), hospitals.made.said(f"{SMALL_DISK}-data")
    assert "Traceback" not in said
    saw("disk is full", line_with("No space left", said), line, done)


def test_120_megabytes_that_are_no_answer(hospitals: Hospitals, run: Run) -> None:
    hospitals.made.stop("north-data")
    since = len(run.log)
    with instead(hospitals.made.sites["north"], os.urandom(120_000_000)):
        line = run.wait_for("the bytes are no answer of a site's data side", since)
    assert "north is excluded" in line
    hospitals.start_data("north")
    saw("120 MB that are no answer", server=line, then=run.whole_round())


@contextmanager
def instead(own: SiteFile, answer: bytes) -> Iterator[None]:
    """Somebody who answers at a site's socket in place of its data side."""
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(own.socket)
        door.listen(1)

        def serve() -> None:
            while True:
                try:
                    connection, _ = door.accept()
                except OSError:  # closed
                    return
                with connection:
                    (length,) = resident.LENGTH.unpack(resident.received(connection, resident.LENGTH.size))
                    resident.received(connection, length)
                    connection.sendall(resident.LENGTH.pack(len(answer)) + answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            door.shutdown(socket.SHUT_RDWR)
            thread.join()
            Path(own.socket).unlink()


def test_rules_that_change_while_a_run_goes_on(hospitals: Hospitals, run: Run) -> None:
    path = hospitals.made.folder / "east" / "site.yaml"
    before = path.read_text()
    hospitals.made.stop("east-data")
    spent = sum(entry.get("count", 0) for entry in hospitals.entries("east") if entry["kind"] == "reserved")
    assert before.count("    rounds: 1000") == 1
    path.write_text(before.replace("    rounds: 1000", f"    rounds: {spent}"))
    since = len(run.log)
    try:
        hospitals.start_data("east")
        line = run.wait_for("east is excluded: its rules refuse", since)
    finally:
        hospitals.made.stop("east-data")
        path.write_text(before)
        hospitals.start_data("east")
    done = run.whole_round()
    at_site = line_with("refused: this site's rounds are spent", hospitals.made.said("east-data"))
    saw("policy refuses during a run", at_site, line, done)


def test_a_clock_that_leaps(hospitals: Hospitals, run: Run) -> None:
    """The server refuses what the network side signs; that looks at the clocks, says why, and ends."""
    if not hospitals.machines:
        pytest.skip("no C compiler (cc): the clock of a program cannot be moved")
    made, since = hospitals.made, len(run.log)
    joined = made.said("south").count("has joined")
    hospitals.machines["south"].is_so(ahead=6.0)
    try:
        assert made.programs["south"].wait(timeout=300) == 2
    finally:
        hospitals.machines["south"].is_so()
        made.programs.pop("south")
        hospitals.start_network("south")
    at_server = run.wait_for("south", since)
    made.wait_for("has joined", "south", more_than=joined)
    saw("clock leaps by +6 s during a run", line_with("it refuses sites", made.said("south")), at_server)
    run.whole_round()
