"""Work shared out over processes that end with the one that started them."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

import torch

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_processes(work: Callable[[Job], Result], jobs: Sequence[Job], workers: int) -> Iterator[Result]:
    """Run ``work`` on every job and yield the results in the order of the jobs, from up to ``workers`` processes.

    One job or one worker is served in this process. So is everything when this process is daemonic, for it may not
    start others. After the first error no further job is begun. Ctrl-C is heard by this process alone, and ends the
    others in the middle of their jobs: a worker that waits for it would print a trace of its own.
    ``ValueError`` when a process ended early (killed, out of memory).
    """
    count = min(workers, len(jobs))
    if count <= 1 or multiprocessing.current_process().daemon:
        yield from map(work, jobs)
        return
    # fork would copy threads (torch's, Ray's, Flower's) in whatever state they are
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(count, context, initializer=enter_worker) as pool:
        try:
            with interrupts_held():  # the workers are started here, and inherit that they hear none
                results = pool.map(work, jobs)
            yield from results
        except (KeyboardInterrupt, GeneratorExit):  # the second: it came while the caller was at a result
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            raise
        except BrokenProcessPool as error:
            raise ValueError(f"workers: a process ended early ({error}); try 1") from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def interrupts_held() -> Iterator[None]:
    """A block in which Ctrl-C is put off until its end, also for the processes that it starts, and for good there."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def enter_worker() -> None:
    """Prepare a worker process: one thread for torch, and a watch that ends it with its parent.

    Without the watch the workers of a parent that was killed would wait for jobs for ever.
    """
    torch.set_num_threads(1)
    threading.Thread(target=leave_with_parent, daemon=True).start()


def leave_with_parent() -> None:
    """End this process when its parent has ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
