"""Opening a DICOM file, which may be deflated (PS3.5, A.5) or lack its preamble; what the reader says is not heard."""

import io
import logging
import os
import sys
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sslmed_dist.data.damage import damage_named

MOST_BYTES = 2**29  # of a file, which pydicom reads as a whole, as it is or inflated: a slice of 32 bits, as much again
PIECE = 2**24  # bytes that are inflated at a time
MARK = 128  # where "DICM" stands, behind the preamble (PS3.10, 7.1)


class BoundedFile(io.BufferedReader):
    """A file that refuses to be read as a whole where that is to be inflated to more than ``MOST_BYTES``.

    pydicom reads a file to its end in one call, without a size, only to inflate what comes after the group 2, even
    where its header alone is asked for. What begins there is then inflated here first, and nothing of it kept.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        """As any file; ``ValueError`` for a whole that is too large."""
        content = super().read(size)
        if size is None or size < 0:
            require_bounded(content)
        return content


def require_bounded(content: bytes) -> None:
    """``ValueError`` where ``content`` inflates to more than ``MOST_BYTES``; damage is left to be told by who reads."""
    inflater, size, rest = zlib.decompressobj(-zlib.MAX_WBITS), 0, content
    try:
        while rest and not inflater.eof:
            size += len(inflater.decompress(rest, PIECE))
            if size > MOST_BYTES:
                raise ValueError(f"{len(content):,} bytes inflate to more than {MOST_BYTES:,}, the most that are read")
            rest = inflater.unconsumed_tail
    except zlib.error:
        return


@contextmanager
def readable_dicom(path: Path) -> Iterator[None]:
    """A block that reads ``path``: whatever pydicom raises in it becomes a ``ValueError`` that names the file. What
    pydicom warns of or logs, and what gdcm prints, is not heard: it is refused by name, or of no account."""
    logger = logging.getLogger("pydicom")
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings(), damage_named(path, "cannot be read, truncated or not DICOM"):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before


@contextmanager
def decoder_heard() -> Iterator[list[str]]:
    """A block that decodes pixels. gdcm, which pydicom decodes with where it is installed, and its libjpeg write to
    standard error by themselves: gdcm is silenced, and the list holds, after the block, the lines of libjpeg."""
    import pydicom.pixels.decoders  # noqa: F401  loads gdcm

    gdcm, lines = sys.modules.get("gdcm"), list[str]()
    if gdcm is None:
        yield lines
        return
    for switch in ("DebugOff", "WarningOff", "ErrorOff"):
        getattr(gdcm.Trace, switch)()
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            for line in file.read(4096).decode("utf-8", "replace").splitlines():
                if "JPEG" in line:
                    lines.append(" ".join(line.split()))
                else:  # another thread's
                    print(line, file=sys.stderr)


def begins_as_dicom(path: Path) -> bool:
    """Whether a file has the mark of DICOM, or begins with a data element as one without the preamble does."""
    with path.open("rb") as file:
        start = file.read(MARK + 4)
    return start[MARK:] == b"DICM" or begins_bare(start)


def begins_bare(start: bytes) -> bool:
    """Whether the first bytes are a data element of group 0002 or 0008 (PS3.5, 7.1), of low element number: its value
    representation is two capital letters, or its length is that of a short value."""
    for order in ("little", "big"):
        group, element = (int.from_bytes(start[k : k + 2], order) for k in (0, 2))
        if group in (0x0002, 0x0008) and element <= 0x0100 and len(start) >= 8:
            explicit = start[4:6].isalpha() and start[4:6].isupper()
            return explicit or int.from_bytes(start[4:8], order) < 2**12
    return False


def read_dicom(path: Path, *, header_only: bool = False, force: bool = False) -> Any:
    """pydicom's data set of a file, without its pixels where ``header_only``; what pydicom raises for a file that is
    none. ``force`` reads one without the preamble. ``ValueError`` for one of more than ``MOST_BYTES`` when inflated.

    ``bytes_behind`` of the data set is the number of bytes behind what was read, None for a deflated file."""
    import pydicom

    with BoundedFile(io.FileIO(path)) as file:
        dataset: Any = pydicom.dcmread(file, stop_before_pixels=header_only, force=force)
        syntax = dataset.file_meta.get("TransferSyntaxUID") if getattr(dataset, "file_meta", None) else None
        deflated = syntax == pydicom.uid.DeflatedExplicitVRLittleEndian
        dataset.bytes_behind = None if deflated else path.stat().st_size - file.tell()
    return dataset
