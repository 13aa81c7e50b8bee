"""Whether a pack that is there is whole, and still that of its source."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sslmed_dist.atomic_files import sha256, write_atomically
from sslmed_dist.data.images.shard_writing import Shard, source_digest, source_of
from sslmed_dist.data.images.shards import SUMMARY, open_shard, read_summary
from sslmed_dist.printable import plural

STATE = "state"  # of pack.json: sizes and times of the source's files, as one sha256
UNKNOWN = "whether its images have changed since is unknown, for an older version packed them; --force packs anew"


def is_packed(
    folder: Path,
    summary: Mapping[str, Any],
    shards: Sequence[Shard],
    *,
    note: Callable[[str], None],
    force: bool,
    verify: bool,
) -> bool:
    """Whether the pack in ``folder`` may stay as it is; ``note`` is told why or why not. Where it may not, its
    ``pack.json`` and damaged shards are deleted. ``summary`` is what would be written of its source, in ``shards``.

    Compared are the sizes of the pack's files and the sizes and times of the images; with ``verify`` all bytes of both.
    ``ValueError`` where the images have changed, or may have, unless they may be packed anew (``force``).
    """
    stored = read_summary(folder)
    damaged = remove_damaged(folder, stored, verify)
    for line in damaged:
        note(f"{line}: written anew")
    changed = "" if damaged else changes(folder, stored, summary, shards, verify)
    if changed and not force:
        how = "" if verify else "--verify compares their bytes, "
        raise ValueError(f"{folder}: {changed} since they were packed; {how}--force packs anew")
    unknown = not stored.get(STATE)
    if damaged or changed or (unknown and force):
        (folder / SUMMARY).unlink()
        return False
    if stored.get(STATE) != summary[STATE] and not unknown:  # other times, but the same bytes: so it is known next time
        content = json.dumps({**stored, STATE: summary[STATE]}, indent=1) + "\n"
        write_atomically(folder / SUMMARY, content.encode())
    note(f"{folder}: is packed already" + (f"; {UNKNOWN}" if unknown else ", all bytes compared" if verify else ""))
    return True


def remove_damaged(folder: Path, stored: Mapping[str, Any], verify: bool) -> list[str]:
    """What is wrong with the shards of a pack, a line each; the index of such a shard is deleted, so that it is written
    anew."""
    lines = []
    for entry in stored["shards"]:
        try:
            blob, _ = open_shard(folder, entry, stored["fingerprint"])
            if verify and sha256(blob) != entry["sha256"]:
                raise ValueError(f"{blob}: its bytes are not those that were packed")
        except ValueError as error:
            lines.append(str(error))
            (folder / f"{entry['shard']}.npz").unlink(missing_ok=True)
    return lines


def changes(
    folder: Path, stored: Mapping[str, Any], summary: Mapping[str, Any], shards: Sequence[Shard], verify: bool
) -> str:
    """In words, that the source's files are not those that were packed; "" where they are, or nothing tells."""
    if not stored.get(STATE):
        return ""
    if not verify:
        return "" if stored[STATE] == summary[STATE] else "sizes or times of its images have changed"
    packed = [source_of(folder / f"{shard.stem}.npz") for shard in shards]
    differ = sum(digest != source_digest(shard.root, shard.names) for digest, shard in zip(packed, shards, strict=True))
    return f"images of {differ} of {plural(len(shards), 'shard')} have changed" if differ else ""
