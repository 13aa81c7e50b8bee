"""The process that runs parts: whatever becomes of one, the next goes on in a fresh process.

A part that takes longer than it may, or that breaks the CUDA context, cannot be ended from inside. So the parts run in
a child, one after another while all goes well. The child is ended by its id at a part's limit, and after every part
that did not end well. It leads its own session, so whatever it has started ends with it.
"""

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import time
import traceback
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from tests.acceptance.part import Bench, NotRun, Part, Value

STARTING = 180.0  # seconds that a child may take to import torch
GRACE = 30.0  # seconds after its limit at which a child whose parent is gone ends itself
LINE = 300  # letters of an error that are kept


@dataclass(frozen=True)
class Outcome:
    """How a part ended: with ``values``, or with the last line of its ``error`` (``ended``: failed, cut off, not run).
    ``seconds``: how long it took, without the start of a process."""

    values: list[Value]
    ended: str | None = None
    error: str | None = None
    seconds: float = 0.0


class Worker:
    """A child that runs parts. What it prints goes to the file ``log``."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.process: SpawnProcess | None = None
        self.connection: Connection | None = None

    def run(self, part: Part, bench: Bench) -> Outcome:
        """Run a part for at most ``bench.seconds``."""
        if part.alone:
            self.end()
        if self.process is None:
            problem = self.start()
            if problem:
                return Outcome([], "failed", problem)
        assert self.connection is not None
        before, began = self.log.stat().st_size, time.monotonic()
        try:
            self.connection.send((part, bench))
            answered = self.connection.poll(bench.seconds)
            outcome: Outcome | None = self.connection.recv() if answered else None
        except (EOFError, OSError):
            outcome = Outcome([], "failed", self.death(before))
        if outcome is None:
            outcome = Outcome([], "cut off", f"not done after {bench.seconds:.0f} s")
        if outcome.ended in ("failed", "cut off") or part.alone:
            self.end()
        return replace(outcome, seconds=time.monotonic() - began)

    def start(self) -> str | None:
        """Start a child and wait until it has imported what parts need; returns what went wrong."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, self.log), daemon=False)
        self.process.start()
        theirs.close()
        try:
            if self.connection.poll(STARTING):
                self.connection.recv()
                return None
            problem = f"the process was not ready after {STARTING:.0f} s"
        except (EOFError, OSError):
            problem = self.death(0)
        self.end()
        return problem

    def death(self, before: int) -> str:
        """What is known of a child that is gone: its signal or exit code, and the last line it wrote."""
        assert self.process is not None
        self.process.join(10)
        code = self.process.exitcode
        how = f"ended by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with code {code}"
        with contextlib.suppress(OSError), self.log.open("rb") as file:
            file.seek(before)
            lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
            # faulthandler's first line names the fault; the stack below it names our own files
            fatal = next((line for line in lines if line.startswith("Fatal Python error")), None)
            if lines:
                return f"{how}: {fatal or lines[-1]}"[:LINE]
        return how

    def end(self) -> None:
        """End the child and whatever it has started."""
        if self.process is not None and self.process.pid is not None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:  # it is gone, or has no session of its own yet
                self.process.kill()
            self.process.join()
        if self.connection is not None:
            self.connection.close()
        self.process = self.connection = None


def serve(connection: Connection, log: Path) -> None:
    """The child: runs parts until the parent closes the connection or is gone."""
    os.setsid()
    with log.open("ab", buffering=0) as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    faulthandler.enable()
    import torch

    if torch.cuda.is_available():
        torch.cuda.init()  # type: ignore[no-untyped-call]  # the start of the process pays for it, not its first part
    connection.send("ready")
    while True:
        try:
            part, bench = connection.recv()
        except (EOFError, OSError):
            return
        faulthandler.dump_traceback_later(bench.seconds + GRACE, exit=True)
        print(f"==== {part.name}", flush=True)
        outcome = attempt(part, bench)
        faulthandler.cancel_dump_traceback_later()
        try:
            connection.send(outcome)
        except OSError:
            return


def attempt(part: Part, bench: Bench) -> Outcome:
    """Run a part in this process; whatever it raises becomes a result."""
    try:
        values = part.run(bench)
        for value in values:
            print(value, flush=True)
        return Outcome(values)
    except NotRun as reason:
        return Outcome([], "not run", str(reason))
    except Exception as error:
        traceback.print_exc()
        return Outcome([], "failed", last_line(error))


def last_line(error: BaseException) -> str:
    """The error's type and first line, and where in our own files it was raised."""
    own: Any = [frame for frame in traceback.extract_tb(error.__traceback__) if "sslmed_dist" in frame.filename]
    where = f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""
    message = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {message}"[:LINE] + where
