"""Flowers-17 with its published splits, and as much of MATLAB's file format as is needed to read them."""

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from sslmed_dist import randomness
from sslmed_dist.data.damage import damage_named
from sslmed_dist.data.dataset import Split
from sslmed_dist.data.images.files import ImageFiles, Listing, image_names, takes_duplicates
from sslmed_dist.data.text_files import add_once
from sslmed_dist.printable import excerpt, plural

BLOCK = 80  # images of one class
FLOWERS = (
    "daffodil", "snowdrop", "lily of the valley", "bluebell", "crocus", "iris", "tigerlily", "tulip", "fritillary",
    "sunflower", "daisy", "colt's foot", "dandelion", "cowslip", "buttercup", "windflower", "pansy",
)  # fmt: skip
PARTS = {"train": "trn", "val": "val", "test": "tst"}
# MATLAB 5: type number -> numpy type of a numeric element; 14 is a matrix, 15 a compressed element
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
MATRIX, COMPRESSED = 14, 15
# classes of matrices, in the lowest byte of their flags; a complex one has a flag of its own
NUMERIC, COMPLEX = range(6, 16), 0x0800
CLASSES = {1: "cells", 2: "structures", 3: "objects", 4: "text", 5: "sparse numbers"}
LARGEST = 2**24  # bytes of a file of image numbers, and of a compressed element of it


@takes_duplicates
def flowers17(
    root: str | Path,
    split: Split = "train",
    published: Literal[0, 1, 2, 3] = 1,
    seed: int = 0,
    size: int = 224,
    workers: int = 2,
    **files: Any,
) -> ImageFiles:
    """Flowers-17 (Nilsback and Zisserman 2006): 17 classes of 80 photographs.

    ``root`` holds ``jpg/image_0001.jpg`` to ``image_1360.jpg``, or is that folder. Images 1 to 80 are the first class,
    the next 80 the second, and so on, in the order of the set's page (robots.ox.ac.uk/~vgg/data/flowers/17).
    ``published`` 1, 2 or 3 takes that split from ``datasplits.mat`` in ``root``, whose variables trnK, valK and tstK
    hold image numbers: 40 / 20 / 20 of a class. ``published`` 0 splits each class 40 / 20 / 20 at random by ``seed``
    and needs no file. ids: image number - 1, the same under every split. Images as ``ImageFiles`` says.
    ``ValueError`` names the missing image or file, and what is wrong in it.
    """
    return ImageFiles(read_flowers17(Path(root), published, seed), split, size=size, workers=workers, **files)


def read_flowers17(root: Path, published: int = 1, seed: int = 0) -> Listing:
    """The listing of Flowers-17."""
    folder = root / "jpg" if (root / "jpg").is_dir() else root
    count = BLOCK * len(FLOWERS)
    expected = [f"image_{image_number:04d}.jpg" for image_number in range(1, count + 1)]
    names = image_names(folder)
    wrong = sorted(set(expected) ^ set(names))
    if wrong:
        problem = "is missing" if wrong[0] in expected else "is not one of image_0001.jpg to image_1360.jpg"
        raise ValueError(f"{folder / wrong[0]}: {problem}; {plural(len(names), 'image')} there, {count} expected")
    splits = keyed_split(count, seed) if published == 0 else read_splits(root, published, count)
    prefix = "jpg/" if folder != root else ""
    return Listing(
        "flowers17", root, [prefix + name for name in expected], [i // BLOCK for i in range(count)], splits, FLOWERS
    )


def keyed_split(count: int, seed: int) -> list[str]:
    """The split of each image. Each class is shuffled by ``seed``: the first 20 are test, the next 20 val, 40 train."""
    # shuffle every block of 80 by itself; an image's rank in the shuffled block decides its split
    rank_in_class = torch.empty(count, dtype=torch.int64)
    for start in range(0, count, BLOCK):
        rank_in_class[start + randomness.order(torch.arange(start, start + BLOCK), seed, "split")] = torch.arange(BLOCK)
    return ["test" if rank < 20 else "val" if rank < 40 else "train" for rank in rank_in_class.tolist()]


def read_splits(root: Path, published: int, count: int) -> list[str]:
    """The split of each image in published split 1, 2 or 3. ``ValueError`` when an image is in none or in two."""
    path = root / "datasplits.mat"
    if not path.is_file() and root.name == "jpg":
        path = root.parent / path.name
    if not path.is_file():
        raise ValueError(f"{path}: no such file; published: 0 takes a keyed split without it")
    arrays = read_matlab(path)  # trn1, val1, tst1, trn2, ...: image numbers from 1
    splits = [""] * count
    for split, prefix in PARTS.items():
        key = f"{prefix}{published}"
        if key not in arrays:
            raise ValueError(f"{path}: no {key!r} in it; it holds {', '.join(sorted(arrays))}")
        for image_number in arrays[key].tolist():
            # a number as MATLAB keeps it, in floating point: 3.5 and NaN are no images
            if image_number not in range(1, count + 1) or splits[int(image_number) - 1]:
                raise ValueError(f"{path}: {key} names image {image_number:g}, which is none or is named twice")
            splits[int(image_number) - 1] = split
    if "" in splits:
        raise ValueError(
            f"{path}: image {splits.index('') + 1} is in none of trn{published}, val{published}, tst{published}"
        )
    return splits


def read_matlab(path: Path) -> "dict[str, np.ndarray[Any, np.dtype[Any]]]":
    """The real numeric arrays of a MATLAB 5 file (MathWorks, "MAT-File Format"), by name; each is flat, (n,).

    ``ValueError`` for another version, a file above 16 MiB packed or unpacked, a matrix that is sparse, complex or not
    of numbers, a name that stands in it twice, and for a damaged file.
    """
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path}: {path.stat().st_size:,} bytes; allowed for lists of image numbers: {LARGEST:,}")
    data = path.read_bytes()
    # a header of 128 bytes: text, then the version, then "IM" where numbers are little-endian, "MI" where big-endian
    if data[126:128] not in (b"IM", b"MI") or data[:6] != b"MATLAB":
        raise ValueError(f"{path}: not a MATLAB 5 file")
    order = "<" if data[126:128] == b"IM" else ">"
    arrays: dict[str, np.ndarray[Any, np.dtype[Any]]] = {}
    with damage_named(path, "damaged, or not of numeric arrays alone"):
        for kind, content in elements(data[128:], order):
            if kind == COMPRESSED:
                kind, content = next(elements(unpacked_bytes(content), order))
            if kind == MATRIX:
                name, values = read_matrix(content, order)
                add_once(arrays, name, values, str(path))
    return arrays


