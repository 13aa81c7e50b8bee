"""The one opener of zip archives that someone else may have written: ``.npz`` files, checkpoints, exports."""

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MOST_LIST = 2**23  # bytes of an archive's list of members; 100,000 of them, which as Python's objects take 80 MB


class Opening(io.BufferedReader):
    """A file whose reads are bounded until ``opened`` is set: ``zipfile`` reads the whole list of members at once, of
    whatever size, and makes an object of each."""

    opened = False

    def read(self, size: int | None = -1, /) -> bytes:
        """As any file. ``zipfile.BadZipFile`` for more than ``MOST_LIST`` bytes while the archive is opened."""
        if not self.opened:
            here = self.tell()
            left = self.seek(0, io.SEEK_END) - here
            self.seek(here)
            asked = left if size is None or size < 0 else min(size, left)
            if asked > MOST_LIST:
                raise zipfile.BadZipFile(f"a list of members of {asked:,} bytes; allowed: {MOST_LIST:,}")
        return super().read(size)


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive at ``path``, open for reading. ``zipfile.BadZipFile`` for everything that is wrong with its list of
    members, also one of more than ``MOST_LIST`` bytes, which is not read. ``OSError`` as ``open``."""
    with Opening(io.FileIO(path)) as file:
        try:
            archive = zipfile.ZipFile(file)
        except (ValueError, NotImplementedError) as error:  # a name in no code, a version that does not exist yet
            raise zipfile.BadZipFile(str(error)) from None
        file.opened = True
        with archive:
            yield archive
