"""What a site throws away: what belongs to runs that are over, by its own rule (``keep`` in its file), each time as an
entry of its ledger.

The door needs what it kept of a run to answer a round again, to compare models and to go on from its optimiser. A run
whose folder was pruned is over for this site: it refuses what comes of it. The list of the last answered rounds stays,
and so does everything in the ledger.
"""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sslmed_dist.atomic_files import write_atomically
from sslmed_dist.federation.ledger import Ledger, is_digest
from sslmed_dist.federation.policy import Refusal
from sslmed_dist.federation.site_file import SiteFile

MINUTE_S, DAY_S = 60.0, 86400.0
MARK, ANSWERED = "pruned", "answered.json"  # what stays of a folder
OLD, MANY = "unused for more than keep.days", "all runs together take more than keep.gigabytes"


@dataclass(frozen=True)
class Kept:
    """A run's folder: when something in it was last written (seconds since 1970), and its bytes."""

    folder: Path
    written: float
    size: int


def require_kept(folder: Path) -> None:
    """``Refusal`` for a run of which the site has thrown away what it needs to go on."""
    if (folder / MARK).exists():
        raise Refusal("this site has deleted what it kept of this run, which is over here")


def kept_runs(site: SiteFile) -> list[Kept]:
    """The runs that were not pruned, the one that was written longest ago first."""
    found = []
    for folder in (Path(site.state) / "runs").glob("*"):
        if folder.is_symlink() or not folder.is_dir() or not is_digest(folder.name) or (folder / MARK).exists():
            continue
        stats = [os.lstat(path) for path in folder.rglob("*")]
        written = max((stat.st_mtime for stat in stats), default=folder.stat().st_mtime)
        found.append(Kept(folder, written, sum(stat.st_size for stat in stats)))
    return sorted(found, key=lambda run: (run.written, run.folder.name))


def due(site: SiteFile, now: float) -> list[tuple[Kept, str]]:
    """The runs that the site's rule throws away now, and why. The one that was written last stays: it may be going
    on."""
    runs = kept_runs(site)
    size, runs = sum(run.size for run in runs), runs[:-1]
    old = [run for run in runs if now - run.written > site.keep.days * DAY_S]
    size -= sum(run.size for run in old)
    chosen = [(run, OLD) for run in old]
    for run in runs[len(old) :]:
        if size <= site.keep.gigabytes * 1e9:
            break
        chosen.append((run, MANY))
        size -= run.size
    return chosen


def prune(site: SiteFile, ledger: Ledger, now: float | None = None) -> list[str]:
    """Throw away what is due, and finish what a crash has left half done; a line for each run. The ledger's entry comes
    first, then the mark that lets the door refuse the run, then the files."""
    for mark in (Path(site.state) / "runs").glob(f"*/{MARK}"):
        empty(mark.parent)
    lines = []
    for run, why in due(site, time.time() if now is None else now):
        ledger.append("pruned", configuration=run.folder.name, bytes=run.size, reason=why)
        write_atomically(run.folder / MARK, b"")
        empty(run.folder)
        lines.append(f"run {run.folder.name[:12]}: {run.size / 1e6:.1f} MB deleted ({why})")
    return lines


def empty(folder: Path) -> None:
    """Delete what is in a run's folder, except what stays."""
    for path in folder.iterdir():
        if path.name in (MARK, ANSWERED):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@dataclass
class Every:
    """Does something at the first call and then at calls that come ``seconds`` after it was done last."""

    seconds: float
    work: Callable[[], None]
    clock: Callable[[], float] = time.monotonic
    last: float | None = None

    def __call__(self) -> None:
        """Do it where it is time."""
        now = self.clock()
        if self.last is None or now - self.last >= self.seconds:
            self.last = now
            self.work()
