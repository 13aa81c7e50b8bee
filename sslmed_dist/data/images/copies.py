"""Copies of one picture on both sides of a split: a model that was trained on a test image is not tested by it.

Two files are copies when their bytes are the same. Only files whose size occurs on both sides are read. Their hashes
are kept in the user's cache by size and time of change; a path enters it as a hash of itself, so no name is in it.
"""

import hashlib
import json
import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sslmed_dist.atomic_files import write_atomically
from sslmed_dist.data.samples import by_readers, hash_of
from sslmed_dist.user_cache import user_cache

MOST_UNASKED = 20 * 2**30  # bytes that are read without being asked to


@dataclass(frozen=True)
class Copies:
    """``train``: positions of training files whose bytes also occur in val or test; ``skipped``: how many bytes would
    have to be read to know, where that was too much to do unasked, else 0."""

    train: Sequence[int]
    skipped: int = 0


def find_copies(root: Path, names: Sequence[str], splits: Sequence[str], asked: bool) -> Copies:
    """The copies among the files ``root / names[i]``, each in ``splits[i]``. Files that are not there are passed over.

    More than ``MOST_UNASKED`` bytes are only read when ``asked``. ``ValueError`` for a file that cannot be read.
    """
    candidates = same_sizes(root, names, [split == "train" for split in splits])
    total = sum(size for _, size, _ in candidates)
    if total > MOST_UNASKED and not asked:
        return Copies([], total)
    digests = hashes(root, names, candidates)
    held_out = {digests[i] for i, _, _ in candidates if splits[i] != "train"}
    return Copies([i for i, _, _ in candidates if splits[i] == "train" and digests[i] in held_out])


def count_conflicts(root: Path, names: Sequence[str], labels: Sequence[int]) -> int | None:
    """How many of the files ``root / names[i]`` have the bytes of a file under another label; files without one (-1)
    are passed over. None where that means to read more than ``MOST_UNASKED`` bytes. ``ValueError`` as
    ``find_copies``."""
    candidates = [each for each in same_sizes(root, names, labels, without=-1) if labels[each[0]] != -1]
    if sum(size for _, size, _ in candidates) > MOST_UNASKED:
        return None
    digests = hashes(root, names, candidates)
    classes: dict[str, set[int]] = {}
    for i, digest in digests.items():
        classes.setdefault(digest, set()).add(labels[i])
    return sum(len(classes[digest]) > 1 for digest in digests.values())


def same_sizes(
    root: Path, names: Sequence[str], sides: Sequence[Hashable], without: Hashable = None
) -> list[tuple[int, int, int]]:
    """(position, size, time of change) of every file whose size occurs on several sides (train and elsewhere, or
    classes); the side ``without`` counts for none."""
    facts = {i: stat for i, stat in enumerate(by_readers(sizes_and_times(root), names)) if stat is not None}
    seen: dict[int, set[Hashable]] = {}
    for i, (size, _) in facts.items():
        seen.setdefault(size, set()).update({sides[i]} - {without})
    return [(i, size, changed) for i, (size, changed) in facts.items() if len(seen[size]) > 1]


def sizes_and_times(root: Path) -> Callable[[str], tuple[int, int] | None]:
    """A function of a name: the file's (size, time of change in ns), None where it is not there."""

    def look(name: str) -> tuple[int, int] | None:
        try:
            stat = os.stat(root / name)
        except OSError:
            return None
        return stat.st_size, stat.st_mtime_ns

    return look


def hashes(root: Path, names: Sequence[str], candidates: Sequence[tuple[int, int, int]]) -> dict[int, str]:
    """The hash of every candidate's bytes, by position: from the cache where size and time are those of then."""
    file = user_cache("copies") / f"{short_hash(os.fsencode(os.path.realpath(root)))}.json"
    known = read_cache(file)
    keys = {i: f"{short_hash(os.fsencode(names[i]))} {size} {changed}" for i, size, changed in candidates}
    missing = [i for i, _, _ in candidates if keys[i] not in known]
    fresh = dict(zip(missing, by_readers(lambda i: hash_of(root / names[i]), missing), strict=True))
    found = {i: fresh[i] if i in fresh else known[keys[i]] for i, _, _ in candidates}
    if missing:
        write_cache(file, known | {keys[i]: digest for i, digest in found.items()})
    return found


def short_hash(data: bytes) -> str:
    """Hexadecimal hash of some bytes."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def read_cache(file: Path) -> dict[str, str]:
    """What the cache knows; nothing where it is not there or damaged, for it can be made again."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in content.items()} if isinstance(content, dict) else {}


def write_cache(file: Path, content: dict[str, str]) -> None:
    """Keep the hashes. A cache that cannot be written costs time and nothing else, so it is no error."""
    try:
        write_atomically(file, json.dumps(content).encode())
    except ValueError:
        return
