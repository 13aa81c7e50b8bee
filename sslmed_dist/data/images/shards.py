"""The files of a packed set: shards, each a blob (the images' bytes one after another) and an index beside it.

    pack.json         what was packed, and every shard with its SHA-256; written last: a pack without it is unfinished
    shard-00000.bin   images: JPEG files, or raw uint8 (channels, side, side)
    shard-00000.npz   offsets (n + 1) of the images in the blob, ids, labels, groups, splits (position in ``SPLITS``),
                      names (bytes of the file system, UTF-8 as a rule, zero bytes between), and the blob's sha256
                      and the pack's fingerprint as hexadecimal digits

Every file is written completely or not at all (``atomic_files``).
"""

import hashlib
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sslmed_dist.atomic_files import sha256, write_atomically, writing
from sslmed_dist.data.dataset import SPLITS
from sslmed_dist.data.images.decode import crop_centre, read_picture
from sslmed_dist.data.listed_paths import Below
from sslmed_dist.data.npz import Arrays, read_archive
from sslmed_dist.data.text_files import field, read_json
from sslmed_dist.printable import excerpt

VERSION = 1
SUMMARY = "pack.json"
COLUMNS = ("ids", "labels", "groups", "splits")
KEYS = ("offsets", *COLUMNS, "names", "sha256", "fingerprint")
SHARD = re.compile(r"shard-[0-9]{5,9}")
Form = Literal["jpeg", "raw"]


@dataclass(frozen=True)
class Shard:
    """What it takes to write one shard: where, of which files and how.

    ``columns`` has the arrays (n,) named in ``COLUMNS``, one value per image.
    """

    folder: Path
    number: int
    root: Path
    names: Sequence[str]
    columns: Arrays
    fingerprint: str
    form: Form
    short: int
    quality: int
    channels: int

    @property
    def stem(self) -> str:
        """The file name without its suffix."""
        return f"shard-{self.number:05d}"


def write_shard(shard: Shard) -> dict[str, Any]:
    """Decode, encode and write the images of a shard, then its index; return its entry for ``pack.json``.

    A shard that is complete on the disk is left as it is. ``ValueError`` names an image that cannot be read, or a
    shard on the disk that belongs to another pack.
    """
    blob, index = (shard.folder / (shard.stem + suffix) for suffix in (".bin", ".npz"))
    # the index is written last, so a shard with one is complete unless its blob was changed or removed since
    if index.exists():
        written = read_index(index)
        if written["fingerprint"].item() != shard.fingerprint:
            raise ValueError(f"{index}: shard of another pack; give an empty or a new folder")
        if blob.is_file() and sha256(blob) == written["sha256"].item():
            return entry(shard.stem, blob, index, written)
    digest, offsets = hashlib.sha256(), [0]
    # the blob is written image by image; offsets[i] to offsets[i + 1] are the bytes of image i
    with writing(blob) as file:
        for name in shard.names:
            data = encode(read_picture(shard.root / name, shard.short, shard.channels), shard)
            file.write(data)
            digest.update(data)
            offsets.append(offsets[-1] + len(data))
    arrays = {
        "offsets": np.array(offsets, dtype=np.int64),
        **shard.columns,
        # text as bytes, for an array of text would need as many characters per name as the longest has
        "names": np.frombuffer(os.fsencode("\0".join(shard.names)), dtype=np.uint8),
        "sha256": np.array(digest.hexdigest()),
        "fingerprint": np.array(shard.fingerprint),
    }
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    write_atomically(index, stream.getvalue())
    return entry(shard.stem, blob, index, arrays)


def encode(image: Tensor, shard: Shard) -> bytes:
    """One image (C, H, W) uint8 as the bytes that a shard stores: a JPEG file of all of it, or its middle square."""
    if shard.form == "raw":
        return crop_centre(image, shard.short).numpy().tobytes()
    from torchvision.io import encode_jpeg

    encoded: Tensor = encode_jpeg(image.contiguous(), shard.quality)
    return encoded.numpy().tobytes()


def entry(stem: str, blob: Path, index: Path, arrays: Arrays) -> dict[str, Any]:
    """What ``pack.json`` says of a shard."""
    return {
        "shard": stem,
        "images": len(arrays["ids"]),
        "bytes": blob.stat().st_size,
        "sha256": arrays["sha256"].item(),
        "index_sha256": sha256(index),
    }


