"""A set of 1.28 million images costs a worker no more than a few arrays: no list of paths, labels or ids."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sslmed_dist import randomness
from sslmed_dist.data.compact import BLOCK, Chained, FileRecords, Lines, Picked, Texts, Words
from sslmed_dist.data.images import shard_writing, shards

IMAGENET, MOST = 1_281_167, 50  # images; MB that a set of as many may take beyond one of a thousand
CHILD = """
import sys, torch
from sslmed_dist.data import DATASETS, Batches
from sslmed_dist.data.samples import describe
from sslmed_dist.training.allocation import keep_freed_memory

keep_freed_memory()  # as a training does: what was taken once stays
torch.set_num_threads(1)
rank, name = int(sys.argv[1]), sys.argv[2]
for source in sys.argv[3:]:  # the small one first
    data = DATASETS[name](images=int(source), size=4) if name == "synthetic" else DATASETS[name](root=source)
    steps = len(data) // 256
    batches = Batches(data, global_batch=256, seed=0, rank=rank, world=2, steps_per_epoch=2 * steps)
    for start in (0, steps - 1):  # the second: over the end of a pass
        rows = batches.epoch(1, start)
        seen = torch.cat([next(rows)["index"] for _ in range(4)])
    assert len(data) / 2 < seen.max() < len(data)
    if rank == 0:  # the one that writes down which samples a run was trained on
        assert len(describe(data, content=False).lines) == len(data)
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(int(peak.split()[1]) / 1000)
    del data, batches, rows
"""


def growth(name: str, small: Path | int, large: Path | int, rank: int = 0) -> float:
    """By how many MB the largest resident memory of a worker grows when the large set follows the small one."""
    command = [sys.executable, "-c", CHILD, str(rank), name, str(small), str(large)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    before, after = map(float, done.stdout.split())
    assert before > 100, "torch alone takes more"
    return after - before


def test_synthetic_images_by_the_million_take_less_than_50_mb() -> None:
    assert 15 < growth("synthetic", 2000, IMAGENET) < MOST, "their ids and labels are 20 MB"


def write_pack(folder: Path, images: int, rows: int = 8192) -> Path:
    """A pack of ``images`` black images in files with holes, with names as long as ImageNet's."""
    folder.mkdir()
    entries, head = [], {"kind": "sslmed pack", "version": shards.VERSION, "fingerprint": "0" * 64, "name": "large"}
    for number, start in enumerate(range(0, images, rows)):
        ids = np.arange(start, min(start + rows, images))
        blob, index = (folder / f"shard-{number:05d}{suffix}" for suffix in (".bin", ".npz"))
        with blob.open("wb") as file:
            file.truncate(256 * len(ids))
        arrays = {
            "offsets": 256 * np.arange(len(ids) + 1),
            "ids": ids,
            "labels": ids % 10,
            "groups": ids,
            "splits": ids * 0,
        }
        names = "\0".join(f"train/n{i % 1000:08d}/n{i % 1000:08d}_{i}.JPEG" for i in ids.tolist()).encode()
        texts = {"sha256": np.array("0" * 64), "fingerprint": np.array("0" * 64)}
        np.savez(index, names=np.frombuffer(names, np.uint8), **arrays, **texts)  # type: ignore[arg-type]
        entries.append(shard_writing.entry(blob.stem, blob, index, {**arrays, **texts}))
    head |= {"classes": [str(i) for i in range(10)], "channels": 1, "format": "raw", "short": 16, "quality": 90}
    head |= {"rows": rows, "images": images, "source": {"name": "imagenet"}, "shards": entries}
    (folder / shards.SUMMARY).write_text(json.dumps(head))
    return folder


@pytest.mark.slow
def test_a_pack_by_the_million_holds_a_few_arrays_and_no_name(tmp_path: Path) -> None:
    small, large = write_pack(tmp_path / "small", 2000), write_pack(tmp_path / "large", IMAGENET)
    names = sum(np.load(path)["names"].nbytes + 8 * 8192 for path in large.glob("*.npz")) / 1e6
    grown = growth("packed", small, large, rank=1)
    assert names > 55, "what a worker would hold that kept the names"
    assert 40 < grown < 160, "59 and 136 MB were measured: columns, and what is left in the heap"


TEXTS = ["a/b c.png", "é/ü.jpg", "x", "train/\udcff.JPEG", "long" * 40]


def test_texts_are_what_they_were_made_of_in_any_order() -> None:
    many = [f"{i}-{randomness.key(i)}" for i in range(2 * BLOCK + 3)]
    texts = Texts.of(iter(many))
    assert texts == many and list(texts) == many and len(texts) == len(many)
    assert (texts[0], texts[-1], texts[BLOCK]) == (many[0], many[-1], many[BLOCK]) and texts[5:9] == many[5:9]
    assert list(Texts.of(TEXTS)) == TEXTS and texts != many[:-1] and texts != [*many[:-1], "y"]
    assert Texts(np.frombuffer(b"a\0bc\0", np.uint8)[:4]) == ["a", "bc"]
    with pytest.raises(IndexError):
        texts[len(many)]


def test_words_picks_chains_and_records_are_views() -> None:
    import torch

    words = Words.of(["val", "train", "val"], ("train", "val"))
    assert words == ["val", "train", "val"] and words.codes.nbytes == 3
    picked = Picked(TEXTS, torch.tensor([2, 0]))
    assert picked == ["x", "a/b c.png"] and Chained([picked, [], TEXTS[:1]]) == ["x", "a/b c.png", "a/b c.png"]
    assert FileRecords(picked)[1] == {"file": "a/b c.png"} and FileRecords(picked)[-2:] == [
        {"file": "x"},
        {"file": "a/b c.png"},
    ]


def test_lines_in_a_temporary_file_are_those_that_were_read(monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    from sslmed_dist.data import compact

    many = [f"line {i}" * (1 + i % 3) for i in range(2 * BLOCK + 3)]
    monkeypatch.setattr(compact, "IN_MEMORY", 1000)
    lines = Lines(iter(many))
    assert lines.file._rolled and lines == many  # type: ignore[attr-defined]
    assert lines.sha256 == hashlib.sha256("\n".join(many).encode()).hexdigest()
    first, second = iter(lines), iter(lines)
    assert [next(first), next(second), lines[BLOCK + 1], next(first)] == [many[0], many[0], many[BLOCK + 1], many[1]]
    assert Lines([]).sha256 == hashlib.sha256(b"").hexdigest() and list(Lines([])) == []
