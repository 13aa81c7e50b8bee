"""Paths that a file names: one below its folder, or refused.

A listing, a table or a pack may come from anyone. A path in it that leads out of the set's folder would read, and copy
into a pack, what was never part of the set. A link that lies in the data folder is its owner's: walking a folder
follows it. A path that a file names is resolved first, and must lie below the folder, itself resolved.
"""

import os
from pathlib import Path, PurePosixPath

from sslmed_dist.printable import excerpt


def plain_path(name: str, where: str) -> str:
    """``name`` in its shortest form, with forward slashes ("./a//b.png" is "a/b.png").

    ``ValueError`` beginning with ``where`` for a path that is empty or absolute, goes up (``..``), or has a backslash,
    a zero byte or another control character in it, or a part of more than 255 bytes.
    """
    reason = ""
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
        reason = "has a control character in it"
    elif "\\" in name:
        reason = "has a backslash in it; folders are parted by /"
    elif name.startswith("/") or name[1:3] == ":/":
        reason = "is absolute"
    elif ".." in name.split("/"):
        reason = "goes up"
    elif not PurePosixPath(name).parts:
        reason = "names no file"
    else:
        try:
            longest = max(len(os.fsencode(part)) for part in name.split("/"))
            reason = f"has a part of {longest} bytes; file systems allow 255" if longest > 255 else ""
        except UnicodeEncodeError:
            reason = "has a letter in it that no file name has"
    if reason:
        raise ValueError(f"{where}: the path {excerpt(name)!r} {reason}; allowed: paths below the set's folder")
    return PurePosixPath(name).as_posix()


class Below:
    """Turns the paths that a file names into paths below ``folder``. Each parent folder is resolved once."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.real = folder, os.path.realpath(folder)
        self.parents: dict[str, str] = {}  # parent of a name -> where it really is

    def __call__(self, name: str, where: str) -> str:
        """``plain_path`` of a name. ``ValueError`` also for one that leads out of the folder through a link."""
        name = plain_path(name, where)
        parent, _, last = name.rpartition("/")
        if parent not in self.parents:
            self.parents[parent] = os.path.realpath(os.path.join(self.real, parent))
        real = os.path.join(self.parents[parent], last)
        try:
            real = os.path.realpath(real) if os.path.islink(real) else real
        except OSError as error:
            raise ValueError(f"{where}: the path {excerpt(name)!r}: {error.strerror}") from None
        if os.path.commonpath([real, self.real]) != self.real:
            raise ValueError(
                f"{where}: the path {excerpt(name)!r} is a link out of {self.folder}; allowed: paths below it"
            )
        return name