def read_index(path: Path) -> Arrays:
    """The arrays of an index. ``ValueError`` naming the file when it is damaged or their lengths disagree."""
    arrays = read_archive(path, KEYS)
    for key in KEYS[:-2]:
        if arrays[key].ndim != 1 or arrays[key].dtype.kind not in ("u" if key == "names" else "iu"):
            raise ValueError(f"{path}: {key}: expected whole numbers (n,), got {arrays[key].dtype} {arrays[key].shape}")
    for key in KEYS[-2:]:
        if arrays[key].ndim or arrays[key].dtype.kind != "U":
            raise ValueError(f"{path}: {key}: expected one text, got {arrays[key].dtype} {arrays[key].shape}")
    count, offsets = len(arrays["ids"]), arrays["offsets"]
    if any(len(arrays[key]) != count for key in COLUMNS) or len(offsets) != count + 1:
        raise ValueError(f"{path}: its arrays differ in length; the file is damaged")
    names = len(read_names(arrays))
    if names != max(count, 1):
        raise ValueError(f"{path}: {names} names for {count} images; the file is damaged")
    if offsets[0] != 0 or bool((offsets[1:] < offsets[:-1]).any()):
        raise ValueError(f"{path}: offsets that do not ascend from 0; the file is damaged")
    return arrays


def read_names(arrays: Arrays) -> list[str]:
    """The file names of an index; a name that is no UTF-8 is as the file system gives it."""
    return os.fsdecode(arrays["names"].tobytes()).split("\0")


def read_summary(folder: Path) -> dict[str, Any]:
    """``pack.json`` of a packed set. ``ValueError`` when it is missing, damaged, or of another kind or version."""
    path = folder / SUMMARY
    if not path.is_file():
        started = any(folder.glob("shard-*")) if folder.is_dir() else False
        reason = "packing was not finished; run the same `sslmed data pack` again" if started else "not a packed set"
        raise ValueError(f"{path}: no such file: {reason}")
    summary = read_json(path)
    if not isinstance(summary, dict) or summary.get("kind") != "sslmed pack" or summary.get("version") != VERSION:
        raise ValueError(f"{path}: not a packed set of version {VERSION}")
    require_summary(summary, path)
    return summary


def require_summary(summary: dict[str, Any], path: Path) -> None:
    """``ValueError`` naming the entry of ``pack.json`` that is missing, of another type or out of range."""
    where = str(path)
    for name in ("name", "fingerprint"):
        field(summary, name, str, where)
    field(field(summary, "source", dict, where), "name", str, f"{where}: source")
    allowed: dict[str, Any] = {"format": ("jpeg", "raw"), "channels": (1, 3), "short": range(16, 4097)}
    for name, values in allowed.items():
        if field(summary, name, (str, int), where) not in values:
            raise ValueError(f"{where}: {name}: got {excerpt(repr(summary[name]))}; allowed: {values}")
    if not all(isinstance(name, str) for name in field(summary, "classes", list, where)):
        raise ValueError(f"{where}: classes: expected a list of texts")
    if field(summary, "images", int, where) < 1:
        raise ValueError(f"{where}: images: got {summary['images']}; allowed: 1 and more")
    for number, entry in enumerate(field(summary, "shards", list, where)):
        for name, kind in (("shard", str), ("images", int), ("sha256", str), ("index_sha256", str)):
            field(entry, name, kind, f"{where}: shards: {number}")
        if not SHARD.fullmatch(entry["shard"]):
            name = excerpt(entry["shard"])
            raise ValueError(f"{where}: shards: {number}: shard: got {name!r}; expected a name like shard-00000")


