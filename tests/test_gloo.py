"""The pool of gloo processes itself: results in rank order, errors with their traceback, recovery after a failure."""

import os
import time

import pytest
import torch
from torch import Tensor

from sslmed_dist import distributed
from tests.gloo import GlooPool, RankError


def place(offset: int) -> tuple[int, int, int, int]:
    return distributed.rank() + offset, distributed.world_size(), os.getpid(), torch.get_num_threads()


def fail_on(rank: int) -> Tensor:
    if distributed.rank() == rank:
        raise KeyError("a mistake on one rank")
    return distributed.reduce_sum(torch.ones(1))


def hang_on(rank: int) -> None:
    if distributed.rank() == rank:
        time.sleep(30)


def die_on(rank: int) -> None:
    if distributed.rank() == rank:
        os._exit(7)
    time.sleep(30)


def test_results_come_in_rank_order_from_persistent_workers(gloo: GlooPool) -> None:
    seen = {}
    for world in (1, 2, 4):
        ranks, worlds, seen[world], threads = zip(*gloo.run(place, world, 10), strict=True)
        assert ranks == tuple(range(10, 10 + world))
        assert worlds == (world,) * world and threads == (1,) * world
    assert seen[4][:2] == seen[2] and seen[2][:1] == seen[1] and os.getpid() not in seen[4]


def test_an_exception_on_one_rank_is_raised_with_its_traceback_and_the_pool_goes_on(gloo: GlooPool) -> None:
    workers = gloo.run(place, 4, 0)
    with pytest.raises(RankError, match="rank 2 failed first") as caught:
        gloo.run(fail_on, 4, 2)
    assert "a mistake on one rank" in str(caught.value) and "in fail_on" in str(caught.value)
    assert gloo.run(place, 4, 0) == workers


@pytest.mark.parametrize("world", [0, 5])
def test_world_out_of_range(gloo: GlooPool, world: int) -> None:
    with pytest.raises(ValueError, match=f"world: expected 1 to 4, got {world}"):
        gloo.run(place, world, 0)


@pytest.mark.slow
def test_a_hang_and_a_death_end_the_pool_and_the_next_call_starts_a_new_one() -> None:
    pool = GlooPool(size=2)
    try:
        with pytest.raises(TimeoutError, match=r"hang_on on 2 ranks: no answer of rank\(s\) \[1\] within 1 s"):
            pool.run(hang_on, 2, 1, timeout=1.0)
        assert not pool.workers
        with pytest.raises(RankError, match="worker 0 died with exit code 7"):
            pool.run(die_on, 2, 0, timeout=20.0)
        assert [rank for rank, *_ in pool.run(place, 2, 0)] == [0, 1]
    finally:
        pool.close()
