"""Two Ray nodes on one machine, each with an address of its own on the loopback interface."""

import contextlib
import os
import random
import shutil
import signal
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from sslmed_dist.drivers.processes import Processes, check_port, end_process
from tests.drivers import family

ROOT = Path(__file__).parents[2]
START_S = 180.0
RAY = str(Path(sys.executable).parent / "ray")


def environment(**more: str) -> dict[str, str]:
    """This process's environment with quiet Ray settings and the package importable."""
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "OMP_NUM_THREADS": "1"}
    # On a busy machine Ray would wait too short a time for its own programs, and end ours for want of memory.
    quiet |= {"RAY_raylet_start_wait_time_s": "120", "RAY_memory_monitor_refresh_ms": "0"}
    return os.environ | quiet | {"PYTHONPATH": str(ROOT)} | more


def low_ports(count: int) -> list[int]:
    """Free ports below those that the system gives to whoever connects: Ray takes them only after some seconds."""
    free: list[int] = []
    while len(free) < count:
        with contextlib.suppress(ValueError):
            port = random.SystemRandom().randrange(20000, 32000)
            free += [check_port(port, "port")] if port not in free else []
    return free


class Nodes:
    """A head on 127.0.0.3 and, once ``join`` was called, a second node on 127.0.0.2, of ``cpus`` CPUs each. Their
    programs are daemons, known by a token in their environment (``processes``). ``jobs``: with the dashboard, which
    takes jobs, a gigabyte and half a minute."""

    def __init__(self, folder: Path, cpus: int = 2, jobs: bool = False) -> None:
        self.folder, self.cpus = folder, cpus
        self.port, dashboard, client = low_ports(3)
        # Ray's socket paths must stay under 108 characters, so its folder is a short one.
        self.temporary = Path("/tmp") / f"sslmed-nodes-{os.getpid()}"
        head = [
            "--head",
            f"--port={self.port}",
            f"--temp-dir={self.temporary}",
            f"--include-dashboard={str(jobs).lower()}",
        ]
        self.head = self.start(
            "127.0.0.3", *head, f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"
        )
        self.second: Processes | None = None
        self.api = f"http://127.0.0.1:{dashboard}" if jobs else ""
        self.env = {"RAY_ADDRESS": f"127.0.0.3:{self.port}", "RAY_API_SERVER_ADDRESS": self.api}

    def start(self, address: str, *options: str) -> Processes:
        """``ray start`` of one node."""
        sizes = [f"--num-cpus={self.cpus}", "--object-store-memory=200000000", "--disable-usage-stats"]
        command = [RAY, "start", f"--node-ip-address={address}", *options, *sizes]
        node = Processes(f"{os.getpid()}-{address}-{time.monotonic()}")
        node.start(command, env=environment(), cwd=self.folder, log=self.folder / f"{address}.log")
        return node

    def wait(self) -> None:
        """Until the head is up, and its jobs API answers where it has one."""
        deadline, starting = time.monotonic() + START_S, self.head.started[0]
        while time.monotonic() < deadline:
            assert not starting.poll(), (self.folder / "127.0.0.3.log").read_text()[-2000:]
            if not self.api and starting.poll() == 0:
                return
            try:
                if self.api:
                    urllib.request.urlopen(f"{self.api}/api/version", timeout=2)
                    return
            except (urllib.error.URLError, OSError):
                pass
            time.sleep(0.5)
        raise AssertionError(f"no Ray head after {START_S} s")

    def join(self) -> None:
        """Start the second node, and once more where a busy machine has not let it in."""
        for _ in range(2):
            self.second = self.start("127.0.0.2", f"--address=127.0.0.3:{self.port}")
            if self.second.started[0].wait(START_S) == 0:
                return
            self.second.stop()
        raise AssertionError((self.folder / "127.0.0.2.log").read_text()[-2000:])

    def lose(self) -> None:
        """SIGKILL to all that runs on the second node."""
        assert self.second is not None
        self.second.stop(patience_s=-1.0)

    def workers(self) -> list[tuple[int, int]]:
        """(id, start time) of the training workers on both nodes."""
        found = [item for node in (self.head, self.second) if node is not None for item in node.ours()]
        return [item for item in found if family.command_line(item[0]).startswith("ray::RayTrainWorker")]

    def signal_worker(self, number: signal.Signals) -> bool:
        """Send a signal to the last of the training workers; whether there is one."""
        found = self.workers()
        for item in found[-1:]:
            end_process(*item, number)
        return bool(found)

    def close(self) -> None:
        """End both nodes."""
        for node in (self.second, self.head):
            if node is not None:
                node.stop()
        shutil.rmtree(self.temporary, ignore_errors=True)
