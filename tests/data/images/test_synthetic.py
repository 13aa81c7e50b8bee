"""Noise in place of images: keyed, as large as asked for, for nothing; and called what it is."""

import json
from pathlib import Path

import pytest
import torch

from sslmed_dist import randomness
from sslmed_dist.data import DATASETS, Batches
from sslmed_dist.data.samples import describe
from sslmed_dist.run_folder import phantom_data
from sslmed_dist.training import job
from tests import tiny

SMALL = {"images": 40, "held_out": 6, "size": 5, "classes": 7, "distinct": 3}


def noise(**arguments):
    return DATASETS["synthetic"](**{**SMALL, **arguments})


def images(data, positions):
    positions = torch.tensor(positions)
    return data.fetch(positions, seed=9, epoch=3, draw=torch.zeros_like(positions))["images"]


def test_an_image_is_the_keys_of_its_bytes_and_comes_again_after_distinct_samples():
    data = noise(seed=4)
    expected = [randomness.key(4, "synthetic", byte) & 255 for byte in range(2 * 75, 3 * 75)]
    assert images(data, [5])[0].flatten().tolist() == expected
    assert torch.equal(images(data, [2, 5, 38]), images(data, [5, 2, 2]))
    assert not torch.equal(images(data, [0]), images(data, [1])) and not torch.equal(
        images(data, [0]), images(noise(seed=5), [0])
    )
    counts = torch.bincount(noise(size=64).block.flatten().int(), minlength=256)
    assert counts.min() > 80 and counts.max() < 210, "3 x 3 x 64 x 64 bytes, 144 of each value expected"


@pytest.mark.parametrize(
    ("split", "ids"), [("train", range(40)), ("val", range(40, 46)), ("test", range(46, 52)), ("all", range(52))]
)
def test_splits_are_apart_and_labels_follow_the_id(split, ids):
    data = noise(split=split)
    assert data.ids.tolist() == list(ids) and data.labels.tolist() == [i % 7 for i in ids]
    assert torch.equal(images(data, [3])[0], noise(split="all").block[(ids[0] + 3) % 3])
    assert len(data.classes) == 7 and data.channels == 3 and not data.records


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"images": 0}, "data.images: expected a number from 1 to 2.14748e"),
        ({"size": 5000}, "data.size: expected a number from 1 to 4096, got 5000"),
        ({"distinct": 0}, "data.distinct: expected a number from 1 to 4096, got 0"),
        ({"split": "dev"}, "synthetic: no split 'dev'; allowed: train, val, test, all"),
    ],
)
def test_numbers_out_of_range_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        noise(**wrong)


def test_its_samples_are_described_by_their_bytes():
    lines = [json.loads(line) for line in describe(noise()).lines]
    assert [line["id"] for line in lines] == list(range(40))
    assert lines[4]["content"] == lines[1]["content"] == noise().contents[1].digest() != lines[0]["content"]
    assert describe(noise()).digest != describe(noise(seed=1)).digest


def test_a_run_trains_on_it_without_a_root_and_is_called_what_it_is(tmp_path: Path):
    data = {"name": "synthetic", "images": 40, "held_out": 6, "size": 16, "channels": 1, "classes": 2}
    settings = tiny.settings(tmp_path, data=data, plan={"epochs": 1})
    trained = job.train(settings)
    assert trained.state.step == 2 and phantom_data(settings)
    assert json.loads((settings.folder / "environment.json").read_text())["phantom_data"] is True
    assert (settings.folder / "notices.txt").read_text().startswith("synthetic: noise of a keyed generator, no image")


def test_any_number_of_samples_has_the_memory_of_one_block():
    data = noise(images=2_000_000)
    batch = next(iter(Batches(data, global_batch=8, seed=0).epoch(0)))
    assert len(data.block) == 3 and batch["images"].shape == (8, 3, 5, 5) and int(batch["index"].max()) > 40
