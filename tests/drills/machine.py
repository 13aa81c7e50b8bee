"""A machine that is out of order, for single programs: their clock is wrong, their disk slow (``machine.c``)."""

import os
import shutil
import struct
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("machine.c")


@dataclass(frozen=True)
class Machine:
    """What programs with ``env`` run on. ``told`` is the file that they look at."""

    told: Path
    library: Path

    @property
    def env(self) -> Mapping[str, str]:
        """To be added to the environment of a program."""
        return {"LD_PRELOAD": str(self.library), "SSLMED_DRILL_MACHINE": str(self.told)}

    def is_so(self, ahead: float = 0.0, slower: float = 0.0) -> None:
        """From now on its wall clock is so many seconds ahead, and each fsync takes so many seconds longer."""
        with self.told.open("r+b" if self.told.exists() else "wb") as file:
            file.write(struct.pack("2d", ahead, slower))


def compiled(folder: Path) -> Path | None:
    """The library, None where this machine has no C compiler."""
    compiler, library = shutil.which("cc"), folder / "machine.so"
    if compiler is None:
        return None
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE)], check=True)
    return library


@contextmanager
def small_disk(place: Path, megabytes: int) -> Iterator[bool]:
    """A disk of its own of this size at ``place``; whether this user may make one (root alone, outside containers)."""
    place.mkdir(parents=True, mode=0o700)
    options = f"size={megabytes}m,mode=0700"
    mount = ["mount", "-t", "tmpfs", "-o", options, "sslmed-drill", str(place)]
    made = os.getuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield made
    finally:
        if made:
            subprocess.run(["umount", str(place)], check=True)


@contextmanager
def full(place: Path) -> Iterator[None]:
    """The disk at ``place`` has no byte left, until the end of the block."""
    filler = place / "filler"
    try:
        with filler.open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                while True:
                    try:
                        if file.write(bytes(size)) < size:
                            break
                    except OSError:
                        break
        yield
    finally:
        filler.unlink()
