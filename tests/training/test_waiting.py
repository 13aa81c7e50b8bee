"""The share of time that steps wait for data is measured, the largest over ranks, and changes nothing; what is read is
read once for all views; threads that have no CPU of their own are named."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from sslmed_dist import config
from sslmed_dist.data import Batches, pack
from sslmed_dist.data.images import packed
from sslmed_dist.data.phantom import PHANTOMS
from sslmed_dist.run_folder import Metrics
from sslmed_dist.training import build, job
from sslmed_dist.training.waiting import WAIT_SHARE, Waiting, crowded
from tests import tiny
from tests.gloo import GlooPool


def waited(first: float, each: float, step: float) -> Waiting:
    """After three batches that took ``each`` seconds to come (and ``first`` in all before) and ``step`` to use."""
    waiting = Waiting()
    time.sleep(first)

    def slow():
        for number in range(3):
            time.sleep(each)
            yield {"number": torch.tensor(number)}

    seen = []
    for batch in waiting.over(slow()):
        seen.append(int(batch["number"]))
        time.sleep(step)
    assert seen == [0, 1, 2]
    return waiting


def share_of_rank(rank: int) -> float:
    return waited(0.0, 0.06 if rank else 0.0, 0.02).share(torch.device("cpu"))


def rank_share() -> float:
    from sslmed_dist import distributed

    return share_of_rank(distributed.rank())


def test_the_share_is_the_time_until_a_batch_was_there() -> None:
    """A busy machine makes sleeps longer, not shorter: the bounds are wide."""
    waiting = waited(0.05, 0.06, 0.02)
    assert 0.3 < waiting.share(torch.device("cpu")) < 0.95
    time.sleep(0.01)
    assert waiting.share(torch.device("cpu")) == 0.0, "each share begins anew"
    assert waited(0.05, 0.0, 0.05).share(torch.device("cpu")) < 0.2


def test_the_rank_that_waits_most_is_told_to_all(gloo: GlooPool) -> None:
    shares = gloo.run(rank_share, 2)
    assert shares[0] == shares[1] > 0.3


def test_threads_that_read_ahead_end_with_a_training_that_ends_within_an_epoch() -> None:
    closed = []

    def source():
        try:
            yield from ({"x": torch.zeros(1)} for _ in range(9))
        finally:
            closed.append(True)

    batches = Waiting().over(source())
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert closed == [True]


def test_it_is_in_the_metrics_and_neither_in_the_checkpoint_nor_in_the_bits(tmp_path: Path) -> None:
    settings = tiny.settings(tmp_path, plan={"epochs": 1}, run={"tensorboard": False})
    trained = job.train(settings)
    rows = [row for row in Metrics(settings.folder / "metrics.jsonl").read() if row["name"] == WAIT_SHARE]
    assert [row["step"] for row in rows] == [1, 2, 3] and all(0 <= row["value"] <= 1 for row in rows)
    assert trained.state.wait_share == rows[-1]["value"] and "wait_share" not in trained.state.state_dict()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 JPEG images of 40 pixels."""
    folder = tmp_path_factory.mktemp("shards")
    root = PHANTOMS["imagenet"](folder / "imagenet", size=48)
    return pack.pack({"name": "imagenet", "root": str(root)}, folder / "pack", form="jpeg", short=40)


@pytest.mark.parametrize(
    "views",
    [
        {"name": "contrastive", "size": 16},
        {"name": "multi_crop", "size": 16, "small": {"size": 8, "views": 4}},
    ],
)
def test_an_image_is_decoded_once_for_all_its_views_which_are_cut_from_the_batch(
    shards: Path, views: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny.settings(tmp_path, data={"name": "packed", "root": str(shards)}, views=views)
    dataset = build.load_data(settings, "train")
    settings = build.resolve(settings, dataset)
    decoded, decode = [], packed.decode_jpeg
    monkeypatch.setattr(packed, "decode_jpeg", lambda *args: decoded.append(args[2]) or decode(*args))
    batch = next(iter(Batches(dataset, global_batch=8, seed=0).epoch(0)))
    assert len(decoded) == len(set(decoded)) == 8 and batch["images"].shape == (8, 3, 40, 40)
    assert batch["images"].dtype == torch.uint8, "a quarter of the bytes go to the device"
    made = build.build_views(settings, dataset)(batch, seed=0, epoch=0)
    count = sum(name.startswith("views_") for name in made)
    assert count == (2 if views["name"] == "contrastive" else 6) and len(decoded) == 8
    assert not torch.equal(made["views_0"], made["views_1"]) and made["views_0"].shape == (8, 3, 16, 16)


@pytest.mark.parametrize(
    ("workers", "threads", "cpus", "said"),
    [
        (2, 0, 1, "2 threads for its data (data.workers 2) and asks for 1 CPUs; ray.cpus_per_worker=2"),
        (2, 3, 4, "7 threads for its data (1 + plan.loader_threads 3 x data.workers 2) and asks for 4 CPUs"),
        (0, 1, 1, "2 threads for its data (1 + plan.loader_threads 1 x data.workers 1) and asks for 1 CPUs"),
        (2, 3, 7, None),
        (0, 0, 1, None),
    ],
)
def test_threads_beyond_the_cpus_of_a_worker_are_named(
    shards: Path, tmp_path: Path, workers: int, threads: int, cpus: int, said: str | None
) -> None:
    data = {"name": "packed", "root": str(shards), "workers": workers}
    sections = {"data": data, "plan": {"loader_threads": threads}, "ray": {"num_workers": 2, "cpus_per_worker": cpus}}
    settings = config.from_tree({**tiny.tree(tmp_path, **sections), "driver": "ray"}, "t")
    dataset = build.load_data(settings, "train")
    line = crowded(settings, dataset)
    assert line is None if said is None else (line is not None and said in line)
    assert crowded(config.replace(settings, driver="local"), dataset) is None
    assert crowded(config.replace(settings, ray={"num_workers": 0}), dataset) is None
