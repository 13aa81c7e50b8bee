"""The outbound ledger of a site: one line for everything that leaves it, written before it leaves.

A ledger is a file of JSON lines that only grows. Each entry holds the digest of the entry before it, and its own:

    digest_n = SHA-256(digest_(n-1) as 32 bytes, then the entry without its digest as canonical JSON)

``append`` forces the line to the disk before it returns, so an answer that has left has its line. What the chain alone
cannot show is a cut at its end, or a file written anew from the start: both are chains, too. An *anchor*, the number
and digest of an entry that somebody else keeps, shows both. Every answer of a site carries one, and the server keeps
it. An anchor says nothing of what comes after its entry.
"""

import fcntl
import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from sslmed_dist.atomic_files import open_itself, sync_folder

Kind = Literal["opened", "accepted", "reserved", "answer", "delivered", "refusal", "failure", "reset", "torn", "pruned"]
Entry = dict[str, Any]
START = "0" * 64  # the digest before the first entry
KINDS: tuple[str, ...] = get_args(Kind)
ALWAYS = ("number", "time", "kind", "previous", "digest")
# What an entry may say beside that. ``tensors`` are [name, dtype, shape, bytes, L2 norm] each. ``epsilon`` is the
# privacy that the data set has spent at ``delta`` with this answer and all before it; null means that no noise was
# added and so no such figure exists. ``count``, ``size`` and ``rho`` (``federation.accountant``) are what was reserved.
# ``answer`` is the number of the entry that was delivered. ``figures`` are those of an evaluation, in full.
# ``attempt`` and ``secrets`` (of which sites, or for which, shares and confirmations left) belong to a step of a secure
# sum; a masked tensor's norm is null.
FIELDS: tuple[str, ...] = (
    *("run", "round", "sequence", "configuration", "sha256", "bytes", "tensors", "scalars", "withheld", "epsilon"),
    *("reason", "data_set", "count", "size", "answer", "model", "message", "figures", "rho", "delta", "attempt"),
    "secrets",
)


@dataclass(frozen=True)
class Anchor:
    """The number of an entry and its digest, kept by somebody else than the site. ``text`` is NUMBER:DIGEST."""

    number: int
    digest: str

    @classmethod
    def parse(cls, text: str) -> "Anchor":
        """What ``text`` wrote. ``ValueError`` for anything else."""
        number, _, digest = text.partition(":")
        if not number.isdecimal() or int(number) < 1 or not is_digest(digest):
            raise ValueError(f"anchor {text[:80]!r}: expected NUMBER:DIGEST, such as 12:{'ab' * 32}")
        return cls(int(number), digest)

    @property
    def text(self) -> str:
        """As it is handed on."""
        return f"{self.number}:{self.digest}"


@dataclass(frozen=True)
class Verdict:
    """What ``verify`` saw: how many entries are in order, what is wrong (empty: nothing), and what it cannot see."""

    entries: int
    head: str
    problems: tuple[str, ...]
    blind: tuple[str, ...]


