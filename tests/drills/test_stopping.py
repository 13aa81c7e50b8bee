"""Drills at the server: the program that follows a run is killed, the SuperLink is killed while sites train. At the end
everything is stopped, and nothing is left. These come last: the long run of the other drills ends here."""

import time
from pathlib import Path

import pytest

from sslmed_dist.cli import main
from sslmed_dist.drivers import processes
from tests.drills.hospitals import PLAN, Hospitals, Run, begin
from tests.drills.seen import line_with, saw
from tests.drivers.family import command_line, descendants, end
from tests.drivers.tls_federation import NAMES
from tests.federation import tiny

pytestmark = [pytest.mark.flower, pytest.mark.slow]


def test_the_program_that_follows_a_run_is_killed(hospitals: Hospitals, run: Run) -> None:
    """Its run ends with it; the server and the sites do not. It goes on from the last round, and stops when asked."""
    made, before = hospitals.made, run.log.count("3 of 3 sites")
    made.programs[run.name].kill()
    assert made.programs.pop(run.name).wait() == -9
    since = len(run.log)
    made.start(run.name, "server", "resume", str(made.server.place), run.name)
    done = run.wait_for("3 of 3 sites", since)
    first = int(line_with("fedavg: rounds ", run.log).split("rounds ")[1].split(" ")[0])
    assert first > before and made.programs["server"].poll() is None
    assert made.stop(run.name) == 0
    stopped = made.said(run.name).splitlines()[-1]
    again = f"run `sslmed server resume {made.server.place} {run.name}`"
    assert f"stopped; {again} to go on from the last round" in stopped
    hospitals.check_ledgers()
    saw("the command `server run` is killed", server=line_with("fedavg: rounds ", run.log), then=done)


def test_a_superlink_that_is_killed_while_sites_train(hospitals: Hospitals) -> None:
    """All sites, and the run to the bits of an undisturbed one, are back once the server is started again."""
    made = hospitals.made
    cut = begin(hospitals, "cut", rounds=3)
    cut.wait_for("round 1 of 3: 3 of 3 sites", 0)
    hospitals.wait_until_trains("north")
    server = made.programs.pop("server")
    links = {pid: at for pid, at in descendants(server.pid).items() if "server.superlink" in command_line(pid)}
    assert len(links) == 1
    end(links)
    assert server.wait(timeout=200) == 1 and made.programs.pop("cut").wait(timeout=200) == 1
    line = line_with("a program of the server has ended", made.said("server"))
    followed = made.said("cut").splitlines()[-1]
    assert "without a result" in followed and not (made.run_folder("cut") / "checkpoints" / "round_00003.pt").exists()
    ready = made.said("server").count("the server is ready")
    made.start("server", "server", "start", str(made.server.place))
    made.wait_for("the server is ready", "server", more_than=ready)
    assert main(["server", "resume", str(made.server.place), "cut"]) == 0
    alone = made.in_one_process("cut-alone", plan=PLAN, rounds=3)
    assert tiny.same(tiny.arrays(made.run_folder("cut"), 3), tiny.arrays(alone, 3))
    hospitals.check_ledgers()
    saw("SuperLink killed while sites train", server=line, then=cut.log.splitlines()[-1])
    saw("SuperLink killed, seen by `server run`", server=followed)


def test_nothing_is_left(hospitals: Hospitals) -> None:
    """No program, no file for a while only; every ledger is in order up to what the server knows."""
    made = hospitals.made
    for name in (*NAMES, *(f"{name}-data" for name in NAMES), "server"):
        assert made.stop(name) == 0, made.said(name)
        assert "Traceback" not in made.said(name), made.said(name)
    assert made.programs == {}
    finish = time.monotonic() + 20
    while left := [pid for pid in processes.process_ids() if str(made.folder) in command_line(pid)]:
        assert time.monotonic() < finish, [command_line(pid) for pid in left]
        time.sleep(0.2)
    assert list((made.folder / "tmp").iterdir()) == []
    assert not [path for own in made.sites.values() for path in Path(own.state).rglob("*.tmp*")]
    hospitals.check_ledgers()
