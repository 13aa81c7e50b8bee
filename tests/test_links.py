"""Messages by sockets: values, sizes and types; a rank that is late, silent or gone; ranks that are apart."""

import time

import pytest
import torch
from torch import Tensor

from sslmed_dist import distributed, links
from tests.gloo import GlooPool, RankError

SHAPES = [(1,), (2, 3), (links.LARGEST // 8,)]  # the last fills a message of float64


def parts(turn: int, sender: int, world: int, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """What rank ``sender`` sends in a turn, to each rank something else."""
    return [torch.full(shape, turn * 50 + sender * 10 + receiver).to(dtype) for receiver in range(world)]


def turns(dtype: torch.dtype, late: int) -> bool:
    """Several exchanges of every shape, rank ``late`` late to each: whether all came as they were sent."""
    rank, world = distributed.rank(), distributed.world_size()
    direct = distributed.linked()
    assert direct is not None
    right = True
    for turn in range(3):
        for shape in SHAPES:
            if rank == late:
                time.sleep(0.002)
            received = direct.exchange(parts(turn, rank, world, shape, dtype))
            sent = [parts(turn, s, world, shape, dtype)[rank] for s in range(world)]
            right &= all(torch.equal(a, b) and a.dtype == dtype for a, b in zip(received, sent, strict=True))
    return right


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.uint8, torch.bool])
def test_every_rank_gets_what_was_sent_to_it(gloo: GlooPool, world: int, dtype: torch.dtype) -> None:
    assert gloo.run(turns, world, dtype, world - 1) == [True] * world


def gathered(count: int) -> tuple[int, Tensor]:
    """How many messages a gather of ``count`` float32 values sent by sockets, and what came."""
    direct = distributed.linked()
    assert direct is not None
    calls: list[int] = []
    plain = direct.exchange

    def counted(sent: list[Tensor]) -> list[Tensor]:
        calls.append(sent[0].nbytes)
        return plain(sent)

    direct.exchange = counted  # type: ignore[assignment, method-assign]
    rows = distributed.gather(torch.arange(float(count)) + distributed.rank())
    return len(calls), rows


@pytest.mark.parametrize(
    ("count", "direct"), [(0, 0), (1, 1), (links.LARGEST // 4, 1), (links.LARGEST // 4 + 1, 0), (1_000_000, 0)]
)
def test_large_and_empty_messages_go_by_gloo(gloo: GlooPool, count: int, direct: int) -> None:
    row = torch.arange(float(count))
    for calls, rows in gloo.run(gathered, 2, count):
        assert calls == direct and torch.equal(rows, torch.cat([row, row + 1]))


def apart() -> tuple[bool, Tensor]:
    """Rank 1 has another temporary folder's door: nobody is linked, and a gather is right all the same."""
    plain = links.call
    if distributed.rank() == 1:
        links.call = lambda doors, rank: plain([f"{door}-elsewhere" for door in doors], rank)
    try:
        return distributed.linked() is None, distributed.gather(torch.tensor([float(distributed.rank())]))
    finally:
        links.call = plain


def test_ranks_of_several_machines_all_use_gloo(gloo: GlooPool) -> None:
    for unlinked, rows in gloo.run(apart, 3):
        assert unlinked and rows.tolist() == [0.0, 1.0, 2.0]


def one_fails() -> None:
    """Rank 1 fails after the first exchange; the others wait for it in the second."""
    distributed.reduce_sum(torch.ones(2))
    if distributed.rank() == 1:
        raise ZeroDivisionError("rank 1 has had enough")
    with pytest.raises(RuntimeError, match="rank 1 is gone"):
        distributed.reduce_sum(torch.ones(2))


def test_those_who_wait_for_a_failed_rank_fail_too(gloo: GlooPool) -> None:
    with pytest.raises(RankError, match=r"rank 1 failed first \(failed: \[1\]\)") as failure:
        gloo.run(one_fails, 2, timeout=20.0)
    assert "has had enough" in str(failure.value)


def silent() -> str:
    """Rank 1 sends nothing for longer than rank 0 waits."""
    direct = links.connect(1.0)
    assert direct is not None
    if distributed.rank() == 1:
        time.sleep(1.5)
        return ""
    with pytest.raises(RuntimeError) as failure:
        direct.exchange([torch.ones(1)] * 2)
    return str(failure.value)


def test_a_silent_rank_is_named(gloo: GlooPool) -> None:
    assert gloo.run(silent, 2)[0] == "rank 1 sent nothing for 1 s"
