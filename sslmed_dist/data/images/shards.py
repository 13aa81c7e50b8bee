"""The files of a packed set: shards, each a blob (the images' bytes one after another) and an index beside it.

    pack.json         what was packed, and every shard with its SHA-256; written last: a pack without it is unfinished
    shard-00000.bin   images: JPEG files, or raw uint8 (channels, side, side)
    shard-00000.npz   offsets (n + 1) of the images in the blob, ids, labels, groups, splits (position in ``SPLITS``),
                      names (bytes of the file system, UTF-8 as a rule, zero bytes between), and the blob's sha256,
                      the pack's fingerprint and the sha256 of the files it was made of as hexadecimal digits (source;
                      packs of older versions have none)

Every file is written completely or not at all (``atomic_files``).
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sslmed_dist.atomic_files import sha256
from sslmed_dist.data.compact import Texts
from sslmed_dist.data.dataset import SPLITS
from sslmed_dist.data.listed_paths import Below
from sslmed_dist.data.npz import Arrays, read_archive
from sslmed_dist.data.text_files import field, parse_json, read_json
from sslmed_dist.printable import excerpt, plural

VERSION = 1
SUMMARY = "pack.json"
COLUMNS = ("ids", "labels", "groups", "splits")
KEYS = ("offsets", *COLUMNS, "names", "sha256", "fingerprint")
SOURCE = "source"
SHARD = re.compile(r"shard-[0-9]{5,9}")
Form = Literal["jpeg", "raw"]


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
        raise ValueError(f"{path}: {names} names for {plural(count, 'image')}; the file is damaged")
    if offsets[0] != 0 or bool((offsets[1:] < offsets[:-1]).any()):
        raise ValueError(f"{path}: offsets that do not ascend from 0; the file is damaged")
    return arrays


def read_names(arrays: Arrays) -> Texts:
    """The file names of an index; a name that is no UTF-8 is as the file system gives it."""
    return Texts(arrays["names"].astype(np.uint8, copy=False))


def read_summary(folder: Path) -> dict[str, Any]:
    """``pack.json`` of a packed set. ``ValueError`` when it is missing, damaged, or of another kind or version."""
    path = folder / SUMMARY
    if not path.is_file():
        started = any(folder.glob("shard-*")) if folder.is_dir() else False
        reason = "packing was not finished; run the same `sslmed data pack` again" if started else "not a packed set"
        raise ValueError(f"{path}: no such file: {reason}")
    return checked_summary(read_json(path), path)


def parse_summary(content: bytes, path: str | Path) -> dict[str, Any]:
    """``pack.json`` out of the bytes of ``path``, which may be an address. ``ValueError`` as ``read_summary``."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file in UTF-8: {error}") from error
    return checked_summary(parse_json(text, path), path)


def checked_summary(summary: Any, path: str | Path) -> dict[str, Any]:
    """``summary``, the content of ``pack.json``, as it has to be. ``ValueError`` as ``read_summary``."""
    if not isinstance(summary, dict) or summary.get("kind") != "sslmed pack" or summary.get("version") != VERSION:
        raise ValueError(f"{path}: not a packed set of version {VERSION}")
    require_summary(summary, path)
    return summary


def require_summary(summary: dict[str, Any], path: str | Path) -> None:
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
        raise ValueError(f"{index}: {plural(count, 'image')}, but {SUMMARY} says {shard_entry['images']}")
    return blob, arrays


@dataclass(frozen=True)
class Pack:
    """An opened pack of N images.

    summary  content of pack.json
    blobs    the files of the shards that hold the images
    columns  by their names: "ids", "labels", "groups" int64 (N,); "splits" int8 (N,), positions in ``SPLITS``; "shard"
             int32 (N,), number of the shard that holds the image; "starts" int64 (N,), the image's first byte in its
             blob; "sizes" int32 (N,), its bytes
    """

    summary: dict[str, Any]
    blobs: list[Path]
    columns: dict[str, Tensor]


def open_pack(folder: Path) -> Pack:
    """Read ``pack.json`` and every index. ``ValueError`` as ``read_summary`` and ``open_shard``."""
    summary = read_summary(folder)
    count, counts = summary["images"], [shard["images"] for shard in summary["shards"]]
    if sum(counts) != count:
        raise ValueError(f"{folder}: {sum(counts)} images in the shards, {count} in {SUMMARY}")
    for shard in summary["shards"]:  # memory is taken for as many images as it says: no index is shorter than they
        index = folder / f"{shard['shard']}.npz"
        if index.is_file() and shard["images"] > index.stat().st_size:
            raise ValueError(f"{index}: too short for the {shard['images']} images that {SUMMARY} says")
    blobs: list[Path] = []
    kinds = {**dict.fromkeys((*COLUMNS, "starts"), np.int64), "splits": np.int8, "sizes": np.int32, "shard": np.int32}
    columns: dict[str, Any] = {}
    for number, shard_entry in enumerate(summary["shards"]):
        blob, arrays = open_shard(folder, shard_entry, summary["fingerprint"])
        require_consistent(blob, summary, arrays)
        if not columns:  # not before an index has shown that it has as many images as it says
            columns = {key: np.empty(count, kind) for key, kind in kinds.items()}
        rows = slice(sum(counts[:number]), sum(counts[: number + 1]))
        # every image ends where the next begins
        arrays |= {"starts": arrays["offsets"][:-1], "sizes": np.diff(arrays["offsets"]), "shard": np.array(number)}
        for key, column in columns.items():
            column[rows] = arrays[key]
        blobs.append(blob)
    tensors = {key: torch.from_numpy(column) for key, column in columns.items()}
    ids = tensors["ids"]
    if not bool((ids[1:] > ids[:-1]).all()) and len(torch.unique(ids)) < len(ids):
        raise ValueError(f"{folder}: an id stands in the pack twice")
    return Pack(summary, blobs, tensors)


def require_consistent(blob: Path, summary: dict[str, Any], arrays: Arrays) -> None:
    """``ValueError`` for a shard that contradicts its pack: a label that no class has, an unknown split, an image of
    2 GiB and more, raw images of another size than the pack's."""
    classes, side = len(summary["classes"]), summary["channels"] * summary["short"] ** 2
    index = blob.with_suffix(".npz")
    for key, low, high in (("labels", -1, classes - 1), ("splits", 0, len(SPLITS) - 1), ("ids", 0, 2**62)):
        values = arrays[key]
        if len(values) and not (low <= int(values.min()) and int(values.max()) <= high):
            span = f"{int(values.min())} to {int(values.max())}"
            raise ValueError(f"{index}: {key} run from {span}; allowed: {low} to {high}")
    sizes = np.diff(arrays["offsets"])
    if summary["format"] == "raw" and bool((sizes != side).any()):
        raise ValueError(f"{index}: raw images that are not of {side} bytes each")
    if len(sizes) and int(sizes.max()) >= 2**31:
        raise ValueError(f"{index}: an image of {int(sizes.max()):,} bytes; allowed: below 2 GiB")


def image_bytes(blob: "np.ndarray[Any, np.dtype[np.uint8]]", start: int, end: int) -> Tensor:
    """A copy of one image's bytes, uint8 (bytes,)."""
    return torch.from_numpy(np.array(blob[start:end]))
