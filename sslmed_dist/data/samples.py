"""Which samples a run was trained on: one hash that knows them again, and the list behind it.

The hash goes into checkpoints. The list names files, so it stays in the run folder and is neither exported nor sent.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from sslmed_dist.data.compact import Lines
from sslmed_dist.data.dataset import Dataset, Stored

MOST_CONTENT = 2 * 2**30  # bytes of files in all, up to which their content is part of the hash
BLOCK = 4096  # samples that are described at a time
MOST_KNOWN = 2**16  # hashes that are kept, in case that more samples lie in the same file
READERS = 8  # threads, each with one file at a time
TURNS, MOST_AT_ONCE = 16, 256  # how often a reader gets new work, if that is not more samples than these
Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Samples:
    """The samples of a training set.

    digest   SHA-256 of ``lines``, hexadecimal
    content  whether the content of files is part of it, or their names and sizes alone
    lines    one JSON object per sample, by ascending id: id, label, and of what it is kept in file, size and content
    """

    digest: str
    content: bool
    lines: Sequence[str]

    def known(self) -> dict[str, Any]:
        """What a checkpoint holds of them."""
        return {"digest": self.digest, "content": self.content, "count": len(self.lines)}

    def part(self, ids: Collection[int]) -> "Samples":
        """Those of the samples that have these ids, as if they had been described alone."""
        return listed((line for line in self.lines if json.loads(line)["id"] in ids), self.content)


def describe(dataset: Dataset, content: bool | None = None) -> Samples:
    """The samples of ``dataset``. ``content`` None: files are read if they have ``MOST_CONTENT`` bytes in all or less.
    What is in memory anyway is always read. ``ValueError`` for a file that is not there or cannot be read."""
    if content is None:
        content = at_most(dataset, MOST_CONTENT)
    return listed(sample_lines(dataset, content), content)


def at_most(dataset: Dataset, most: int) -> bool:
    """Whether the files of ``dataset`` have ``most`` bytes in all or less; several samples may be kept in one file."""
    total, seen = 0, dict[int, Stored]()
    for positions in torch.split(torch.arange(len(dataset)), BLOCK):
        for entry in stored(dataset, positions):
            if entry.file is not None and id(entry) not in seen:
                seen[id(entry)] = entry  # held, so that no other one gets its number
                total += entry.size
        if total > most:
            return False
    return True


def stored(dataset: Dataset, positions: Tensor) -> list[Stored]:
    """What the samples at ``positions`` (int64 (n,)) are kept in."""
    if dataset.in_memory:  # there is nothing to wait for, so threads would only take turns
        return [dataset.stored(position) for position in positions.tolist()]
    return by_readers(dataset.stored, positions.tolist())


def sample_lines(dataset: Dataset, content: bool) -> Iterator[str]:
    """The lines of ``Samples``, ``BLOCK`` samples at a time."""
    ids, known = dataset.ids, dict[int, tuple[Stored, str]]()  # several slices may be kept in one file
    order = torch.arange(len(ids)) if bool((ids[1:] > ids[:-1]).all()) else ids.argsort()
    for positions in torch.split(order, BLOCK):
        kept = stored(dataset, positions)
        to_read = {id(entry): entry for entry in kept if (content or entry.file is None) and id(entry) not in known}
        read = by_readers(lambda entry: entry.digest(), list(to_read.values()))
        known |= {key: (entry, digest) for (key, entry), digest in zip(to_read.items(), read, strict=True)}
        rows = zip(ids[positions].tolist(), dataset.labels[positions].tolist(), kept, strict=True)
        for number, label, entry in rows:  # as ``json.dumps`` would write it, in a third of the time
            file = "" if entry.file is None else f', "file": {json.dumps(entry.file)}, "size": {entry.size}'
            digest = f', "content": "{known[id(entry)][1]}"' if id(entry) in known else ""
            yield f'{{"id": {number}, "label": {in_json(label)}{file}{digest}}}'
        if len(known) > MOST_KNOWN:
            known.clear()


def listed(lines: Iterable[str], content: bool) -> Samples:
    """The samples of these lines."""
    kept = Lines(lines)
    return Samples(kept.sha256, content, kept)


def in_json(label: Any) -> str:
    """A label, or a list of them, as JSON."""
    return str(label) if isinstance(label, int) else json.dumps(written(label))


def written(label: Any) -> Any:
    """A label, or a list of them, as JSON can hold it: null where one is missing (NaN)."""
    if isinstance(label, list):
        return [written(value) for value in label]
    return None if label != label else label


def by_readers(work: Callable[[Job], Result], jobs: Sequence[Job]) -> list[Result]:
    """``work`` of every job, in the order of the jobs, by ``READERS`` threads; the first error is raised."""
    # several jobs at a time: to hand over one takes longer than to hash a small image
    size = min(1 + len(jobs) // (TURNS * READERS), MOST_AT_ONCE)
    blocks = [jobs[start : start + size] for start in range(0, len(jobs), size)]
    with ThreadPoolExecutor(READERS) as pool:
        done = pool.map(lambda block: [work(job) for job in block], blocks)
        return [result for block in done for result in block]


def first_difference(before: Iterable[str], now: Iterable[str]) -> str:
    """In words, the first sample in which two lists of ``Samples.lines`` differ; empty where they are the same."""
    for old, new in zip_longest(before, now):
        if old == new:
            continue
        was, present = (None if line is None else json.loads(line) for line in (old, new))
        if was is None or present is None or was["id"] != present["id"]:
            first = min(sample["id"] for sample in (was, present) if sample is not None)
            return f"sample {first} is only in one of them"
        key = next(key for key in (*was, *present) if was.get(key) != present.get(key))
        told = "has another content" if key == "content" else f"has {key} {present.get(key)!r}, it had {was.get(key)!r}"
        return f"sample {was['id']} {told}"
    return ""


def in_file(root: Path, name: str) -> Stored:
    """A sample kept in the file ``root / name``. ``ValueError`` for a file that is not there."""
    path = root / name
    try:
        return Stored(lambda: hash_of(path), name, path.stat().st_size)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None


def hash_of(path: Path) -> str:
    """Hexadecimal hash of a file's bytes. ``ValueError`` naming a file that cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
