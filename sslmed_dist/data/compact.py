"""Sequences of a million entries without a million Python objects: an entry is made when it is asked for.

A list of 1.28 million paths takes 0.13 GB as Python's texts, and each worker of a node would hold its own.
"""

import hashlib
import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from tempfile import SpooledTemporaryFile
from typing import Any, TypeVar, overload

import numpy as np
from torch import Tensor

Entry = TypeVar("Entry")
BLOCK = 4096  # entries that are made at a time
IN_MEMORY = 2**21  # bytes of lines that are kept in memory; more go to a temporary file without a name
Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Numbers = np.ndarray[Any, np.dtype[np.int64]]


class Made(Sequence[Entry]):
    """A sequence whose entries are made when they are asked for. Equal to any sequence of the same entries."""

    @abstractmethod
    def make(self, position: int) -> Entry:
        """The entry at ``position``, which is from 0 to the length - 1."""

    @overload
    def __getitem__(self, index: int) -> Entry: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Entry]: ...

    def __getitem__(self, index: int | slice) -> Entry | Sequence[Entry]:
        if isinstance(index, slice):
            return [self.make(position) for position in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(index)
        return self.make(position)

    def __iter__(self) -> Iterator[Entry]:
        return map(self.make, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str) or len(self) != len(other):
            return False
        return all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


class Texts(Made[str]):
    """N texts as their bytes one after another, with a zero byte behind each. A text that is no UTF-8 is as the file
    system gives it (``os.fsdecode``)."""

    def __init__(self, joined: Bytes, ends: Numbers | None = None) -> None:
        """``joined``: uint8, the texts' bytes, each but perhaps the last with a zero byte behind it. ``ends``: int64
        (N,), where the zero bytes stand."""
        self.joined = joined
        self.ends = np.append(np.flatnonzero(joined == 0), len(joined)) if ends is None else ends

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Texts":
        """The texts of any source, which is read once. A text may not hold a zero byte."""
        parts, lengths = bytearray(), np.zeros(0, np.int64)
        remaining = iter(texts)
        while block := [os.fsencode(text) for text in islice(remaining, BLOCK)]:
            parts += b"\0".join(block) + b"\0"
            lengths = np.append(lengths, [len(text) + 1 for text in block])
        return cls(np.frombuffer(bytes(parts), np.uint8), lengths.cumsum() - 1)

    def __len__(self) -> int:
        return len(self.ends)

    def make(self, position: int) -> str:
        start = int(self.ends[position - 1]) + 1 if position else 0
        return os.fsdecode(self.joined[start : int(self.ends[position])].tobytes())


class Words(Made[str]):
    """N texts of which few differ, such as the names of splits: int8 ``codes`` (N,), positions in ``words``."""

    def __init__(self, codes: np.ndarray[Any, np.dtype[np.int8]], words: Sequence[str]) -> None:
        self.codes, self.words = codes, tuple(words)

    @classmethod
    def of(cls, texts: Iterable[str], words: Sequence[str]) -> "Words":
        """``texts``, each of which is one of ``words``."""
        number = {word: code for code, word in enumerate(words)}
        return cls(np.fromiter((number[text] for text in texts), np.int8), words)

    def __len__(self) -> int:
        return len(self.codes)

    def make(self, position: int) -> str:
        return self.words[int(self.codes[position])]


class Picked(Made[Entry]):
    """The entries of ``source`` at ``positions``, int64 (n,)."""

    def __init__(self, source: Sequence[Entry], positions: Tensor) -> None:
        self.source, self.positions = source, positions

    def __len__(self) -> int:
        return len(self.positions)

    def make(self, position: int) -> Entry:
        return self.source[int(self.positions[position])]


class Chained(Made[Entry]):
    """The entries of several sequences, one after another."""

    def __init__(self, parts: Sequence[Sequence[Entry]]) -> None:
        self.parts = parts
        self.starts = np.cumsum([0, *(len(part) for part in parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def make(self, position: int) -> Entry:
        part = int(np.searchsorted(self.starts, position, side="right")) - 1
        return self.parts[part][position - int(self.starts[part])]


class FileRecords(Made[dict[str, Any]]):
    """The records of a set of files: ``{"file": name}`` of each name."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def make(self, position: int) -> dict[str, Any]:
        return {"file": self.names[position]}


class Lines(Made[str]):
    """Lines of ASCII text, each without its end, that were read once: up to ``IN_MEMORY`` bytes stay in memory, more
    lie in a temporary file that has no name and goes with this object. Not to be shared by threads."""

    def __init__(self, lines: Iterable[str]) -> None:
        """``sha256`` becomes the hexadecimal SHA-256 of the lines with a line feed between any two."""
        self.file = SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115
        self.length, self.starts = 0, list[int]()  # the first byte of every BLOCK-th line
        digest, remaining = hashlib.sha256(), iter(lines)
        while block := list(islice(remaining, BLOCK)):
            text = "\n".join(block).encode("ascii")
            digest.update(b"\n" * bool(self.length) + text)
            self.starts.append(self.file.tell())
            self.file.write(text + b"\n")
            self.length += len(block)
        self.sha256 = digest.hexdigest()

    def __len__(self) -> int:
        return self.length

    def make(self, position: int) -> str:
        self.file.seek(self.starts[position // BLOCK])
        for _ in range(position % BLOCK):
            self.file.readline()
        return self.file.readline()[:-1].decode("ascii")

    def __iter__(self) -> Iterator[str]:
        offset = 0
        for _ in range(self.length):
            self.file.seek(offset)  # another reader may have moved it meanwhile
            line = self.file.readline()
            offset += len(line)
            yield line[:-1].decode("ascii")
