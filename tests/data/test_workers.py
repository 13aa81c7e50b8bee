"""Work shared out over processes: Ctrl-C ends all of them at once, and one line is all that is said."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys, time
from sslmed_dist.data.workers import in_processes
from sslmed_dist.endings import ending_of

def work(number):
    if number:
        print("waiting", flush=True)
        time.sleep(600)
    return number

def all_of_it():
    for number in in_processes(work, range(4), 2):
        print("done", number, flush=True)
    return 0

if __name__ == "__main__":
    sys.exit(ending_of(all_of_it, "data", None, False))
"""


@pytest.mark.parametrize("whole_group", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_an_interrupt_ends_workers_in_the_middle_of_their_jobs(tmp_path: Path, whole_group: bool) -> None:
    """Ctrl-C reaches every process of the terminal's group; a signal to the command reaches that one alone."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    pipe = subprocess.PIPE
    command = [sys.executable, str(program)]
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as started:
        assert started.stdout is not None and started.stderr is not None
        seen: list[str] = []
        while not {"waiting", "done 0"} <= set(seen):
            line = started.stdout.readline()
            assert line, started.stderr.read()
            seen.append(line.strip())
        (os.killpg if whole_group else os.kill)(started.pid, signal.SIGINT)
        try:
            said = started.communicate(timeout=120)[1]
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)  # else leaving the block would wait for it
            raise
        assert said == "interrupted\n" and started.returncode == 130
