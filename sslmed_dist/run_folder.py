"""A run folder: ``config.yaml environment.json metrics.jsonl checkpoints/ evaluate/ sites/ pictures/ report.html``."""

import fcntl
import importlib.metadata
import json
import os
import platform
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from sslmed_dist import __version__, config
from sslmed_dist.atomic_files import appending, open_itself, refuse_links, write_atomically, writing
from sslmed_dist.checkpoint import Checkpoints
from sslmed_dist.json_files import METRIC_KEYS, Lines, read_object
from sslmed_dist.printable import say
from sslmed_dist.trackers import followers
from sslmed_dist.trackers.tracker import IDS, Follower
from sslmed_dist.zip_files import open_zip

STARTED = {
    "config.yaml",
    "environment.json",
    "samples.jsonl",
    "notices.txt",
    ".lock",
    IDS,
    "logs",
}  # what a start writes down
# After a kill of its driver Ray takes some seconds to end the workers; the first of them holds the folder's lock.
ORPHANS_S = 60.0
PACKAGES = ("torch", "torchvision", "numpy", "ray", "flwr")
NOISE = "synthetic"  # the dataset that has no image


class OtherData(ValueError):
    """The folder's run differs from this one in nothing but what came from its data."""


class RunFolder:
    """One run's files. ``open`` makes the folder, or accepts a folder of the same run, and locks it against a second
    writer. ``describe`` writes ``config.yaml`` and ``environment.json``."""

    def __init__(self, path: Path, settings: config.Config) -> None:
        self.path, self.config = path, settings
        plan = settings.plan
        self.checkpoints = Checkpoints(path / "checkpoints", plan.keep_last, plan.keep_every)
        self.metrics = Metrics(path / "metrics.jsonl", followers(settings, path))
        self.lock: int | None = None  # the descriptor of the locked file

    def open(self, resume: str) -> None:
        """Prepare to write. ``resume``: ``auto`` goes on where a run of the same fingerprint stopped; ``never`` refuses
        a folder with checkpoints. ``ValueError`` for another run's folder (unless it was ``only_begun``), for one that
        another process is writing, for one that cannot be written, and for one with a link in it."""
        self.accept(resume)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock = open_itself(self.path / ".lock", os.O_RDWR | os.O_CREAT)  # what it holds stays as it is
            ray = self.config.driver == "ray" and self.config.ray.most > 0
            if not self.locked(ORPHANS_S if ray else 0.0):
                raise ValueError(f"{self.path}: another process is writing this run")
        except OSError as error:
            raise ValueError(f"{self.path}: cannot be written: {error.strerror}") from None
        self.accept(resume)  # the process that was waited for may have written

    def accept(self, resume: str) -> None:
        """``ValueError`` where the folder as it is cannot take this run; ``open`` says when."""
        refuse_links(self.path)
        existing = self.path / "config.yaml"
        if resume == "never":
            self.require_unbegun()
        if existing.exists():
            before = config.load(existing)
            if config.fingerprint(before) != config.fingerprint(self.config) and not self.only_begun():
                raise self.told_apart(before)

    def require_unbegun(self) -> None:
        """``ValueError`` where the folder holds a checkpoint."""
        if self.checkpoints.steps():
            raise ValueError(f"{self.path}: holds a run already; choose another run.name, or --resume auto")

    def locked(self, wait_s: float) -> bool:
        """Take the lock, waiting ``wait_s`` seconds at most for the process that holds it to end; whether it worked."""
        end, told = time.monotonic() + wait_s, False
        while True:
            try:
                fcntl.flock(self.lock or 0, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() >= end:
                    return False
                if not told:
                    say(
                        f"{self.path.name}: another process is writing this run; waiting up to {wait_s:g} s for its end"
                    )
                told = True
                time.sleep(0.1)

    def only_begun(self) -> bool:
        """Whether nothing lies in the folder but what a start writes down: its run failed before the first step, or a
        mistake in its settings ended it, and another may take its place."""
        kept = {file.name for file in self.path.iterdir() if file.is_dir() or file.stat().st_size}
        return kept <= STARTED

    def told_apart(self, before: config.Config) -> ValueError:
        """The error that says what makes the run of the settings ``before`` another one than this: ``OtherData`` where
        that is nothing but what came from its data."""
        paths = differences(config.essential(before), config.essential(self.config))
        changed = ", ".join(paths) or "keys that are null in one and not there in the other"
        if paths and all(config.may(path, "resolved") for path in paths):
            come = "come from the data and differ" if len(paths) > 1 else "comes from the data and differs"
            said = f"holds a run on other data ({changed} {come}); allowed: the same data, or another run.name"
            return OtherData(f"{self.path}: {said}")
        only_length = bool(paths) and all(path == "plan.epochs" or path.startswith("optim.") for path in paths)
        longer = "; to train on, give the new run run.continue_from=RUN" if only_length else ""
        return ValueError(f"{self.path}: holds another run (different: {changed}); choose another run.name{longer}")

    def describe(self, steps_per_epoch: int | None = None) -> None:
        """Write down the settings, what they run on and, where the data decides it, how many steps an epoch has."""
        write_atomically(self.path / "config.yaml", config.dump(self.config).encode())
        facts = environment() | {"phantom_data": phantom_data(self.config)}
        facts |= {} if steps_per_epoch is None else {"steps_per_epoch": steps_per_epoch}
        write_json(self.path / "environment.json", facts)

    def close(self) -> None:
        """Release the lock."""
        self.metrics.close()
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None


def phantom_data(settings: config.Config) -> bool:
    """Whether the data of a run is generated: phantoms (``phantoms_at``), or noise in place of images."""
    root = settings.data.get("root")
    if settings.data.get("name") == NOISE:
        return True
    return bool(root) and phantoms_at(Path(str(root)).expanduser())


def phantoms_at(root: Path) -> bool:
    """Whether the data at ``root`` is generated phantoms: ``phantom.json`` lies in its folder, or beside its file, a
    packed file holds ``phantom.npy``, or the ``pack.json`` of a folder says so. Results on phantoms have to be called
    so wherever they are shown, whatever the folder's name. ``ValueError`` for a damaged file."""
    if root.is_file() and zipfile.is_zipfile(root):
        try:
            with open_zip(root) as archive:
                if "phantom.npy" in archive.namelist():
                    return True
        except zipfile.BadZipFile as error:
            raise ValueError(f"{root}: not a readable .npz: {error}") from error
    if (root / "pack.json").is_file() and read_object(root / "pack.json").get("phantom") is True:
        return True
    return any((folder / "phantom.json").is_file() for folder in (root, root.parent))


class Metrics:
    """``metrics.jsonl``: one scalar a line. Lines are appended; when a run goes on, those after the step of its
    checkpoint are deleted first. ``followers`` get every row as well (``trackers.followers``)."""

    def __init__(self, path: Path, followers: Sequence[Follower] = ()) -> None:
        self.path = path
        self.file: IO[str] | None = None
        self.followers = tuple(followers)

    def write(self, values: Mapping[str, float], **keys: Any) -> None:
        """Append the scalars, one line each; ``keys`` (step, epoch, round, site, split) are the same in all lines."""
        if self.file is None:
            self.file = appending(self.path)
        now = round(time.time(), 3)
        rows = [{"time": now, **keys, "name": name, "value": value} for name, value in values.items()]
        for follower in self.followers:
            follower.write(rows, before=self.read())
        try:
            self.file.write("".join(json.dumps(row) + "\n" for row in rows))
            self.file.flush()
        except OSError as error:  # a full disk's own message names no file
            raise ValueError(f"{self.path}: could not be written: {error.strerror}") from None

    def cut(self, step: int) -> None:
        """Delete the lines after ``step`` and a torn last line, so that a resumed run does not repeat itself."""
        self.close()
        if self.path.exists():
            lines = read_metrics(self.path)
            with writing(self.path) as file:
                for _, row in lines:
                    if (row.get("step") or 0) <= step:
                        file.write(json.dumps(row).encode() + b"\n")
            if lines.torn:
                say(f"{self.path}: the last line is torn and was left out")

    def read(self) -> Iterator[dict[str, Any]]:
        """The rows of ``read_metrics``; none where the file is not there."""
        if self.path.exists():
            yield from (row for _, row in read_metrics(self.path))

    def close(self) -> None:
        """Close the file; the next ``write`` opens it again."""
        if self.file is not None:
            self.file.close()
            self.file = None
        for follower in self.followers:
            follower.close()


def read_metrics(path: Path) -> Lines:
    """The rows of one ``metrics.jsonl``, read as they are asked for. ``ValueError`` names a line that is no row, and
    its field; only the last one may be torn, since the process was killed while it wrote it."""
    return Lines(path, {"name": str, "value": float}, METRIC_KEYS)


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
