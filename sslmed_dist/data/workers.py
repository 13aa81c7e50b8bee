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
    """``work`` of every job, in order, in up to ``workers`` processes; with one of either, in this process. A daemonic
    process may start no other and works by itself. The first error ends the queue of the others.

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
    """One thread for torch, and an end with the parent: a pool whose parent was killed would wait for ever."""
    torch.set_num_threads(1)
    threading.Thread(target=leave_with_parent, daemon=True).start()


def leave_with_parent() -> None:
    """End this process when its parent has ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
