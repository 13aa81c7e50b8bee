"""Shards of a packed set as they are written (their files: see ``shards``)."""

import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sslmed_dist.atomic_files import sha256, write_atomically, writing
from sslmed_dist.data.images.decode import crop_centre, read_picture
from sslmed_dist.data.images.shards import SOURCE, Form, read_index
from sslmed_dist.data.npz import Arrays, open_archive, read_member


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

    A shard that is complete on the disk, and was made of the bytes that its files have now, is left as it is.
    ``ValueError`` names an image that cannot be read, or a shard on the disk that belongs to another pack.
    """
    blob, index = (shard.folder / (shard.stem + suffix) for suffix in (".bin", ".npz"))
    # the index is written last, so a shard with one is complete unless its blob was changed or removed since
    source = source_digest(shard.root, shard.names)
    written = written_index(index)
    if written is not None:
        if written["fingerprint"].item() != shard.fingerprint:
            raise ValueError(f"{index}: shard of another pack; give an empty or a new folder")
        if source == source_of(index) and blob.is_file() and sha256(blob) == written["sha256"].item():
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
        SOURCE: np.array(source),
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


def written_index(path: Path) -> Arrays | None:
    """The arrays of an index; None where there is none, or a damaged one, which is to be written anew."""
    try:
        return read_index(path) if path.exists() else None
    except ValueError:
        return None


def source_of(index: Path) -> str:
    """The sha256 of the files that a shard was made of; "" in an index of an older version."""
    with open_archive(index) as (archive, members):
        return str(read_member(archive, members[SOURCE], index, SOURCE).item()) if SOURCE in members else ""


def source_digest(root: Path, names: Sequence[str]) -> str:
    """The sha256 of the files' own sha256s, in order. ``ValueError`` naming one that cannot be read."""
    digest = hashlib.sha256()
    for name in names:
        try:
            digest.update(sha256(root / name).encode())
        except OSError as error:
            raise ValueError(f"{root / name}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def entry(stem: str, blob: Path, index: Path, arrays: Arrays) -> dict[str, Any]:
    """What ``pack.json`` says of a shard."""
    return {
        "shard": stem,
        "images": len(arrays["ids"]),
        "bytes": blob.stat().st_size,
        "sha256": arrays["sha256"].item(),
        "index_sha256": sha256(index),
    }