def unpacked_bytes(content: bytes) -> bytes:
    """A compressed element, unpacked. ``ValueError`` for one that is cut off, or above 16 MiB."""
    unpacking = zlib.decompressobj()
    data = unpacking.decompress(content, LARGEST)
    if not unpacking.eof:
        raise ValueError(f"a compressed element is cut off, or has more than {LARGEST:,} bytes")
    return data


def read_matrix(content: bytes, order: str) -> "tuple[str, np.ndarray[Any, np.dtype[Any]]]":
    """(name, values (n,)) of a matrix of real numbers. ``ValueError`` for one of another class."""
    # the parts of a matrix are flags, dimensions, name and real values
    (_, flags), (_, dimensions), (_, name), (number_type, values), *_ = elements(content, order)
    word = struct.unpack_from(order + "I", flags)[0]
    if word & 0xFF not in NUMERIC or word & COMPLEX:
        kind = "complex numbers" if word & COMPLEX else CLASSES.get(word & 0xFF, "unknown things")
        raise ValueError(f"{excerpt(name.decode('latin1'))!r} is a matrix of {kind}; allowed: real numbers")
    array = np.frombuffer(values, order + NUMBERS[number_type])
    sides = np.frombuffer(dimensions, order + "i4")
    if (sides < 0).any() or math.prod(sides.tolist()) != len(array):
        raise ValueError(f"a matrix of {sides.tolist()} has {len(array)} values")
    return name.decode("ascii"), array


def elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """(type, content) of the elements of ``data``, one after another; ``order`` is "<" or ">", the byte order.

    An element is a tag of 8 bytes (type and length) and its content. ``ValueError`` for one that is cut off.
    """
    start = 0
    while start + 8 <= len(data):
        kind, length = struct.unpack_from(order + "II", data, start)
        # an element of at most 4 bytes keeps its length in the type's upper half and its content in the tag
        if kind >> 16:
            yield kind & 0xFFFF, data[start + 4 : start + 4 + (kind >> 16)]
            start += 8
            continue
        if start + 8 + length > len(data):
            raise ValueError(f"an element of {length} bytes is cut off")
        yield kind, data[start + 8 : start + 8 + length]
        # contents are padded to a multiple of 8 bytes, compressed ones are not
        start += 8 + length + (0 if kind == COMPRESSED else -length % 8)


def write_matlab(path: Path, arrays: "dict[str, np.ndarray[Any, np.dtype[Any]]]") -> None:
    """Write 1-D arrays (n,) as compressed float64 matrices of shape 1 x n, as MATLAB 7 does by default."""

    def element(kind: int, content: bytes) -> bytes:
        return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)

    blocks = [b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"]
    for name, values in arrays.items():
        # array flags (6 is the class "double"), dimensions 1 x n, name, values
        header = element(6, struct.pack("<II", 6, 0)) + element(5, struct.pack("<ii", 1, len(values)))
        body = header + element(1, name.encode()) + element(9, values.astype("<f8").tobytes())
        compressed = zlib.compress(element(MATRIX, body))
        blocks.append(struct.pack("<II", COMPRESSED, len(compressed)) + compressed)
    path.write_bytes(b"".join(blocks))
