"""Flowers-17 with its published splits, and the few lines of MATLAB's file format that they are written in."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from sslmed_dist import randomness
from sslmed_dist.data.dataset import Split
from sslmed_dist.data.images.files import ImageFiles, Listing, image_names

BLOCK = 80  # images of one class
FLOWERS = (
    "daffodil", "snowdrop", "lily of the valley", "bluebell", "crocus", "iris", "tigerlily", "tulip", "fritillary",
    "sunflower", "daisy", "colt's foot", "dandelion", "cowslip", "buttercup", "windflower", "pansy",
)  # fmt: skip
PARTS = {"train": "trn", "val": "val", "test": "tst"}
# MATLAB 5: type number -> numpy type of a numeric element; 14 is a matrix, 15 a compressed element
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
MATRIX, COMPRESSED = 14, 15


def flowers17(
    root: str | Path,
    split: Split = "train",
    published: Literal[0, 1, 2, 3] = 1,
    seed: int = 0,
    size: int = 224,
    workers: int = 2,
) -> ImageFiles:
    """Flowers-17 (Nilsback and Zisserman 2006): 17 classes of 80 photographs.

    ``root`` holds ``jpg/image_0001.jpg`` to ``image_1360.jpg`` (or is that folder), of which every 80 in a row are one
    class, in the order of the set's page (robots.ox.ac.uk/~vgg/data/flowers/17). ``published`` 1, 2 or 3: that split of
    ``datasplits.mat`` in ``root`` (variables trnK, valK, tstK of image numbers), 40 / 20 / 20 of a class. 0: of each
    class 40 / 20 / 20 in the keyed order of ``seed``; the file is not needed. ids: image number - 1,
    the same under every split.
    ``ValueError`` names the missing image or file, and what is wrong in it.
    """
    return ImageFiles(read_flowers17(Path(root), published, seed), split, size=size, workers=workers)


def read_flowers17(root: Path, published: int = 1, seed: int = 0) -> Listing:
    """The listing of Flowers-17."""
    folder = root / "jpg" if (root / "jpg").is_dir() else root
    count = BLOCK * len(FLOWERS)
    expected = [f"image_{number:04d}.jpg" for number in range(1, count + 1)]
    names = image_names(folder)
    wrong = sorted(set(expected) ^ set(names))
    if wrong:
        found = "is missing" if wrong[0] in expected else "is not one of image_0001.jpg to image_1360.jpg"
        raise ValueError(f"{folder / wrong[0]}: {found}; {len(names)} images there, {count} expected")
    part = keyed_split(count, seed) if published == 0 else read_splits(root, published, count)
    below = "jpg/" if folder != root else ""
    return Listing(
        "flowers17", root, [below + name for name in expected], [i // BLOCK for i in range(count)], part, FLOWERS
    )


def keyed_split(count: int, seed: int) -> list[str]:
    """The split of each image: of each block of 80, the first 20 in the keyed order are test, the next 20 val."""
    place = torch.empty(count, dtype=torch.int64)
    for start in range(0, count, BLOCK):
        place[start + randomness.order(torch.arange(start, start + BLOCK), seed, "split")] = torch.arange(BLOCK)
    return ["test" if i < 20 else "val" if i < 40 else "train" for i in place.tolist()]


def read_splits(root: Path, published: int, count: int) -> list[str]:
    """The split of each image in published split 1, 2 or 3. ``ValueError`` when it is not a partition of them."""
    path = root / "datasplits.mat"
    if not path.is_file() and root.name == "jpg":
        path = root.parent / path.name
    if not path.is_file():
        raise ValueError(f"{path}: no such file; published: 0 takes a keyed split without it")
    arrays = read_matlab(path)
    part = [""] * count
    for split, word in PARTS.items():
        key = f"{word}{published}"
        if key not in arrays:
            raise ValueError(f"{path}: no {key!r} in it; it holds {', '.join(sorted(arrays))}")
        for number in arrays[key].astype(np.int64).tolist():
            if not 1 <= number <= count or part[number - 1]:
                raise ValueError(f"{path}: {key} names image {number}, which is none or is named twice")
            part[number - 1] = split
    if "" in part:
        raise ValueError(
            f"{path}: image {part.index('') + 1} is in none of trn{published}, val{published}, tst{published}"
        )
    return part


def read_matlab(path: Path) -> "dict[str, np.ndarray[Any, np.dtype[Any]]]":
    """The real numeric arrays of a MATLAB 5 file (MathWorks, "MAT-File Format"), flat, by name. ``ValueError`` for
    another version and for a damaged file."""
    data = path.read_bytes()
    if data[126:128] not in (b"IM", b"MI") or data[:6] != b"MATLAB":
        raise ValueError(f"{path}: not a MATLAB 5 file")
    order = "<" if data[126:128] == b"IM" else ">"
    arrays = {}
    try:
        for kind, content in elements(data[128:], order):
            if kind == COMPRESSED:
                kind, content = next(elements(zlib.decompress(content), order))
            if kind != MATRIX:
                continue
            _, _, (_, name), (number, values), *_ = elements(content, order)
            arrays[name.decode("ascii")] = np.frombuffer(values, order + NUMBERS[number])
    except (struct.error, zlib.error, ValueError, KeyError, StopIteration) as error:
        raise ValueError(f"{path}: damaged, or not of numeric arrays alone: {error}") from error
    return arrays


def elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """(type, content) of the elements one after another; short ones hold their content in the tag."""
    start = 0
    while start + 8 <= len(data):
        kind, length = struct.unpack_from(order + "II", data, start)
        if kind >> 16:
            yield kind & 0xFFFF, data[start + 4 : start + 4 + (kind >> 16)]
            start += 8
            continue
        if start + 8 + length > len(data):
            raise ValueError(f"an element of {length} bytes is cut off")
        yield kind, data[start + 8 : start + 8 + length]
        start += 8 + length + (0 if kind == COMPRESSED else -length % 8)


def write_matlab(path: Path, arrays: "dict[str, np.ndarray[Any, np.dtype[Any]]]") -> None:
    """Write 1-D arrays as compressed float64 rows, as MATLAB 7 does by default."""

    def element(kind: int, content: bytes) -> bytes:
        return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)

    blocks = [b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"]
    for name, values in arrays.items():
        head = element(6, struct.pack("<II", 6, 0)) + element(5, struct.pack("<ii", 1, len(values)))
        body = head + element(1, name.encode()) + element(9, values.astype("<f8").tobytes())
        packed = zlib.compress(element(MATRIX, body))
        blocks.append(struct.pack("<II", COMPRESSED, len(packed)) + packed)
    path.write_bytes(b"".join(blocks))
