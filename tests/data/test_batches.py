import threading
import time

import pytest
import torch

from sslmed_dist.data import ArrayDataset, Batches, Subset
from sslmed_dist.data.oversample import oversample
from tests import device_cases
from tests.differences import require_within


def numbered(count):
    images = torch.zeros(count, 1, 2, 2, dtype=torch.uint8)
    return ArrayDataset(name="numbered", images=images, labels=torch.zeros(count, dtype=torch.int64), classes=("a",))


class Slow(ArrayDataset):
    """Takes longest over the first batch; fails on demand; counts what it was asked for."""

    def fetch(self, positions, *, seed, epoch, draw):
        self.asked = getattr(self, "asked", 0) + 1
        time.sleep(0.02 / self.asked)
        if getattr(self, "failing", False) and self.asked > 2:
            raise ValueError("image 7 is corrupt")
        return super().fetch(positions, seed=seed, epoch=epoch, draw=draw)


def slow(count, failing=False):
    images = torch.zeros(count, 1, 2, 2, dtype=torch.uint8)
    data = Slow(name="slow", images=images, labels=torch.zeros(count, dtype=torch.int64), classes=("a",))
    data.failing = failing
    return data


def rows(batches, epoch=0, start=0):
    return [(b["index"].tolist(), b["draw"].tolist()) for b in batches.epoch(epoch, start)]


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("sslmed-batches")]


def test_one_pass_visits_every_sample_once_and_drops_the_rest():
    batches = Batches(numbered(23), global_batch=5, seed=1)
    assert batches.steps == 4
    seen = [index for indices, _ in rows(batches) for index in indices]
    assert len(seen) == len(set(seen)) == 20


def test_order_differs_by_epoch_and_seed_and_repeats_itself():
    batches = Batches(numbered(40), global_batch=8, seed=1)
    assert rows(batches, 0) == rows(batches, 0)
    assert rows(batches, 0) != rows(batches, 1)
    assert rows(batches, 0) != rows(Batches(numbered(40), global_batch=8, seed=2), 0)


@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("settings", [{}, {"draws": 3}, {"steps_per_epoch": 11}])
def test_ranks_together_hold_the_global_batch(world, settings):
    data = numbered(31)
    whole = rows(Batches(data, global_batch=12, seed=3, **settings), epoch=2)
    parts = [
        rows(Batches(data, global_batch=12, seed=3, rank=r, world=world, **settings), epoch=2) for r in range(world)
    ]
    for step, (index, draw) in enumerate(whole):
        assert index == [i for part in parts for i in part[step][0]]
        assert draw == [d for part in parts for d in part[step][1]]


@pytest.mark.parametrize("start", [0, 1, 5, 11])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_epoch_goes_on_where_it_stopped(start, workers):
    batches = Batches(numbered(31), global_batch=12, seed=3, steps_per_epoch=11, workers=workers)
    assert rows(batches, 4, start) == rows(batches, 4)[start:]


def test_passes_follow_without_a_gap_and_number_the_draws():
    batches = Batches(numbered(7), global_batch=4, seed=0, draws=4)
    assert batches.steps == 7
    index, draw = (sum(column, []) for column in zip(*rows(batches), strict=True))
    assert draw == [p for p in range(4) for _ in range(7)]
    for p in range(4):
        assert sorted(index[7 * p : 7 * p + 7]) == list(range(7))
    assert index[:7] != index[7:14]


def test_fixed_number_of_steps_goes_on_with_further_passes():
    batches = Batches(numbered(10), global_batch=4, seed=0, steps_per_epoch=9)
    assert batches.steps == len(rows(batches)) == 9
    assert rows(batches)[-1][1] == [3, 3, 3, 3]


def test_a_batch_larger_than_the_set_needs_draws():
    batches = Batches(numbered(5), global_batch=12, seed=0, draws=5)
    assert batches.steps == 2
    assert rows(batches)[0][1] == [0] * 5 + [1] * 5 + [2] * 2


def test_the_order_of_a_subset_is_the_order_of_the_set_with_the_others_left_out():
    data, keep = numbered(30), torch.arange(0, 30, 3)
    whole = [i for index, _ in rows(Batches(data, global_batch=1, seed=5)) for i in index]
    part = [i for index, _ in rows(Batches(Subset(data, keep), global_batch=1, seed=5)) for i in index]
    assert part == [i for i in whole if i % 3 == 0]


def test_threads_give_the_same_batches_in_the_same_order():
    assert rows(Batches(slow(60), global_batch=4, seed=2, workers=3)) == rows(Batches(slow(60), global_batch=4, seed=2))
    assert not threads()


def test_threads_read_ahead_by_a_bounded_number():
    data = slow(400)
    stream = Batches(data, global_batch=4, seed=2, workers=2).epoch(0)
    next(stream)
    time.sleep(0.2)
    assert data.asked <= 5
    stream.close()
    assert not threads()


