"""The files of a packed set: shards, each a blob of images one after another and an index beside it.

    pack.json         what was packed, and every shard with its SHA-256; written last, so without it nothing is whole
    shard-00000.bin   images: JPEG files, or raw uint8 (channels, side, side)
    shard-00000.npz   offsets (n + 1), ids, labels, groups, splits (position in ``SPLITS``), names (UTF-8, zero bytes
                      between), and the blob's sha256 and the pack's fingerprint as hexadecimal digits

Every file is written whole or not at all (``atomic_files``).
"""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sslmed_dist.atomic_files import sha256, write_atomically, writing
from sslmed_dist.data.images.decode import crop_centre, read_picture
from sslmed_dist.data.npz import Arrays, read_archive

VERSION = 1
SUMMARY = "pack.json"
COLUMNS = ("ids", "labels", "groups", "splits")
KEYS = ("offsets", *COLUMNS, "names", "sha256", "fingerprint")
Form = Literal["jpeg", "raw"]


@dataclass(frozen=True)
class Shard:
    """What it takes to write one shard: where, of which files, how. ``columns`` holds ``COLUMNS`` of its rows."""

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

    A shard that is already whole is left as it is. ``ValueError`` names an image that cannot be read, or a shard there
    that belongs to another pack.
    """
    blob, index = (shard.folder / (shard.stem + suffix) for suffix in (".bin", ".npz"))
    if index.exists():
        written = read_index(index)
        if written["fingerprint"].item() != shard.fingerprint:
            raise ValueError(f"{index}: shard of another pack; give an empty or a new folder")
        if blob.is_file() and sha256(blob) == written["sha256"].item():
            return entry(shard.stem, blob, index, written)
    digest, offsets = hashlib.sha256(), [0]
    with writing(blob) as file:
        for name in shard.names:
            data = encode(read_picture(shard.root / name, shard.short, shard.channels), shard)
            file.write(data)
            digest.update(data)
            offsets.append(offsets[-1] + len(data))
    arrays = {
        "offsets": np.array(offsets, dtype=np.int64),
        **shard.columns,
        "names": np.frombuffer("\0".join(shard.names).encode(), dtype=np.uint8),
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
    """The arrays of an index. ``ValueError`` naming the file when it is damaged or they do not fit one another."""
    arrays = read_archive(path, KEYS)
    count = len(arrays["ids"])
    if any(len(arrays[key]) != count for key in COLUMNS) or len(arrays["offsets"]) != count + 1:
        raise ValueError(f"{path}: its arrays differ in length; the file is damaged")
    return arrays


def read_names(arrays: Arrays) -> list[str]:
    """The file names of an index."""
    return arrays["names"].tobytes().decode().split("\0")


def read_summary(folder: Path) -> dict[str, Any]:
    """``pack.json`` of a packed set. ``ValueError`` when it is missing, damaged, or of another kind or version."""
    path = folder / SUMMARY
    if not path.is_file():
        started = any(folder.glob("shard-*")) if folder.is_dir() else False
        why = "packing was not finished; run the same `sslmed data pack` again" if started else "not a packed set"
        raise ValueError(f"{path}: no such file: {why}")
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: damaged: {error}") from error
    if not isinstance(summary, dict) or summary.get("kind") != "sslmed pack" or summary.get("version") != VERSION:
        raise ValueError(f"{path}: not a packed set of version {VERSION}")
    return summary


def open_shard(folder: Path, said: dict[str, Any], fingerprint: str) -> tuple[Path, Arrays]:
    """(blob file, arrays of the index) of the shard of which ``pack.json`` says ``said``. The index is checked by its
    SHA-256, the blob by its length alone (``sslmed data check`` reads it). ``ValueError`` names a torn or foreign one.
    """
    blob, index = (folder / (str(said["shard"]) + suffix) for suffix in (".bin", ".npz"))
    for path in (blob, index):
        if not path.is_file():
            raise ValueError(f"{path}: no such file, but {SUMMARY} names it")
    if sha256(index) != said["index_sha256"]:
        raise ValueError(f"{index}: not the index that {SUMMARY} names; torn, or of another pack")
    arrays = read_index(index)
    if arrays["fingerprint"].item() != fingerprint:
        raise ValueError(f"{index}: index of another pack")
    size = blob.stat().st_size
    if size != int(arrays["offsets"][-1]):
        raise ValueError(f"{blob}: {size} bytes, expected {int(arrays['offsets'][-1])}; torn, or of another pack")
    return blob, arrays


@dataclass(frozen=True)
class Pack:
    """An opened pack: ``summary`` (pack.json), ``blobs`` (the shards' files) and, of every image in order, ``columns``
    (``COLUMNS``), ``names``, ``shard`` (its number) and ``spans`` ((N, 2), the bytes of the blob)."""

    summary: dict[str, Any]
    blobs: list[Path]
    columns: dict[str, Tensor]
    names: list[str]
    shard: Tensor
    spans: Tensor


def open_pack(folder: Path) -> Pack:
    """Read ``pack.json`` and every index. ``ValueError`` as ``read_summary`` and ``open_shard``."""
    summary = read_summary(folder)
    opened = [open_shard(folder, said, summary["fingerprint"]) for said in summary["shards"]]
    indices = [arrays for _, arrays in opened]
    counts = torch.tensor([len(arrays["ids"]) for arrays in indices])
    if int(counts.sum()) != summary["images"]:
        raise ValueError(f"{folder}: {int(counts.sum())} images in the shards, {summary['images']} in {SUMMARY}")
    spans = [np.stack([arrays["offsets"][:-1], arrays["offsets"][1:]], 1) for arrays in indices]
    return Pack(
        summary=summary,
        blobs=[blob for blob, _ in opened],
        columns={key: torch.from_numpy(np.concatenate([arrays[key] for arrays in indices])) for key in COLUMNS},
        names=[name for arrays in indices for name in read_names(arrays)],
        shard=torch.repeat_interleave(torch.arange(len(indices)), counts),
        spans=torch.from_numpy(np.concatenate(spans)),
    )


def decode_jpeg(data: Tensor, channels: int, where: str) -> Tensor:
    """One JPEG file (uint8 (bytes,)) as uint8 (channels, H, W) on the CPU. ``ValueError`` beginning with ``where``."""
    from torchvision.io import ImageReadMode
    from torchvision.io import decode_jpeg as decode

    try:
        image: Tensor = decode(data, ImageReadMode.RGB if channels == 3 else ImageReadMode.GRAY)
    except RuntimeError as error:
        raise ValueError(f"{where} is corrupt: {str(error).splitlines()[0].rsplit(', ', 1)[-1]}") from error
    return image


def image_bytes(blob: "np.ndarray[Any, np.dtype[np.uint8]]", start: int, end: int) -> Tensor:
    """A copy of one image's bytes, uint8 (bytes,)."""
    return torch.from_numpy(np.array(blob[start:end]))
