"""Where programs of one start run: their folders, their environment, their logs.

Nothing is sent to Flower's makers, nothing is installed at run time, nothing is kept in the user's home, and no program
starts in the app's folder (Ray's workers would import what lies there in place of the app that was sent).
"""

import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Protocol

from sslmed_dist.drivers.processes import Processes
from sslmed_dist.federation.messages import LAUNCHER
from sslmed_dist.federation.registered import LISTED
from sslmed_dist.printable import say
from sslmed_dist.training.stopping import started_at

PORT = "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",  # seconds; Flower's own is 1
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "PYTHONUNBUFFERED": "1",
}
NOT_INHERITED = ("RAY_ADDRESS", "PYTHONPATH", PORT, LISTED)


MOST_RENEWED, RENEWED_WITHIN_S, FIRST_PAUSE_S = 6, 3600.0, 0.5


class Lasting(Protocol):
    """What has to last as long as a federation: a program, or a server elsewhere on this machine."""

    def poll(self) -> int | None:
        """None as long as it does."""


@dataclass
class Renewed:
    """A program that is started again where it ends by itself, since it holds nothing. What it had started may end with
    it, and is to be resumed. At most ``MOST_RENEWED`` times within ``RENEWED_WITHIN_S`` seconds, after pauses that
    double from ``FIRST_PAUSE_S``; each is said. ``begin`` starts it, ``log`` is where it says what went wrong."""

    name: str
    log: Path
    begin: Callable[[], Popen[bytes]]
    process: Popen[bytes] = field(init=False)
    ends: list[float] = field(default_factory=list)  # when it ended lately, by the monotonic clock
    due: float | None = None  # when it is to be started again

    def __post_init__(self) -> None:
        self.process = self.begin()

    def poll(self) -> int | None:
        """None as long as it runs or is about to; the exit code of one that has ended too often."""
        code, now = self.process.poll(), time.monotonic()
        if code is None:
            return None
        if self.due is None:
            self.ends = [end for end in self.ends if now - end < RENEWED_WITHIN_S]
            if len(self.ends) == MOST_RENEWED:
                return code
            self.due = now + FIRST_PAUSE_S * 2 ** len(self.ends)
            self.ends.append(now)
            say(f"{self.name} has ended by itself (exit code {code}) and is started again; see {self.log}")
        if now >= self.due:
            self.process, self.due = self.begin(), None
        return None


@dataclass
class Place:
    """One start: the folder whose ``logs/`` the programs write to, the app's folder, the folder of the programs' own
    files, and the processes."""

    run: Path
    app: Path
    folder: Path
    processes: Processes
    servers: dict[str, Lasting] = field(default_factory=dict)  # by name, those that have to last as long as it

    def home(self, name: str) -> Path:
        """The folder of the program ``name``: its working directory and its FLWR_HOME."""
        home = self.folder / name
        home.mkdir(exist_ok=True, mode=0o700)
        return home

    def failed(self) -> list[str]:
        """The names of the programs that have to last and have ended; their logs are called so."""
        return [name for name, server in self.servers.items() if server.poll() is not None]

    def start(self, name: str, command: list[str], extra: Mapping[str, str] | None = None) -> Popen[bytes]:
        """Start a program of this Python installation, ``extra`` added to its environment. Its output goes to
        ``logs/NAME.log``."""
        home = self.home(name)
        env = self.environment(home) | dict(extra or {})
        return self.processes.start(command, env=env, cwd=home, log=self.run / "logs" / f"{name}.log")

    def module(
        self, name: str, module: str, arguments: list[str], extra: Mapping[str, str] | None = None
    ) -> Popen[bytes]:
        """Start a module of the app's folder as the program ``name``."""
        path = {"PYTHONPATH": str(self.app)}
        return self.start(name, [sys.executable, "-m", module, *arguments], {**(extra or {}), **path})

    @property
    def threads(self) -> int:
        """How many threads a program may use."""
        return 1

    def environment(self, home: Path) -> dict[str, str]:
        """The environment of every program. The number of threads decides the last bits of the results, so it is the
        same in all runtimes."""
        private = {"FLWR_HOME": str(home), "RAY_TMPDIR": str(self.folder), "OMP_NUM_THREADS": str(self.threads)}
        inherited = {key: value for key, value in os.environ.items() if key not in NOT_INHERITED}
        launcher = f"{os.getpid()} {started_at(os.getpid())}"
        return {**inherited, **QUIET, **private, "PATH": search_path(), LAUNCHER: launcher}


def search_path() -> str:
    """Where programs are looked for: first beside this Python, whose environment need not be the active one."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"


def program(name: str) -> str:
    """The path of one of Flower's programs. ``ValueError`` when it is not installed."""
    executable = shutil.which(name, path=search_path())
    if executable is None:
        raise ValueError(f"{name}: no such program; pip install 'sslmed-dist[flower]'")
    return executable
