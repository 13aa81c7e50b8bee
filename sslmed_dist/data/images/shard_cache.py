"""A packed set copied to a disk of this node, once for all its processes, and checked by its SHA-256s.

CACHE/pack-KEY/     KEY: of the SHA-256 of pack.json, so that another pack has another folder
  pack.json         written last: a folder without it is not whole, and nobody reads it
  shard-*.bin|npz   each checked before it gets its name; .shard-*.part is what an interrupted copy has so far
  .lock             held by the process that copies; others wait for it
"""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sslmed_dist.addresses import is_address, local_path, require_place
from sslmed_dist.atomic_files import continuing, sha256, write_atomically
from sslmed_dist.data.images.shards import SUMMARY, parse_summary, read_summary
from sslmed_dist.data.stores import Store, blocks, open_store
from sslmed_dist.data.text_files import LARGEST_JSON
from sslmed_dist.locks import alone, held
from sslmed_dist.printable import note, plural

GIB = 2**30


def at_hand(root: str | Path, cache: str | None, cache_gib: float | None) -> Path:
    """The folder from which the packed set ``root`` (a path or an address) is read: its own, or with ``cache`` its copy
    below that folder, which is made where it is not there yet. The copy and all others there may take ``cache_gib``.

    The first process of a node copies, all others wait for it. An interrupted copy goes on where it stopped.
    ``ValueError``: an address without ``cache``, a pack that cannot be read, bytes that are not those that were packed,
    a disk or a limit that is too small.
    """
    if cache is None and cache_gib is not None:
        raise ValueError("data.cache_gib: is the limit of data.cache, which is not given; give both, or neither")
    if str(root).startswith("file://"):
        root = local_path(str(root))
    if not is_address(str(root)):
        root = Path(root).expanduser()
        if cache is None:
            return root
        read_summary(root)  # what is wrong with it is better said of a folder
    elif cache is None:
        raise ValueError(f"data.root: {root}: needs data.cache, a folder on a disk of this machine for the copy")
    if cache_gib is not None and cache_gib <= 0:
        raise ValueError(f"data.cache_gib: expected a number above 0, got {cache_gib}")
    store, place = open_store(root), Path(require_place(cache, "data.cache")).expanduser()
    if isinstance(root, Path) and place.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"data.cache: {place}: lies in the pack {root} itself; allowed: a folder outside it")
    content = read_whole(store)
    summary = parse_summary(content, f"{store.where}/{SUMMARY}")
    folder = place / f"pack-{hashlib.sha256(content).hexdigest()[:16]}"
    if is_whole(folder, content):
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"data.cache: {place}: cannot be written: {error.strerror}") from None
    if held(folder):
        note(f"data: another process copies {store.where} to {place}; waiting for it")
    with alone(folder, "a copy", wait=True):
        if not is_whole(folder, content):
            copy(store, summary, content, folder, cache_gib)
    return folder


def read_whole(store: Store) -> bytes:
    """The bytes of a store's pack.json. ``ValueError`` where it is not there, or too long to be one."""
    content = b""
    for block in blocks(store, SUMMARY):
        content += block
        if len(content) > LARGEST_JSON:
            raise ValueError(f"{store.where}/{SUMMARY}: allowed for a JSON file: {LARGEST_JSON:,} bytes")
    return content


def is_whole(folder: Path, content: bytes) -> bool:
    """Whether the copy in ``folder`` is complete: its pack.json is there, which is written last, and no file of it is
    torn."""
    path = folder / SUMMARY
    if not (path.is_file() and path.read_bytes() == content):
        return False
    return not torn(folder, parse_summary(content, path))


def torn(folder: Path, summary: Mapping[str, Any]) -> list[str]:
    """The names of the pack's files that are missing in a copy, blobs of another size than was packed, and indices of
    other bytes. A blob's bytes are not read: that takes as long as copying them."""
    names = []
    for shard in summary["shards"]:
        index, blob = (folder / f"{shard['shard']}{suffix}" for suffix in (".npz", ".bin"))
        if not index.is_file() or sha256(index) != shard["index_sha256"]:
            names.append(index.name)
        if not blob.is_file() or blob.stat().st_size != shard.get("bytes", blob.stat().st_size):
            names.append(blob.name)
    return names


def copy(store: Store, summary: Mapping[str, Any], content: bytes, folder: Path, cache_gib: float | None) -> None:
    """Copy what is missing of a pack or torn, each file checked, and pack.json last."""
    digests: dict[str, str] = {}
    for shard in summary["shards"]:
        digests |= {f"{shard['shard']}.npz": shard["index_sha256"], f"{shard['shard']}.bin": shard["sha256"]}
    lacking = torn(folder, summary)
    missing = [name for name in digests if name in lacking]
    if (folder / SUMMARY).is_file():  # it was whole once
        note(f"data: {', '.join(missing[:3]) or SUMMARY} in {folder}: torn or missing, copied anew")
    require_space(summary, folder, cache_gib)
    note(f"data: {len(missing)} of {plural(len(digests), 'file')} of {store.where} are copied to {folder}")
    for name in missing:
        copy_file(store, name, folder / name, digests[name])
    write_atomically(folder / SUMMARY, content)


def copy_file(store: Store, name: str, target: Path, expected: str) -> None:
    """Copy one file, from where an earlier copy of it broke off. ``ValueError`` where its SHA-256 is not the
    ``expected`` one, even when all of it is read once more."""
    for from_start in (False, True):
        with continuing(target, from_start=from_start) as (file, finish):
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256")  # of what is there already; leaves the file at its end
            for block in blocks(store, name, file.tell()):
                file.write(block)
                digest.update(block)
            if digest.hexdigest() == expected:
                finish()
                return
    target.with_name(f".{target.name}.part").unlink(missing_ok=True)
    raise ValueError(f"{store.where}/{name}: not the file that {SUMMARY} names (SHA-256 differs); torn, or changed")


def require_space(summary: Mapping[str, Any], folder: Path, cache_gib: float | None) -> None:
    """``ValueError`` where the rest of a pack does not fit on the disk, or the whole with all other packs in the cache
    not in ``cache_gib``. Nothing is deleted: another run may be reading it."""
    place, whole = folder.parent, sum(int(shard.get("bytes", 0)) for shard in summary["shards"])
    packs = {pack.name: used(pack) for pack in sorted(place.glob("pack-*"))}
    rest, free = max(whole - packs[folder.name], 0), shutil.disk_usage(place).free
    others = {name: size for name, size in packs.items() if name != folder.name and size}
    listed = ", ".join(f"{name} ({size / GIB:.1f} GiB)" for name, size in others.items())
    hint = f"delete what no run reads any more: {listed}; or another data.cache" if others else "another data.cache"
    if rest > free:
        raise ValueError(
            f"data.cache: {place}: {rest / GIB:.2f} GiB to copy, and {free / GIB:.2f} GiB are free; allowed: {hint}"
        )
    if cache_gib is not None and whole + sum(others.values()) > cache_gib * GIB:
        raise ValueError(
            f"data.cache: {place}: {(whole + sum(others.values())) / GIB:.2f} GiB with this pack of {whole / GIB:.2f}, "
            f"more than data.cache_gib {cache_gib:g}; allowed: a larger limit, or {hint}"
        )


def used(folder: Path) -> int:
    """Bytes of the files of a pack's copy."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
