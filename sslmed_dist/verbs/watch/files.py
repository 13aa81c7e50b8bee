"""What the files of a run folder say, beside its scalars. Nothing is written or locked."""

import re
from pathlib import Path
from typing import NamedTuple

from sslmed_dist import config

SAVED = re.compile(r"(?:step|round)_(\d+)\.pt")
LOG_LINE = re.compile(r"\S+ (?:WARNING|ERROR) (.*)")
LONGEST_LOG = 2**22  # bytes of federation.log from its end


class Saved(NamedTuple):
    """The newest checkpoint: its step (of a federation: round) and when it was written, seconds since 1970."""

    number: int
    time: float


def settings_of(folder: Path) -> config.Config | None:
    """The configuration of a run folder; None where a start has made the folder and not written it yet. ``ValueError``
    for what is no run folder."""
    if (folder / "config.yaml").is_file():
        return config.load(folder / "config.yaml")
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such run folder")
    if not any((folder / name).exists() for name in (".lock", "metrics.jsonl", "checkpoints", "logs")):
        inside = sorted(file.parent.name for file in folder.glob("*/config.yaml"))
        runs = f"; runs in it: {', '.join(inside[:5])}" if inside else ""
        raise ValueError(f"{folder}: not a run folder: it has no config.yaml{runs}")
    return None


def newest_checkpoint(folder: Path) -> Saved | None:
    """By number; None where there is none. A file that vanishes meanwhile is left out."""
    found = []
    for file in folder.glob("*.pt"):
        match = SAVED.fullmatch(file.name)
        try:
            found += [Saved(int(match[1]), file.stat().st_mtime)] if match else []
        except FileNotFoundError:
            continue
    return max(found, default=None)


def log_warnings(path: Path) -> list[str]:
    """What a log says at level WARNING and above, in its last ``LONGEST_LOG`` bytes."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LONGEST_LOG))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    return [match[1] for line in lines if (match := LOG_LINE.match(line))]


def held(lock: Path) -> bool:
    """Whether a process of this machine has the lock: as the system lists it, because taking the lock to find out
    could make a run that starts at that moment give up."""
    try:
        number = str(lock.stat().st_ino)
        listed = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:  # no lock yet, or not Linux
        return False
    # "1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF"
    words = (line.split() for line in listed)
    return any(
        len(word) > 5 and "FLOCK" in word and "WRITE" in word and word[5].rpartition(":")[2] == number for word in words
    )