def test_an_error_in_a_thread_reaches_the_caller_and_ends_the_threads():
    stream = Batches(slow(60, failing=True), global_batch=4, seed=2, workers=2).epoch(0)
    with pytest.raises(ValueError, match="image 7 is corrupt"):
        list(stream)
    assert not threads()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"global_batch": 6, "world": 4}, "global_batch 6 is not divisible by the number of workers 4"),
        ({"global_batch": 24}, "numbered has 10 samples x 1 draws, fewer than one batch of 24"),
        ({"global_batch": 24, "draws": 2}, "numbered has 10 samples x 2 draws, fewer than one batch of 24"),
        ({"global_batch": 24, "steps_per_epoch": 5}, "numbered has 10 samples x 1 draws"),
        ({"global_batch": 0}, "global_batch must be at least 1"),
        ({"global_batch": 2, "draws": 0}, "draws must be at least 1"),
        ({"global_batch": 2, "steps_per_epoch": 0}, "steps_per_epoch must be at least 1"),
        ({"global_batch": 2, "workers": -1}, "workers must be 0 or more"),
    ],
)
def test_impossible_batches_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Batches(numbered(10), seed=0, **settings)


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("resident", [False, True])
def test_batches_on_a_gpu_are_those_on_the_cpu(workers, resident):
    expected, actual = device_cases.batches("cpu", False, 0), device_cases.batches("cuda", resident, workers)
    require_within(expected, actual, device_cases.bits)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_slices_of_an_exam_stand_together_on_any_number_of_workers(world):
    """A batch of 8 with 4 slices an exam: two exams, four draws each; every exam once per pass."""
    settings = {"global_batch": 8, "slices_per_exam": 4, "seed": 3, "draws": 2}
    whole = rows(Batches(numbered(6), **settings))
    parts = [rows(Batches(numbered(6), **settings, rank=rank, world=world)) for rank in range(world)]
    joined = [[sum((part[n][k] for part in parts), []) for k in (0, 1)] for n in range(len(whole))]
    assert joined == [list(row) for row in whole] and len(whole) == 6 == 6 * 4 * 2 // 8
    for indices, draws in whole:
        first, second = indices[:4], indices[4:]
        assert len(set(first)) == len(set(second)) == 1 and first[0] != second[0]
        assert [draw % 4 for draw in draws] == [0, 1, 2, 3] * 2 and len({draw // 4 for draw in draws[:4]}) == 1
    pairs = [pair for indices, draws in whole for pair in zip(indices, draws, strict=True)]
    assert len(set(pairs)) == 48 and {draw for _, draw in pairs} == set(range(8))
    with pytest.raises(ValueError, match="6 samples x 1 draws x 4 slices, fewer than one batch of 25"):
        Batches(numbered(6), global_batch=25, slices_per_exam=4, seed=3)


def test_oversampling_visits_each_class_as_often_as_the_largest():
    """Ten of class 0 and three of class 1: 3 visits each and one more; first visits stand where they stood before."""
    data = numbered(13)
    data.labels = torch.tensor([0] * 10 + [1] * 3)
    plain = [index for indices, _ in rows(Batches(data, global_batch=1, seed=1)) for index in indices]
    data.repeats = oversample(data.labels, data.ids, classes=("a", "b"), seed=4)
    assert sorted(data.repeats[10:].tolist()) == [3, 3, 4] and data.repeats[:10].tolist() == [1] * 10
    batches = Batches(data, global_batch=5, seed=1, draws=2)
    seen = [pair for indices, draws in rows(batches) for pair in zip(indices, draws, strict=True)]
    assert batches.steps == 8 and len(set(seen)) == 40, "every visit is another draw"
    assert sum(index >= 10 for index, _ in seen) == 20
    assert [index for index, draw in seen[:20] if draw == 0] == plain
    half = Subset(data, torch.arange(5, 13))
    part = Subset(half, torch.arange(4, 8)).to("cpu")
    assert half.repeats.tolist() == data.repeats[5:].tolist() and part.repeats.tolist() == data.repeats[9:].tolist()


@pytest.mark.parametrize(
    ("labels", "label", "message"),
    [
        (torch.tensor([0, 0, 0]), None, "all samples are of one class"),
        (torch.tensor([0, 1, -1]), None, "holds unlabelled samples"),
        (torch.tensor([0, 1, 1]), "a", "has one class per sample"),
        (torch.tensor([[0.0], [1.0], [1.0]]), None, "expected one of a, got None"),
    ],
)
def test_what_cannot_be_balanced_is_refused(labels, label, message):
    with pytest.raises(ValueError, match=message):
        oversample(labels, torch.arange(3), classes=("a",), seed=0, label=label)


def test_copies_come_again_and_again_in_new_orders():
    """Three draws of every sample, keyed as epoch 0, whatever the epoch; two passes an epoch."""
    data = numbered(8)
    batches = Batches(data, global_batch=4, seed=2, draws=2, copies=3)
    seen = [list(batches.epoch(epoch)) for epoch in range(3)]
    draws = [[sorted({int(d) for b in part for d in b["draw"]}) for part in (epoch[:2], epoch[2:])] for epoch in seen]
    assert draws == [[[0], [1]], [[2], [0]], [[1], [2]]]
    orders = [[int(i) for b in part for i in b["index"]] for epoch in seen for part in (epoch[:2], epoch[2:])]
    assert all(sorted(order) == list(range(8)) for order in orders) and len({tuple(order) for order in orders}) == 6
    assert batches.drawn_as(5) == 0 and Batches(data, global_batch=4, seed=2).drawn_as(5) == 5
