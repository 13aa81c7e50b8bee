"""One pool of four gloo processes for a whole test session.

A fresh interpreter that imports torch takes seconds, so the workers are started once, at the first use. A task is an
importable function; it runs in ranks 0 .. world - 1 of a process group made for this task:

    def ranks_sum(value):
        return distributed.reduce_sum(torch.tensor(value)).item()

    def test_sum(gloo):
        assert gloo.run(ranks_sum, 2, 3.0) == [6.0, 6.0]
"""

import datetime
import multiprocessing
import pickle
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from sslmed_dist import distributed

WORKERS = 4
START_S = 120.0  # four interpreters import torch at the same time, perhaps on one busy core


class RankError(RuntimeError):
    """A function raised on some rank; the message holds that rank's traceback."""


def send(pipe: Connection, message: object) -> None:
    """Send by value: ``Connection.send`` would pass tensors as shared memory that dies with the sender."""
    pipe.send_bytes(pickle.dumps(message))


def leave() -> None:
    """Leave the last task's group, if this process is still in it."""
    distributed.leave()


def execute(
    function: Callable[..., Any], args: tuple[Any, ...], rank: int, world: int, store: str, limit: float
) -> Any:
    """Run ``function`` as one rank of a new group."""
    leave()
    rendezvous = dist.FileStore(store, world)
    patience = datetime.timedelta(seconds=limit)
    dist.init_process_group("gloo", store=rendezvous, rank=rank, world_size=world, timeout=patience)
    return function(*args)


def serve(pipe: Connection) -> None:
    """A worker's life: tasks in, (succeeded, result or traceback) out, until the other end closes.

    After a success the group stays until the next task, so that no rank hangs up while another still receives. After
    a failure it ends, so that ranks that wait for this one fail too; the answer goes first, as the cause.
    """
    torch.set_num_threads(1)
    send(pipe, (True, "ready"))
    while True:
        try:
            task = pipe.recv_bytes()
        except EOFError:
            return
        try:
            send(pipe, (True, execute(*pickle.loads(task))))
        except (Exception, SystemExit):
            send(pipe, (False, traceback.format_exc()))
            leave()


class GlooPool:
    """``size`` persistent workers; ``run`` starts them when they are not there, ``close`` ends them."""

    def __init__(self, size: int = WORKERS) -> None:
        self.size = size
        self.workers: list[SpawnProcess] = []
        self.pipes: list[Connection] = []
        self.folder = ""
        self.tasks = 0

    def run(self, function: Callable[..., Any], world: int, *args: Any, timeout: float = 60.0) -> list[Any]:
        """The results of ``function(*args)`` on ranks 0 .. world - 1, in rank order.

        Function, arguments and results must be picklable, the function importable. Raises ``RankError`` with the
        traceback of the rank that failed first, and ``TimeoutError`` after ``timeout`` seconds or ``RankError`` when a
        worker died; the last two end the workers (the next call starts new ones). ``ValueError`` if ``world`` is not
        1 to ``size``.
        """
        if not 1 <= world <= self.size:
            raise ValueError(f"world: expected 1 to {self.size}, got {world}")
        if not self.workers:
            self.start()
        self.tasks += 1
        store = str(Path(self.folder) / str(self.tasks))
        for rank in range(world):
            send(self.pipes[rank], (function, args, rank, world, store, timeout))
        return self.collect(world, timeout, f"{function.__module__}.{function.__qualname__} on {world} ranks")

    def start(self) -> None:
        """Spawn the workers and wait until all have imported torch."""
        self.folder = tempfile.mkdtemp(prefix="gloo-")
        context = multiprocessing.get_context("spawn")
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            worker = context.Process(target=serve, args=(theirs,), name=f"gloo-{rank}", daemon=True)
            worker.start()
            theirs.close()
            self.pipes.append(ours)
            self.workers.append(worker)
        self.collect(self.size, START_S, "the start of the gloo workers")

    def collect(self, world: int, timeout: float, what: str) -> list[Any]:
        """One answer of each of the first ``world`` workers."""
        deadline = time.monotonic() + timeout
        results: dict[int, Any] = {}
        failures: dict[int, str] = {}
        while len(results) + len(failures) < world:
            pending = {self.pipes[r]: r for r in range(world) if r not in results and r not in failures}
            ready = wait(list(pending), max(0.0, deadline - time.monotonic()))
            if not ready:
                self.close()
                earlier = "".join(f"\nrank {rank} failed:\n{text}" for rank, text in failures.items())
                late = sorted(pending.values())
                raise TimeoutError(f"{what}: no answer of rank(s) {late} within {timeout:g} s; pool ended{earlier}")
            for pipe in ready:
                assert isinstance(pipe, Connection)
                rank = pending[pipe]
                try:
                    succeeded, answer = pickle.loads(pipe.recv_bytes())
                except EOFError:
                    self.workers[rank].join(5)
                    code = self.workers[rank].exitcode
                    self.close()
                    raise RankError(f"{what}: worker {rank} died with exit code {code}; pool ended") from None
                (results if succeeded else failures)[rank] = answer
        for rank, text in failures.items():  # in the order of arrival: the first is the cause
            raise RankError(f"{what}: rank {rank} failed first (failed: {sorted(failures)})\n{text}")
        return [results[rank] for rank in range(world)]

    def close(self) -> None:
        """End the workers and remove the rendezvous files. Closing twice does nothing."""
        for pipe in self.pipes:
            pipe.close()
        for worker in self.workers:
            worker.kill()
            worker.join()
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.workers, self.pipes, self.folder = [], [], ""
