"""Two or more nodes of a Ray cluster on this machine, on loopback addresses of their own."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sslmed_dist.drivers.processes import free_port
from tests.drivers import family

ROOT = Path(__file__).parents[1]
RAY = str(Path(sys.executable).parent / "ray")
START_S = 180.0
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "OMP_NUM_THREADS": "1"}
QUIET |= {"RAY_raylet_start_wait_time_s": "180"}  # a busy machine takes longer than Ray's 30 s


@dataclass
class Raylets:
    """A cluster. ``address`` is for drivers, ``environment`` has it; ``nodes`` are the started programs in order."""

    folder: Path
    address: str
    nodes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """That of a process which is to join."""
        return (
            os.environ | QUIET | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": self.address, "RAY_TMPDIR": str(self.folder)}
        )

    def start(self, arguments: list[str], env: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        """``ray start --block`` with these arguments."""
        command = [RAY, "start", "--block", "--object-store-memory=100000000", "--disable-usage-stats", *arguments]
        environment = {key: value for key, value in self.environment.items() if key != "RAY_ADDRESS"} | dict(env)
        with (self.folder / f"node-{len(self.nodes)}.log").open("w") as log:
            node = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=self.folder
            )
        self.nodes.append(node)
        return node

    def join(self, number: int, cpus: int = 2, env: Mapping[str, str] | None = None) -> None:
        """Start one more node, 127.0.0.NUMBER, and wait until the cluster has it."""
        before = self.alive()
        ip = f"--node-ip-address=127.0.0.{number}"
        self.start([f"--address={self.address}", ip, f"--num-cpus={cpus}"], env or {})
        self.wait(before + 1)

    def alive(self) -> int:
        """How many nodes the cluster counts; 0 while it does not answer."""
        from ray._raylet import GcsClient

        try:
            nodes = GcsClient(address=self.address).get_all_node_info(timeout=2)
        except Exception:  # it is starting
            return 0
        return sum(node.state == 0 for node in nodes.values())

    def wait(self, count: int) -> None:
        """Until the cluster counts so many nodes."""
        end = time.monotonic() + START_S
        while self.alive() < count:
            log = self.folder / f"node-{len(self.nodes) - 1}.log"
            assert self.nodes[-1].poll() is None, f"ray start ended: {log.read_text()[-2000:]}"
            assert time.monotonic() < end, f"{count} nodes are not there after {START_S} s: {log.read_text()[-2000:]}"
            time.sleep(0.2)

    def end(self) -> None:
        """End all nodes and all that they have started."""
        started = {}
        for node in self.nodes:
            started |= family.descendants(node.pid)
            node.terminate()
        for node in self.nodes:
            try:
                node.wait(20)
            except subprocess.TimeoutExpired:
                node.kill()
        family.end(started)


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder for Ray's own files, given by RAY_TMPDIR: its socket paths must stay under 108 characters, and in the
    usual place other runs on this machine would find this cluster and join it."""
    folder = Path(tempfile.mkdtemp(prefix="sslr-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def raylets(cpus: int = 2, dashboard: int | None = None) -> Iterator[Raylets]:
    """A head, 127.0.0.3, and one more node, 127.0.0.2, each with ``cpus``. ``dashboard``: the port of the jobs API."""
    board = ["--include-dashboard=false"]
    if dashboard is not None:
        board = ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    with short_folder() as folder:
        port = free_port()
        cluster = Raylets(folder, f"127.0.0.3:{port}")
        client = f"--ray-client-server-port={free_port([port])}"
        try:
            head = ["--head", "--node-ip-address=127.0.0.3", f"--port={port}", f"--num-cpus={cpus}", client, *board]
            cluster.start([*head, f"--temp-dir={folder / 'ray'}"], {})
            cluster.wait(1)
            cluster.join(2, cpus)
            yield cluster
        finally:
            cluster.end()
