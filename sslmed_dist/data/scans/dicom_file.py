"""Opening a DICOM file whose data set may be deflated (PS3.5, A.5)."""

import io
import zlib
from pathlib import Path
from typing import Any

MOST_BYTES = 2**29  # of a file, which pydicom reads as a whole, as it is or inflated: a slice of 32 bits, as much again
PIECE = 2**24  # bytes that are inflated at a time


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


def read_dicom(path: Path, *, header_only: bool = False, force: bool = False) -> Any:
    """pydicom's data set of a file, without its pixels where ``header_only``; what pydicom raises for a file that is
    none. ``force`` reads one without the preamble. ``ValueError`` for one of more than ``MOST_BYTES`` when inflated."""
    import pydicom

    with BoundedFile(io.FileIO(path)) as file:
        return pydicom.dcmread(file, stop_before_pixels=header_only, force=force)
