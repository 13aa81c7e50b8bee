"""A run folder: ``config.yaml environment.json metrics.jsonl checkpoints/ evaluate/ sites/ pictures/ report.html``."""

import fcntl
import importlib.metadata
import json
import os
import platform
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from sslmed_dist import __version__, config
from sslmed_dist.atomic_files import appending, open_itself, refuse_links, write_atomically
from sslmed_dist.checkpoint import Checkpoints

PACKAGES = ("torch", "torchvision", "numpy", "ray", "flwr")


class RunFolder:
    """One run's files. ``open`` makes the folder, or accepts a folder of the same run, and locks it against a second
    writer."""

    def __init__(self, path: Path, settings: config.Config) -> None:
        self.path, self.config = path, settings
        plan = settings.plan
        self.checkpoints = Checkpoints(path / "checkpoints", plan.keep_last, plan.keep_every)
        self.metrics = Metrics(path / "metrics.jsonl")
        self.lock: int | None = None  # the descriptor of the locked file

    def open(self, resume: str) -> None:
        """Prepare to write. ``resume``: ``auto`` goes on where a run of the same fingerprint stopped; ``never`` refuses
        a folder with checkpoints. ``ValueError`` for another run's folder, for one that another process is writing, for
        one that cannot be written, and for one with a link in it."""
        refuse_links(self.path)
        existing = self.path / "config.yaml"
        if resume == "never" and self.checkpoints.steps():
            raise ValueError(f"{self.path}: holds a run already; choose another run.name, or --resume auto")
        if existing.exists():
            before = config.load(existing)
            if config.fingerprint(before) != config.fingerprint(self.config):
                changed = ", ".join(differences(config.essential(before), config.essential(self.config)))
                raise ValueError(f"{self.path}: holds another run (different: {changed}); choose another run.name")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock = open_itself(self.path / ".lock", os.O_RDWR | os.O_CREAT)  # what it holds stays as it is
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{self.path}: another process is writing this run") from None
        except OSError as error:
            raise ValueError(f"{self.path}: cannot be written: {error.strerror}") from None
        write_atomically(existing, config.dump(self.config).encode())
        write_json(self.path / "environment.json", environment() | {"phantom_data": phantom_data(self.config)})

    def close(self) -> None:
        """Release the lock."""
        self.metrics.close()
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None


def phantom_data(settings: config.Config) -> bool:
    """Whether the data is generated phantoms: ``phantom.json`` lies in its folder, or beside its file, or a packed file
    holds ``phantom.npy``. Results on phantoms have to be called so wherever they are shown, whatever the folder's name.
    ``ValueError`` for a damaged file."""
    if not settings.data.get("root"):
        return False
    root = Path(str(settings.data["root"])).expanduser()
    if root.is_file() and zipfile.is_zipfile(root):
        try:
            with zipfile.ZipFile(root) as archive:
                if "phantom.npy" in archive.namelist():
                    return True
        except zipfile.BadZipFile as error:
            raise ValueError(f"{root}: not a readable .npz: {error}") from error
    return any((folder / "phantom.json").is_file() for folder in (root, root.parent))


class Metrics:
    """``metrics.jsonl``: one scalar a line. Lines are appended; when a run goes on, those after the step of its
    checkpoint are deleted first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: IO[str] | None = None

    def write(self, values: Mapping[str, float], **keys: Any) -> None:
        """Append the scalars, one line each; ``keys`` (step, epoch, round, site, split) are the same in all lines."""
        if self.file is None:
            self.file = appending(self.path)
        now = round(time.time(), 3)
        lines = (json.dumps({"time": now, **keys, "name": name, "value": value}) for name, value in values.items())
        try:
            self.file.write("".join(line + "\n" for line in lines))
            self.file.flush()
        except OSError as error:  # a full disk's own message names no file
            raise ValueError(f"{self.path}: could not be written: {error.strerror}") from None

    def cut(self, step: int) -> None:
        """Delete the lines after ``step`` and a torn last line, so that a resumed run does not repeat itself."""
        self.close()
        if self.path.exists():
            lines = [json.dumps(row) + "\n" for row in self.read() if row.get("step", 0) <= step]
            write_atomically(self.path, "".join(lines).encode())

    def read(self) -> Iterator[dict[str, Any]]:
        """The rows; a torn line (the process was killed while writing) is left out."""
        if not self.path.exists():
            return
        with self.path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    continue
                yield row

    def close(self) -> None:
        """Close the file; the next ``write`` opens it again."""
        if self.file is not None:
            self.file.close()
            self.file = None


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_atomically(path, (json.dumps(value, indent=1) + "\n").encode())


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    """Dotted paths at which two trees of plain data differ."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        # Key by key; a key that one of them lacks counts as None there.
        keys: Iterable[str] = sorted(before.keys() | after.keys())
        nested = (differences(before.get(k), after.get(k), f"{path}.{k}" if path else k) for k in keys)
        return [dotted for paths in nested for dotted in paths]
    return [] if before == after else [path]


def environment() -> dict[str, Any]:
    """What the run ran on: versions and hardware, without host, user or path names."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "sslmed_dist": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": gpu(),
        "packages": versions,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def processor() -> str:
    """The processor's model name."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def gpu() -> str | None:
    """The first CUDA device's name, if torch sees one."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
