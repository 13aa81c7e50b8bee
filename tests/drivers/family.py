"""The processes that a test's own process has started, by their ids and start times."""

import signal
from pathlib import Path

from sslmed_dist.drivers.processes import end_process, process_ids
from sslmed_dist.training.stopping import started_at


def descendants(pid: int) -> dict[int, int]:
    """Start times of all processes that ``pid`` and those below it have started, by id."""
    children: dict[int, list[int]] = {}
    for other in process_ids():
        try:
            fields = Path(f"/proc/{other}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:  # it has ended
            continue
        children.setdefault(int(fields[1]), []).append(other)
    found, left = {}, [pid]
    while left:
        for child in children.get(left.pop(), []):
            started = started_at(child)
            if started is not None:
                found[child] = started
                left.append(child)
    return found


def command_line(pid: int) -> str:
    """What the process calls itself, empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def end(processes: dict[int, int]) -> None:
    """SIGKILL to each of them that is still there."""
    for pid, started in processes.items():
        end_process(pid, started, signal.SIGKILL)