def open_shard(folder: Path, shard_entry: dict[str, Any], fingerprint: str) -> tuple[Path, Arrays]:
    """(blob file, arrays of the index) of a shard; ``shard_entry`` is what ``pack.json`` says of it.

    The index is checked by its SHA-256, the blob by its length alone (``sslmed data check`` reads all of it).
    ``ValueError`` names the file that is missing, cut off or of another pack.
    """
    below = Below(folder)
    blob, index = (folder / below(shard_entry["shard"] + suffix, str(folder / SUMMARY)) for suffix in (".bin", ".npz"))
    # both files are there; the index is the one that was written; it is of this pack; the blob has its length
    for file in (blob, index):
        if not file.is_file():
            raise ValueError(f"{file}: no such file, but {SUMMARY} names it")
    if sha256(index) != shard_entry["index_sha256"]:
        raise ValueError(f"{index}: not the index that {SUMMARY} names; torn, or of another pack")
    arrays = read_index(index)
    if arrays["fingerprint"].item() != fingerprint:
        raise ValueError(f"{index}: index of another pack")
    size = blob.stat().st_size
    if size != int(arrays["offsets"][-1]):
        raise ValueError(f"{blob}: {size} bytes, expected {int(arrays['offsets'][-1])}; torn, or of another pack")
    if len(arrays["ids"]) != shard_entry["images"]:
        count = len(arrays["ids"])
        raise ValueError(f"{index}: {count} images, but {SUMMARY} says {shard_entry['images']}")
    return blob, arrays


@dataclass(frozen=True)
class Pack:
    """An opened pack of N images.

    summary  content of pack.json
    blobs    the files of the shards that hold the images
    columns  int64 (N,) by the names of ``COLUMNS``
    names    of the source's files
    shard    int64 (N,), number of the shard that holds the image
    spans    int64 (N, 2), the image's first byte in its blob and the byte after its last
    """

    summary: dict[str, Any]
    blobs: list[Path]
    columns: dict[str, Tensor]
    names: list[str]
    shard: Tensor
    spans: Tensor


def open_pack(folder: Path) -> Pack:
    """Read ``pack.json`` and every index. ``ValueError`` as ``read_summary`` and ``open_shard``."""
    summary = read_summary(folder)
    opened = [open_shard(folder, shard_entry, summary["fingerprint"]) for shard_entry in summary["shards"]]
    indices = [arrays for _, arrays in opened]
    counts = torch.tensor([len(arrays["ids"]) for arrays in indices])
    if int(counts.sum()) != summary["images"]:
        raise ValueError(f"{folder}: {int(counts.sum())} images in the shards, {summary['images']} in {SUMMARY}")
    require_consistent(folder, summary, opened)
    # every image ends where the next begins: (n, 2) of each shard
    spans_by_shard = [np.stack([arrays["offsets"][:-1], arrays["offsets"][1:]], 1) for arrays in indices]
    return Pack(
        summary=summary,
        blobs=[blob for blob, _ in opened],
        columns={
            key: torch.from_numpy(np.concatenate([arrays[key] for arrays in indices]).astype(np.int64))
            for key in COLUMNS
        },
        names=[name for arrays in indices for name in read_names(arrays)],
        # shard 0 for its number of images, then shard 1 for its own, ...
        shard=torch.repeat_interleave(torch.arange(len(indices)), counts),  # (N,)
        spans=torch.from_numpy(np.concatenate(spans_by_shard).astype(np.int64)),
    )


def require_consistent(folder: Path, summary: dict[str, Any], opened: Sequence[tuple[Path, Arrays]]) -> None:
    """``ValueError`` for a pack that contradicts itself: a label that no class has, an unknown split, an id that
    repeats, raw images of another size than the pack's."""
    classes, side = len(summary["classes"]), summary["channels"] * summary["short"] ** 2
    for blob, arrays in opened:
        for key, low, high in (("labels", -1, classes - 1), ("splits", 0, len(SPLITS) - 1), ("ids", 0, 2**62)):
            values = arrays[key]
            if len(values) and not (low <= int(values.min()) and int(values.max()) <= high):
                span = f"{int(values.min())} to {int(values.max())}"
                raise ValueError(f"{blob.with_suffix('.npz')}: {key} run from {span}; allowed: {low} to {high}")
        sizes = np.diff(arrays["offsets"])
        if summary["format"] == "raw" and bool((sizes != side).any()):
            raise ValueError(f"{blob.with_suffix('.npz')}: raw images that are not of {side} bytes each")
    ids = np.concatenate([arrays["ids"] for _, arrays in opened])
    if len(np.unique(ids)) < len(ids):
        raise ValueError(f"{folder}: an id stands in the pack twice")


def image_bytes(blob: "np.ndarray[Any, np.dtype[np.uint8]]", start: int, end: int) -> Tensor:
    """A copy of one image's bytes, uint8 (bytes,)."""
    return torch.from_numpy(np.array(blob[start:end]))
