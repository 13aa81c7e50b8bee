"""Which files of a folder are images to be read, which are left aside, and why. One rule for training and checking.

Read is every file whose suffix is one of ``SUFFIXES``, in the folder and at any depth below it, through links to
folders as well (each real folder once). Left aside, counted, are hidden files and folders, folders of caches and
previews that programs leave behind, files of another kind, links that lead nowhere, links to a folder above them, which
would count its images again under another class, and TIFF files of several pages, for which page is meant is not known.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from sslmed_dist.data.images.decode import SUFFIXES

# Folders that programs make beside images, and files of systems; they are left aside like hidden ones.
LEFT_BEHIND = {
    *("__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information", "thumbs.db", "desktop.ini"),
    *("cache", "thumbs", "thumbnails"),
}
TIFF = (".tif", ".tiff")
HIDDEN, PAGES = "hidden files and folders", "TIFF files of several pages"
BROKEN = "links that lead nowhere"  # of a disk that is not mounted, say
UPWARDS = "links to a folder above them"
TWICE = "folders that were read already, by another link"


@dataclass
class Walk:
    """``files``: the images found, sorted by path; ``aside``: how many files were left aside, by reason."""

    files: list[Path] = field(default_factory=list)
    aside: Counter[str] = field(default_factory=Counter)


def walk(folder: Path, deep: bool = True) -> Walk:
    """The images in ``folder`` and, where ``deep``, at any depth below it. ``ValueError`` naming a folder that cannot
    be listed."""
    result = Walk()
    for path in files_in(folder, result.aside, deep):
        sort_in(result, path)
    result.files.sort()
    return result


def holds_images(folder: Path) -> bool:
    """Whether ``walk`` would find an image by its name; no further is looked than the first one."""
    return any(path.suffix.lower() in SUFFIXES and not hidden(path.name) for path in files_in(folder, Counter()))


def files_in(folder: Path, aside: "Counter[str]", deep: bool = True) -> Iterator[Path]:
    """The files in ``folder`` and, where ``deep``, at any depth below it, in every real folder once. What else is left
    aside is counted in ``aside``. ``ValueError`` naming a folder that cannot be listed."""
    waiting, seen = [folder], set()
    while waiting:
        place = waiting.pop()
        real = os.path.realpath(place)
        if real in seen:
            aside[TWICE] += 1
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError as error:
            raise ValueError(f"{place}: cannot be listed: {error.strerror}") from None
        for entry in entries:
            if is_folder(entry):
                if hidden(entry.name):
                    aside[HIDDEN] += 1
                elif entry.is_symlink() and leads_back(place / entry.name):
                    aside[UPWARDS] += 1
                elif deep:
                    waiting.append(place / entry.name)
            elif is_file(entry):
                yield place / entry.name
            else:
                aside[BROKEN if entry.is_symlink() else "pipes, sockets and devices"] += 1


def sort_in(result: Walk, path: Path) -> None:
    """Put one file among the images, or count why it is left aside."""
    suffix = path.suffix.lower()
    if hidden(path.name):
        result.aside[HIDDEN] += 1
    elif suffix not in SUFFIXES:
        result.aside[f"{suffix or 'without suffix'} files"] += 1
    elif suffix in TIFF and has_pages(path):
        result.aside[PAGES] += 1
    else:
        result.files.append(path)


def hidden(name: str) -> bool:
    """Whether a file or folder of this name is none of the user's images."""
    return name.startswith(".") or name.lower() in LEFT_BEHIND


def is_folder(entry: os.DirEntry[str]) -> bool:
    """``entry.is_dir()``, and False for a link to itself, at which that raises."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def is_file(entry: os.DirEntry[str]) -> bool:
    """``entry.is_file()``, and False for a link to itself, at which that raises."""
    return os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file()


def leads_back(folder: Path) -> bool:
    """Whether ``folder`` is a link to a folder that it lies in itself, or that was passed on the way to it by other
    links: its images would be those of that folder again, and without end."""
    if not folder.is_symlink():
        return False
    target = os.path.realpath(folder)
    # what is before a ".." is not on the way
    way = takewhile(lambda parent: parent.name != "..", folder.absolute().parents)
    return any(Path(os.path.realpath(parent)).is_relative_to(target) for parent in way)


def is_read(folder: Path) -> bool:
    """Whether a folder beside others may hold the user's images: neither hidden nor a link that leads back."""
    return not hidden(folder.name) and not leads_back(folder)


def has_pages(path: Path) -> bool:
    """Whether a TIFF file has several pages; False where it cannot be read, which decoding it will say. No more than
    two are looked at, however many it claims."""
    from PIL import Image

    try:
        with Image.open(path) as opened:
            opened.seek(1)
    except Exception:  # there is no second one, or Pillow's parsers raise what they like
        return False
    return True


def said(aside: Counter[str]) -> str:
    """What was left aside, in one line: "3 .txt files, 1 hidden files and folders"; "" where nothing was."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(aside.items()))
