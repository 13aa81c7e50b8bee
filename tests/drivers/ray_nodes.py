"""Ray nodes on this machine, each with an address of its own on the loopback interface: the one place that starts
them for tests."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from sslmed_dist.drivers.processes import Processes, check_port, end_process
from tests.drivers import family

ROOT = Path(__file__).parents[2]
START_S = 180.0
RAY = str(Path(sys.executable).parent / "ray")
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "OMP_NUM_THREADS": "1"}
# On a busy machine Ray would wait too short a time for its own programs, and end ours for want of memory.
QUIET |= {"RAY_raylet_start_wait_time_s": "180", "RAY_memory_monitor_refresh_ms": "0"}
HEAD, SECOND = 3, 2  # of 127.0.0.N


def environment(**more: str) -> dict[str, str]:
    """This process's environment with quiet Ray settings, the package importable, and no cluster to join but one that
    ``more`` names."""
    own = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return own | QUIET | {"PYTHONPATH": str(ROOT)} | more


def low_ports(count: int) -> list[int]:
    """Free ports below those that the system gives to whoever connects: Ray takes them only after some seconds."""
    free: list[int] = []
    while len(free) < count:
        with contextlib.suppress(ValueError):
            port = random.SystemRandom().randrange(20000, 32000)
            free += [check_port(port, "port")] if port not in free else []
    return free


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A folder for Ray's own files (RAY_TMPDIR): its socket paths must stay under 108 characters, and in the usual
    place other runs on this machine would find this cluster and join it."""
    folder = Path(tempfile.mkdtemp(prefix="sslr-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Nodes:
    """A head on 127.0.0.3 and, once ``join`` was called, more nodes, of ``cpus`` CPUs each. Their programs are daemons,
    known by a token in their environment (``processes``). ``jobs``: with the dashboard, which takes jobs, a gigabyte
    and half a minute. ``temporary`` is for Ray's own files (``short_folder``). ``env`` is for who joins."""

    def __init__(self, folder: Path, temporary: Path, cpus: int = 2, jobs: bool = False) -> None:
        self.folder, self.temporary, self.cpus = folder, temporary, cpus
        self.port, dashboard, client = low_ports(3)
        self.api = f"http://127.0.0.1:{dashboard}" if jobs else ""
        self.env = {"RAY_ADDRESS": f"127.0.0.{HEAD}:{self.port}", "RAY_API_SERVER_ADDRESS": self.api}
        ports = [f"--port={self.port}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
        board = f"--include-dashboard={str(jobs).lower()}"
        self.nodes = {HEAD: self.start(HEAD, "--head", *ports, f"--temp-dir={temporary / 'ray'}", board)}

    def start(self, number: int, *options: str, env: Mapping[str, str] | None = None) -> Processes:
        """``ray start`` of the node 127.0.0.``number``."""
        # Jobs are submitted to a node's agent. Its own port, 52365, may be that of another cluster of this machine.
        (agent,) = low_ports(1)
        sizes = [f"--dashboard-agent-listen-port={agent}", f"--num-cpus={self.cpus}"]
        sizes += ["--object-store-memory=200000000", "--disable-usage-stats"]
        command = [RAY, "start", f"--node-ip-address=127.0.0.{number}", *options, *sizes]
        node = Processes(f"{os.getpid()}-{number}-{time.monotonic()}")
        own = environment(RAY_TMPDIR=str(self.temporary)) | dict(env or {})
        node.start(command, env=own, cwd=self.folder, log=self.log(number))
        return node

    def log(self, number: int) -> Path:
        """What ``ray start`` of a node has said."""
        return self.folder / f"127.0.0.{number}.log"

    def wait(self) -> None:
        """Until the head is up, and its jobs API answers where it has one."""
        deadline, starting = time.monotonic() + START_S, self.nodes[HEAD].started[0]
        while time.monotonic() < deadline:
            assert not starting.poll(), self.log(HEAD).read_text()[-2000:]
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

    def join(self, number: int = SECOND, env: Mapping[str, str] | None = None) -> None:
        """Start one more node, 127.0.0.``number``, once more where a busy machine has not let it in, and wait until the
        cluster counts it. ``env`` is added to its environment."""
        before, deadline = self.alive(), time.monotonic() + START_S
        for _ in range(2):
            node = self.nodes[number] = self.start(number, f"--address={self.env['RAY_ADDRESS']}", env=env)
            if node.started[0].wait(START_S) == 0:
                while self.alive() <= before:  # one that was lost a moment ago may still count
                    assert time.monotonic() < deadline, self.log(number).read_text()[-2000:]
                    time.sleep(0.2)
                return
            node.stop()
        raise AssertionError(self.log(number).read_text()[-2000:])

    def alive(self) -> set[bytes]:
        """The ids of the nodes that the cluster counts."""
        from ray._raylet import GcsClient

        known = GcsClient(address=self.env["RAY_ADDRESS"]).get_all_node_info(timeout=20)
        return {node.node_id for node in known.values() if node.state == 0}

    def lose(self, number: int = SECOND) -> None:
        """SIGKILL to all that runs on a node."""
        self.nodes[number].stop(patience_s=-1.0)

    def submit(self, *arguments: str, folder: Path) -> "subprocess.CompletedProcess[str]":
        """``ray job submit ARGUMENTS`` in ``folder``."""
        command, deadline = [RAY, "job", "submit", *arguments], time.monotonic() + START_S
        while True:
            done = subprocess.run(
                command, env=environment(**self.env), text=True, capture_output=True, timeout=400, cwd=folder
            )
            # The head's job agent comes up some seconds after its dashboard.
            if "No available agent" not in done.stdout + done.stderr or time.monotonic() > deadline:
                return done
            time.sleep(2)

    def workers(self) -> list[tuple[int, int]]:
        """(id, start time) of the training workers on all nodes, the head's first."""
        found = [item for node in self.nodes.values() for item in node.ours()]
        return [item for item in found if family.command_line(item[0]).startswith("ray::RayTrainWorker")]

    def signal_worker(self, number: signal.Signals) -> bool:
        """Send a signal to the last of the training workers; whether there is one."""
        found = self.workers()
        for item in found[-1:]:
            end_process(*item, number)
        return bool(found)

    def close(self) -> None:
        """End all nodes."""
        for node in reversed(self.nodes.values()):
            node.stop()


@contextlib.contextmanager
def started_nodes(folder: Path, others: int = 1, cpus: int = 2, jobs: bool = False) -> Iterator[Nodes]:
    """A head and, where ``others`` is 1, a second node, until the end of the block. Their logs go to ``folder``."""
    with short_folder() as temporary:
        nodes = Nodes(folder, temporary, cpus, jobs)
        try:
            nodes.wait()
            for number in range(SECOND, SECOND + others):
                nodes.join(number)
            yield nodes
        finally:
            nodes.close()
