"""Paths that a file names: one below its folder, or refused.

A listing, a table or a pack may come from anyone. A path in it that leads out of the set's folder would read, and copy
into a pack, what was never part of the set. A link that lies in the data folder is its owner's: walking a folder
follows it. A path that a file names is resolved first, and must lie below the folder, itself resolved.

An accented letter is one character or two, a letter and its accent; both look alike, macOS's archives hold the second
and spreadsheets write the first. Names of a list and of the disk are the same where they are in one piece (Unicode's
NFC).
"""

import os
import unicodedata
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


def composed(name: str) -> str:
    """A name with each accented letter as one character: how names of lists and of the disk are compared."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


class Below:
    """Turns the paths that a file names into paths below ``folder``, spelled as they are on the disk. Each parent
    folder is resolved once."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.real = folder, os.path.realpath(folder)
        self.parents: dict[str, str] = {}  # parent of a name -> where it really is
        self.spelled: dict[str, dict[str, list[str]]] = {}  # folder -> composed name -> names in it

    def __call__(self, name: str, where: str) -> str:
        """``plain_path`` of a name, as the disk spells it. ``ValueError`` also for one that leads out of the folder
        through a link, or that two names of the disk look like."""
        name = self.on_disk(plain_path(name, where), where)
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

    def on_disk(self, name: str, where: str) -> str:
        """``name`` with the accents of each part as they are on the disk; a part that is not there stays as it is."""
        if name.isascii():
            return name
        found: list[str] = []
        for part in name.split("/"):
            alike = self.names_in("/".join(found)).get(composed(part), [part])
            if len(alike) > 1:
                folder = os.path.join(self.folder, *found)
                raise ValueError(
                    f"{where}: the path {excerpt(name)!r} means {len(alike)} names in {folder} that differ only in how "
                    "their accents are written; allowed: one"
                )
            found += alike
        return "/".join(found)

    def names_in(self, folder: str) -> dict[str, list[str]]:
        """The names in a folder below this one, by how they are composed; none where it cannot be listed."""
        if folder not in self.spelled:
            names = self.spelled[folder] = {}
            try:
                entries = sorted(os.listdir(os.path.join(self.real, folder)))
            except OSError:
                entries = []
            for entry in entries:
                names.setdefault(composed(entry), []).append(entry)
        return self.spelled[folder]
