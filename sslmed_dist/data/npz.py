"""Reading ``.npz`` archives and ``.npy`` files whose content is not trusted.

Only the arrays that are asked for are read, and their size is taken from their header first: a file of a megabyte can
hold a gigabyte of zeros, and a header can claim any size.
"""

import io
import math
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from sslmed_dist.data.damage import damage_named
from sslmed_dist.printable import excerpt
from sslmed_dist.zip_files import open_zip

Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]
# An array may have this many bytes in any case, and this many times the bytes that it takes in the file.
ALWAYS, MOST_RATIO = 2**28, 64
MOST_HEADER = 10_000  # bytes that state an array's type and shape; numpy itself parses no more
SUFFIX = ".npy"


@contextmanager
def open_archive(path: Path) -> Iterator[tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]]:
    """(the open archive, its arrays' entries by name); every way of failing to read it becomes one ``ValueError`` that
    names the file, also a name that stands in it twice."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with damage_named(path, "not a readable .npz"), open_zip(path) as archive:
        members: dict[str, zipfile.ZipInfo] = {}
        for info in archive.infolist():
            name = info.filename.removesuffix(SUFFIX)
            if name in members:
                raise ValueError(f"{path}: the array {excerpt(name)!r} stands in it twice")
            members[name] = info
        yield archive, members


def archive_names(path: Path) -> list[str]:
    """The names of the arrays in an ``.npz``, without reading them. ``ValueError`` naming the file if it is damaged."""
    with open_archive(path) as (_, members):
        return list(members)


def read_archive(path: Path, keys: Sequence[str]) -> Arrays:
    """The arrays ``keys`` of an ``.npz`` by name; nothing pickled is read, and nothing else.

    ``ValueError`` naming the file when it is missing, damaged, lacks one of ``keys``, or holds one that is larger than
    256 MiB and than 64 times the bytes that it takes in the file.
    """
    with open_archive(path) as (archive, members):
        missing = [key for key in keys if key not in members]
        if missing:
            names = excerpt(", ".join(members), 400)
            raise ValueError(f"{path}: not a readable .npz: lacks {', '.join(map(repr, missing))}; it holds {names}")
        return {key: read_member(archive, members[key], path, key) for key in keys}


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path, key: str) -> "np.ndarray[Any, Any]":
    """One array of an open archive. ``ValueError`` as ``read_archive``."""
    with archive.open(info) as member:
        shape, kind, header = read_header(member, path, key)
    size, stored = math.prod(shape) * kind.itemsize, min(info.compress_size, path.stat().st_size)
    if size + header > info.file_size or (info.compress_type == zipfile.ZIP_STORED and size > stored):
        raise ValueError(f"{path}: {key}: {kind} {shape} are {size:,} bytes, the file holds {info.file_size:,}")
    if size > max(ALWAYS, MOST_RATIO * stored):
        limit = f"allowed: {ALWAYS:,}, or {MOST_RATIO} times the bytes in the file"
        raise ValueError(f"{path}: {key}: {size:,} bytes packed into {stored:,}; {limit}")
    with archive.open(info) as member:
        array: np.ndarray[Any, Any] = np.lib.format.read_array(member, allow_pickle=False)
    return array


def read_header(file: IO[bytes], path: Path, key: str) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """(shape, type, bytes of the header) of an array in numpy's format. ``ValueError`` for one of objects, an
    impossible shape, or a header of more than ``MOST_HEADER`` bytes, which is not read."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(file)
    if version not in readers:
        raise ValueError(f"{path}: {key}: written in version {version} of numpy's format; allowed: 1.0, 2.0")
    stated = file.read(2 if version == (1, 0) else 4)
    length = int.from_bytes(stated, "little")
    if length > MOST_HEADER:
        raise ValueError(f"{path}: {key}: a header of {length:,} bytes; allowed: {MOST_HEADER:,}")
    shape, _, kind = readers[version](io.BytesIO(stated + file.read(length)))
    if kind.hasobject:
        raise ValueError(f"{path}: {key}: an array of Python objects, which are not read; allowed: plain numbers")
    if any(side < 0 for side in shape):
        raise ValueError(f"{path}: {key}: impossible shape {shape}")
    return shape, kind, file.tell()


def map_array(path: Path) -> "np.ndarray[Any, Any]":
    """The array of a ``.npy`` file, memory-mapped and not read. ``ValueError`` naming a file that is missing, damaged,
    smaller than its header says, or of Python objects."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with damage_named(path, "cannot be read, truncated or not .npy"):
        with path.open("rb") as file:
            shape, kind, header = read_header(file, path, "array")
        size = math.prod(shape) * kind.itemsize
        if size + header > path.stat().st_size:
            raise ValueError(f"cannot hold {kind} {shape}, {size:,} bytes; it has {path.stat().st_size:,}")
        array: np.ndarray[Any, Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def find_archive(root: Path) -> Path:
    """``root`` itself when it is a file, else the one ``.npz`` inside it. ``ValueError`` when there is not just one."""
    if root.is_file():
        return root
    if not root.is_dir():
        raise ValueError(f"{root}: no such file or folder")
    archives = sorted(root.glob("*.npz"))
    if len(archives) != 1:
        raise ValueError(f"{root}: expected exactly one .npz file in it, found {len(archives)}; name the file itself")
    return archives[0]
