"""Resident memory of a process and of all processes below it, from /proc (Linux)."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

FIELDS = ("Rss", "Pss")  # Pss: a page that several processes share counts once in all


def family(root: int) -> list[int]:
    """A process and all below it."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # it has ended
                continue
    found = [root]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def resident(processes: list[int], field: str) -> int:
    """The sum of Rss, or of Pss (a shared page counts once), in bytes."""
    total = 0
    for process in processes:
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
    return total


def peaks(root: int, work: Callable[[], Any]) -> dict[str, int]:
    """The largest sums over ``root`` and all below it while ``work`` runs, looked at 20 times a second."""
    largest, done = dict.fromkeys(FIELDS, 0), threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            processes = family(root)
            for field in FIELDS:
                largest[field] = max(largest[field], resident(processes, field))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return largest
