"""Which samples a run was trained on: one hash that knows them again, and the list behind it.

The hash goes into checkpoints. The list names files, so it stays in the run folder and is neither exported nor sent.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sslmed_dist.data.dataset import Dataset, Stored

MOST_CONTENT = 2 * 2**30  # bytes of files in all, up to which their content is part of the hash
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
        return listed([line for line in self.lines if json.loads(line)["id"] in ids], self.content)


def describe(dataset: Dataset, content: bool | None = None) -> Samples:
    """The samples of ``dataset``. ``content`` None: files are read if they have ``MOST_CONTENT`` bytes in all or less.
    What is in memory anyway is always read. ``ValueError`` for a file that is not there or cannot be read."""
    kept = by_readers(dataset.stored, range(len(dataset)))
    once = {id(entry): entry for entry in kept}  # several slices may be kept in one file
    if content is None:
        content = sum(entry.size for entry in once.values()) <= MOST_CONTENT
    to_read = {key: entry for key, entry in once.items() if content or entry.file is None}
    digests = dict(zip(to_read, by_readers(lambda entry: entry.digest(), list(to_read.values())), strict=True))
    ids, labels, lines = dataset.ids.tolist(), dataset.labels.tolist(), []
    for position in dataset.ids.argsort().tolist():
        entry = kept[position]
        line: dict[str, Any] = {"id": ids[position], "label": written(labels[position])}
        line |= {} if entry.file is None else {"file": entry.file, "size": entry.size}
        line |= {"content": digests[id(entry)]} if id(entry) in digests else {}
        lines.append(json.dumps(line))
    return listed(lines, content)


def listed(lines: Sequence[str], content: bool) -> Samples:
    """The samples of these lines."""
    return Samples(hashlib.sha256("\n".join(lines).encode()).hexdigest(), content, lines)


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


def first_difference(before: Sequence[str], now: Sequence[str]) -> str:
    """In words, the first sample in which two lists of ``Samples.lines`` differ; empty where they are the same."""
    for old, new in zip(before, now, strict=False):
        if old == new:
            continue
        was, present = json.loads(old), json.loads(new)
        if was["id"] != present["id"]:
            return f"sample {min(was['id'], present['id'])} is only in one of them"
        key = next(key for key in (*was, *present) if was.get(key) != present.get(key))
        told = "has another content" if key == "content" else f"has {key} {present.get(key)!r}, it had {was.get(key)!r}"
        return f"sample {was['id']} {told}"
    if len(before) == len(now):
        return ""
    first = json.loads((before if len(before) > len(now) else now)[min(len(before), len(now))])
    return f"sample {first['id']} is only in one of them"


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
