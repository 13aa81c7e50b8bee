"""What a node of a cluster has, asked on the node itself.

This module is sent to the nodes as text, so that it answers where the package is missing or of another version: it
imports nothing of the package, and torch only to average. ``Probe`` is what ``ray_nodes`` makes an actor of.
"""

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import struct
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchvision", "ray", "sslmed-dist")
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TP_SOCKET_IFNAME")  # name the interface to be used
SIOCGIFADDR = 0x8915  # asks for an interface's IPv4 address
FLOATS = 25_600_000  # what is averaged: as many float32 as a ResNet-50 has parameters, 102 MB
ROUNDS, PATIENCE_S = 3, 60


def version(package: str) -> str | None:
    """Of an installed package; None where it is not there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def digest(package: str = "sslmed_dist") -> str | None:
    """SHA-256 over names and content of the modules of a package, as it would be imported here; None without it."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        return None
    folder, whole = Path(found.origin).parent, hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        whole.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes() + b"\0")
    return whole.hexdigest()


def interfaces() -> dict[str, str]:
    """The IPv4 address of each network interface that has one, by the interface's name."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # it has none
                continue
            found[name] = socket.inet_ntoa(answer[20:24])
    return found


def machine() -> str:
    """What is the same for two nodes on one machine: its name and the id of its start."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()} {boot.read_text().strip() if boot.is_file() else ''}"


class Probe:
    """One node. Whatever goes wrong is an answer, not an exception: a line in words."""

    def __init__(self) -> None:
        self.written: list[Path] = []

    def facts(self, paths: list[str]) -> dict[str, Any]:
        """Versions, memory, interfaces; and which of ``paths`` are there."""
        shm = Path("/dev/shm")
        memory = shutil.disk_usage(shm) if shm.is_dir() else None
        return {
            "machine": machine(),
            "python": platform.python_version(),
            "executable": sys.executable,
            "packages": {name: version(name) for name in PACKAGES},
            "digest": digest(),
            "cpus": len(os.sched_getaffinity(0)),
            "shm": None if memory is None else [memory.total, memory.free],
            "interfaces": interfaces(),
            "named": {name: os.environ[name] for name in INTERFACES if os.environ.get(name)},
            "there": {path: Path(path).exists() for path in paths},
        }

    def now(self) -> float:
        """The node's clock, seconds since 1970."""
        return time.time()

    def write(self, folder: str, name: str, text: str) -> str | None:
        """Write a small file; what is wrong, or None."""
        path = Path(folder) / name
        try:
            with path.open("x") as file:
                self.written.append(path)
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            return None
        except OSError as error:
            return error.strerror or str(error)

    def read(self, folder: str, names: list[str]) -> dict[str, str]:
        """What the small files hold; those that are not seen are left out. A network disk may show a new file late, so
        they are looked for during 5 seconds."""
        end, found = time.monotonic() + 5.0, {}
        while True:
            for name in names:
                try:
                    found[name] = (Path(folder) / name).read_text()
                except OSError:
                    continue
            if len(found) == len(names) or time.monotonic() > end:
                return found
            time.sleep(0.2)

    def clean(self) -> None:
        """Delete what this node wrote."""
        for path in self.written:
            path.unlink(missing_ok=True)

    def port(self) -> int:
        """A free port of this node."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return int(probe.getsockname()[1])

    def average(self, backend: str, address: str, rank: int, world: int) -> float | str:
        """Seconds in which all nodes together average ``FLOATS`` float32; or what is wrong. torch's process group is
        made as training makes it; ``address`` is HOST:PORT of rank 0."""
        try:
            import torch
            import torch.distributed as dist

            patience = timedelta(seconds=PATIENCE_S)
            dist.init_process_group(
                backend, init_method=f"tcp://{address}", rank=rank, world_size=world, timeout=patience
            )
            device = "cuda" if backend == "nccl" else "cpu"
            values, spent = torch.ones(FLOATS, device=device), []
            for _ in range(ROUNDS + 1):  # the first one opens the connections
                dist.barrier()
                begun = time.perf_counter()
                dist.all_reduce(values)
                float(values[0])  # until the device is done
                spent.append(time.perf_counter() - begun)
                values.fill_(1.0)
            dist.destroy_process_group()
            return min(spent[1:])
        except Exception as error:  # of torch, gloo, nccl, the system: all of them are what was asked about
            return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