@dataclass
class Ledger:
    """The ledger in the file ``path``, made where it is missing. ``entries`` are those on the disk.

    Several processes may append, one at a time; each reads first what the others wrote. ``ValueError`` where what is
    there is no ledger or its chain is broken: nothing is appended to such a file.
    """

    path: Path
    entries: list[Entry] = field(default_factory=list)
    size: int = 0  # bytes of the file that ``entries`` stand for

    def __post_init__(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.refresh()

    @property
    def head(self) -> Anchor:
        """The last entry. Number 0 and zeros where there is none."""
        return Anchor(self.entries[-1]["number"], self.entries[-1]["digest"]) if self.entries else Anchor(0, START)

    def refresh(self) -> None:
        """Read what other processes have appended."""
        with self.locked():
            pass

    def append(self, kind: Kind, **content: Any) -> Entry:
        """Write one entry and force it to the disk; returns it. ``ValueError`` for a field that no entry has, or a
        number that is not finite; ``OSError`` where the disk refuses: then nothing may leave."""
        unknown = sorted(content.keys() - set(FIELDS))
        if unknown:
            raise ValueError(f"ledger: {unknown[0]}: unknown field; allowed: {', '.join(FIELDS)}")
        with self.locked() as handle:
            return self.written(handle, kind, content)

    def written(self, handle: int, kind: Kind, content: Mapping[str, Any]) -> Entry:
        """``append`` to a locked file. Where not the whole line can be written, none of it stays."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        entry = {"number": len(self.entries) + 1, "time": now, "kind": kind, "previous": self.head.digest, **content}
        entry["digest"] = chained(entry)
        line = canonical(entry) + b"\n"
        try:
            if os.write(handle, line) != len(line):
                raise OSError(28, "no space left for a line of the ledger", str(self.path))
            os.fsync(handle)
        except OSError:
            os.ftruncate(handle, self.size)
            raise
        self.entries.append(entry)
        self.size += len(line)
        return entry

    @contextmanager
    def locked(self) -> Iterator[int]:
        """The file, open to append, while no other process writes it; what others wrote has been read. Part of a line
        at the end is what a crash left. No answer was sent on it, so it is cut off, which is an entry of its own."""
        new = not self.path.exists()
        handle = open_itself(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if new:
                os.fchmod(handle, 0o600)
                if os.getuid() == 0:  # a command of root's must not lock the data side's own user out
                    owner = self.path.parent.stat()
                    os.fchown(handle, owner.st_uid, owner.st_gid)
                sync_folder(self.path.parent)
            torn = self.catch_up(handle)
            if torn:
                os.ftruncate(handle, self.size)
                self.written(handle, "torn", {"bytes": torn})
            yield handle
        finally:
            os.close(handle)

    def catch_up(self, handle: int) -> int:
        """Read what is new in the file; returns the bytes of a torn last line. ``ValueError`` where the chain does not
        go on, or the file has become shorter."""
        end = os.fstat(handle).st_size
        if end < self.size:
            raise ValueError(f"{self.path}: has become shorter than it was; see `sslmed site ledger verify`")
        content = read_from(handle, self.size, end)
        *lines, torn = content.split(b"\n")
        for line in lines:
            entry, problem = read_entry(line, len(self.entries) + 1, self.head.digest)
            if entry is None:
                raise ValueError(f"{self.path}: {problem}; see `sslmed site ledger verify`")
            self.entries.append(entry)
        self.size = end - len(torn)
        return len(torn)


def read_from(handle: int, start: int, end: int) -> bytes:
    """The bytes ``start`` to ``end`` of an open file."""
    parts = []
    while start < end:
        part = os.pread(handle, min(end - start, 1 << 20), start)
        if not part:
            break
        parts.append(part)
        start += len(part)
    return b"".join(parts)


def canonical(entry: Mapping[str, Any]) -> bytes:
    """JSON of one form: sorted keys, no blanks, ASCII, no infinite numbers (``ValueError``)."""
    return json.dumps(entry, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def chained(entry: Mapping[str, Any]) -> str:
    """The digest of an entry, over the one before and all fields but the digest itself."""
    content = {key: value for key, value in entry.items() if key != "digest"}
    return hashlib.sha256(bytes.fromhex(entry["previous"]) + canonical(content)).hexdigest()


def is_digest(text: Any) -> bool:
    """Whether this is a SHA-256 in hexadecimal digits."""
    return isinstance(text, str) and len(text) == 64 and set(text) <= set("0123456789abcdef")


def read_entry(line: bytes, number: int, previous: str) -> tuple[Entry | None, str]:
    """(the entry in ``line``, "") where it is the entry ``number`` after the digest ``previous``; else (None, what is
    wrong with it)."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict):
        return None, f"line {number} is no JSON object"
    missing = [name for name in ALWAYS if name not in entry]
    unknown = sorted(entry.keys() - set(ALWAYS) - set(FIELDS))
    if missing or unknown:
        return None, f"line {number} has {'no' if missing else 'the unknown'} field {(missing or unknown)[0]!r:.60}"
    if entry["number"] != number or isinstance(entry["number"], bool):
        return None, f"line {number} bears another number"
    if entry["previous"] != previous:
        return None, f"line {number} does not follow the line before it"
    if entry["kind"] not in KINDS:
        return None, f"line {number} is of an unknown kind"
    if infinite(entry) or line != canonical(entry) or entry["digest"] != chained(entry):
        return None, f"line {number} was changed: its digest is another"
    return entry, ""


def infinite(value: Any) -> bool:
    """Whether plain data holds a number that is not finite, which no entry has."""
    if isinstance(value, dict):
        return any(map(infinite, value.values()))
    if isinstance(value, list):
        return any(map(infinite, value))
    return isinstance(value, float) and not math.isfinite(value)


def read(path: Path) -> tuple[list[Entry], list[str]]:
    """(the entries that are in order, what is wrong after them) of a ledger; nothing is written. ``ValueError`` where
    there is no such file."""
    if not path.is_file():
        raise ValueError(f"{path}: no such ledger")
    *lines, torn = path.read_bytes().split(b"\n")
    head, entries, problems = START, [], []
    for number, line in enumerate(lines, 1):
        entry, problem = read_entry(line, number, head)
        if entry is None:
            problems.append(f"{problem}; what follows it cannot be trusted")
            break
        head = entry["digest"]
        entries.append(entry)
    if torn:
        problems.append("the last line is not whole: a crash while it was written (then no answer left), or a cut")
    return entries, problems


def verify(path: Path, anchor: Anchor | None = None) -> Verdict:
    """Read a ledger and compare each digest; nothing is written. With an ``anchor`` every edit, deletion, reordering,
    cut and rewrite up to its entry is seen. ``ValueError`` where there is no such file."""
    entries, problems = read(path)
    digests = [entry["digest"] for entry in entries]
    head = digests[-1] if digests else START
    blind = [f"what was added or cut after entry {anchor.number if anchor else 0}, if all of it forms a chain"]
    if anchor is None:
        blind = ["a cut at the end", "a ledger written anew from the start"]
    elif len(digests) < anchor.number:
        problems.append(f"entry {anchor.number} of the anchor is missing: {len(digests)} entries are in order")
    elif digests[anchor.number - 1] != anchor.digest:
        problems.append(f"entry {anchor.number} has another digest than the anchor: it, or one before it, was changed")
    return Verdict(len(digests), head, tuple(problems), tuple(blind))
