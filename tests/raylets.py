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


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder for Ray's own files, given by RAY_TMPDIR: its socket paths must stay under 108 characters, and in the
    usual place other runs on this machine would find this cluster and join it."""
    with short_folder() as folder:
        yield from started(folder, cpus, dashboard)


def started(folder: Path, cpus: int, dashboard: int | None) -> Iterator[Raylets]:
    """``raylets`` with Ray's files in ``folder``; ended when the iterator is closed."""
    port = free_port()
    cluster = Raylets(folder, f"127.0.0.3:{port}")
    board = (
        ["--include-dashboard=false"]
        if dashboard is None
        else ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    )
    client = f"--ray-client-server-port={free_port([port])}"
    try:
        head = ["--head", "--node-ip-address=127.0.0.3", f"--port={port}", f"--num-cpus={cpus}", client, *board]
        cluster.start([*head, f"--temp-dir={folder / 'ray'}"], {})
        cluster.wait(1)
        cluster.join(2, cpus)
        yield cluster
    finally:
        cluster.end()
