"""Work shared out over processes that end with the one that started them."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import torch

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_processes(work: Callable[[Job], Result], jobs: Sequence[Job], workers: int) -> Iterator[Result]:
    """Run ``work`` on every job and yield the results in the order of the jobs, from up to ``workers`` processes.

    One job or one worker is served in this process. So is everything when this process is daemonic, for it may not
    start others. After the first error no further job is begun.
    ``ValueError`` when a process ended early (killed, out of memory).
    """
    count = min(workers, len(jobs))
    if count <= 1 or multiprocessing.current_process().daemon:
        yield from map(work, jobs)
        return
    # fork would copy threads (torch's, Ray's, Flower's) in whatever state they are
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, context, initializer=enter_worker) as pool:
        try:
            yield from pool.map(work, jobs)
        except BrokenProcessPool as error:
            raise ValueError(f"workers: a process ended early ({error}); try 1") from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


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
