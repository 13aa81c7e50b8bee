"""Three hospitals whose two sides are programs, and one long run of theirs to which things happen."""

import json
import re
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sslmed_dist.drivers import processes
from sslmed_dist.federation.ledger import Anchor, Entry, verify
from sslmed_dist.training.stopping import started_at
from tests.drills import machine
from tests.drills.machine import Machine
from tests.drivers import family
from tests.drivers.tls_federation import NAMES, Federation, federation

PLAN = {"steps_per_epoch": 20}  # so that there is a middle of the training
SHORTEST_S = 10.0  # the server's patience with a round is several times what one takes here, at least this
SMALL_DISK = "south"  # the site whose state has a disk of its own


@dataclass
class Hospitals:
    """The federation, the machines of its sites (none without a C compiler), and whether ``SMALL_DISK`` has a small
    disk."""

    made: Federation
    machines: Mapping[str, Machine] = field(default_factory=dict)
    has_small_disk: bool = False

    def env(self, name: str) -> Mapping[str, str]:
        """What a program of this site has in its environment."""
        return self.machines[name].env if name in self.machines else {}

    def start_data(self, name: str) -> None:
        """Start the data side of a site on the site's machine; waits until its door is open."""
        before = self.made.said(f"{name}-data").count("the door is open")
        self.made.start_data(name, self.env(name))
        self.made.wait_for("the door is open", f"{name}-data", more_than=before)

    def start_network(self, name: str) -> None:
        """Start the network side of a site on the site's machine."""
        self.made.start(name, "site", "network", str(self.made.network(name)), env=self.env(name))

    def tree(self, program: str) -> dict[int, int]:
        """The processes of a program and of all that it started, by id, with their start times."""
        pid = self.made.programs[program].pid
        started = started_at(pid)
        assert started is not None
        return {pid: started, **family.descendants(pid)}

    def kill(self, program: str) -> None:
        """SIGKILL to one program; waits until all that it started has ended of itself."""
        started = self.tree(program)
        gone = self.made.programs.pop(program)
        gone.kill()
        gone.wait()
        end = time.monotonic() + 30
        while left := [pid for pid, began in started.items() if started_at(pid) == began]:
            assert time.monotonic() < end, [family.command_line(pid) for pid in left]
            time.sleep(0.1)

    @contextmanager
    def hanging(self, program: str) -> Iterator[None]:
        """The program and all that it started stand still, until the end of the block."""
        stopped = self.tree(program)
        for pid, began in stopped.items():
            processes.end_process(pid, began, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid, began in stopped.items():
                processes.end_process(pid, began, signal.SIGCONT)

    def entries(self, name: str) -> list[Entry]:
        """The site's ledger, only looked at."""
        lines = self.made.sites[name].ledger.read_bytes().split(b"\n")[:-1]
        return [json.loads(line) for line in lines]

    def wait_until_trains(self, name: str) -> None:
        """Until a site has begun a round, which stands in its ledger, and has not ended it."""
        before, end = len(self.entries(name)), time.monotonic() + 240
        while True:
            entries = self.entries(name)
            if len(entries) > before and entries[-1]["kind"] == "reserved" and entries[-1].get("count"):
                return
            assert time.monotonic() < end, entries[-3:]
            time.sleep(0.02)

    def check_ledgers(self) -> None:
        """Every site's ledger is in order, up to what the server has kept of it in each run."""
        for name, own in self.made.sites.items():
            assert verify(own.ledger).problems == ()
            for kept in Path(self.made.server.file.folder).glob("*/sites.json"):
                anchor = json.loads(kept.read_text()).get(name, {}).get("anchor")
                assert anchor is None or verify(own.ledger, Anchor.parse(anchor)).problems == (), (name, kept)


@dataclass
class Run:
    """A run on the server, and the program that follows it."""

    hospitals: Hospitals
    name: str
    timeout_s: float = 120.0  # of a round

    @property
    def seconds(self) -> float:
        """How long its last round took."""
        return float(re.findall(r"loss \S+, ([\d.]+) s$", self.log, re.MULTILINE)[-1])

    @property
    def log(self) -> str:
        """The server's log of it."""
        path = self.hospitals.made.run_folder(self.name) / "federation.log"
        return path.read_text() if path.exists() else ""

    def wait_for(self, text: str, since: int, seconds: float = 240.0) -> str:
        """The first line that has ``text`` in it and was written after the log had ``since`` letters."""
        end = time.monotonic() + seconds
        while text not in self.log[since:]:
            program = self.hospitals.made.programs.get(self.name)
            alive = program is not None and program.poll() is None
            assert alive and time.monotonic() < end, f"{self.name} has not said {text!r}: {self.log[since:]}"
            time.sleep(0.1)
        return next(line for line in self.log[since:].splitlines() if text in line)

    def whole_round(self) -> str:
        """Wait for a round of all sites that ends after now."""
        return self.wait_for("3 of 3 sites", len(self.log))


def begin(hospitals: Hospitals, name: str, timeout_s: float = 120.0, **federated: Any) -> Run:
    """Start a run on the server."""
    recipe = hospitals.made.recipe(name, plan=PLAN, timeout_s=timeout_s, **federated)
    hospitals.made.start(name, "server", "run", str(hospitals.made.server.place), str(recipe))
    return Run(hospitals, name, timeout_s)


def long_run(hospitals: Hospitals, round_s: float) -> Run:
    """A run of more rounds than drills, whose quorum is one site, on a machine where a round takes so long."""
    return begin(hospitals, "drilled", round(max(SHORTEST_S, 4 * round_s)), rounds=200, quorum=1)


@contextmanager
def three_hospitals(folder: Path) -> Iterator[Hospitals]:
    """Sites that have joined. At the end all programs are stopped."""
    library = machine.compiled(folder)
    found = {} if library is None else {name: Machine(folder / f"{name}.machine", library) for name in NAMES}
    for own in found.values():
        own.is_so()

    def data_side(made: Federation, name: str) -> None:
        hospitals.made = made
        made.start_data(name, hospitals.env(name))

    with machine.small_disk(folder / SMALL_DISK / "state", 16) as has_small_disk:
        hospitals = Hospitals(None, found, has_small_disk)  # type: ignore[arg-type]  # made below
        with federation(folder, data_side, {name: own.env for name, own in found.items()}):
            yield hospitals
