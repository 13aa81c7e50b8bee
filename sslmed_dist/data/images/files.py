"""Image files decoded when fetched: the list of a set's files (``Listing``) and the dataset of them (``ImageFiles``).

A dataset of files is a function that reads a listing and hands it to ``ImageFiles``; ``sslmed data check`` and
``sslmed data pack`` work on the same listing.
"""

import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from sslmed_dist.data.compact import FileRecords, Picked, Texts, Words
from sslmed_dist.data.dataset import SPLITS, Dataset, Item, Split, Stored, select_split
from sslmed_dist.data.images.copies import count_conflicts, find_copies
from sslmed_dist.data.images.decode import SUFFIXES, crop_centre, read_picture
from sslmed_dist.data.images.walk import hidden, is_file
from sslmed_dist.data.samples import in_file
from sslmed_dist.printable import plural

Duplicates = Literal["keep", "drop", "refuse"]
Make = TypeVar("Make", bound=Callable[..., Any])
Row = tuple[str, str, int, int]  # split, file name below the root, label or -1, group


@dataclass(frozen=True)
class Listing:
    """The files of a set with their labels and splits, one row per image; the number of a row is the image's id.

    title    of the set, for reports
    root     folder; ``root / names[i]`` is the file of sample i
    names    paths below ``root`` with forward slashes
    labels   class numbers, -1 where there is none
    splits   "train", "val" or "test"
    classes  names of the class numbers
    groups   patient numbers; None where the layout names none
    listed   the names come from a text file, so a file may be missing

    However the columns are given, they are kept as ``compact`` keeps them.
    """

    title: str
    root: Path
    names: Sequence[str]
    labels: Sequence[int]
    splits: Sequence[str]
    classes: tuple[str, ...]
    groups: Sequence[int] | None = None
    listed: bool = False
    notices: Sequence[str] = ()

    def __post_init__(self) -> None:
        columns = {"names": Texts.of(self.names), "labels": array("q", self.labels)}
        columns |= {"splits": Words.of(self.splits, SPLITS)}
        columns |= {} if self.groups is None else {"groups": array("q", self.groups)}
        for key, values in columns.items():
            object.__setattr__(self, key, values)

    def missing(self) -> list[int]:
        """Numbers of the rows whose file is not there."""
        if not self.listed:
            return []
        # read every folder once instead of asking for every file
        paths = [name.rpartition("/") for name in self.names]
        present = {parent: entries(self.root / parent) for parent in {parent for parent, _, _ in paths}}
        return [i for i, (parent, _, name) in enumerate(paths) if name not in present[parent]]


class ImageFiles(Dataset):
    """The images of ``listing`` in one split, decoded at ``fetch`` in ``workers`` threads.

    The shorter side is resized to ``size`` (bilinear, antialiased), then the centre ``size`` x ``size`` is cut out;
    ``channels`` is 1 (luminance) or 3. ``bits`` 8 gives uint8. ``bits`` 16 gives float32 in [0, 1]: value / 65535 of a
    16-bit grey file and value / 255 of an 8-bit one.
    ids: row numbers in the listing. groups: the listing's, else the ids. records: {"file": name}.
    """

    def __init__(
        self,
        listing: Listing,
        split: Split,
        *,
        size: int,
        channels: int = 3,
        bits: int = 8,
        workers: int = 2,
        duplicates: Duplicates | None = None,
    ) -> None:
        """``ValueError``: no such split, a listed file that is missing, a size below 1, or a first image that cannot
        be decoded (it is read as a test)."""
        if size < 1 or workers < 0:
            raise ValueError(f"{listing.root}: size must be at least 1 and workers at least 0, got {size}, {workers}")
        self.listing, self.size, self.workers = listing, size, workers
        chosen = select_split(listing.splits, split, str(listing.root))  # (n,) row numbers, which are the ids
        chosen, notices = without_copies(listing, split, chosen, duplicates)
        self.files: Sequence[str] = Picked(listing.names, chosen)
        require_files(listing, chosen)
        super().__init__(
            name=listing.title,
            ids=chosen,
            labels=column(listing.labels)[chosen],
            classes=listing.classes,
            channels=channels,
            bits=bits,
            groups=None if listing.groups is None else column(listing.groups)[chosen],
            records=FileRecords(self.files),
            notices=[*listing.notices, *notices, *conflicts(listing, split)],
        )
        self.decode(0)

    def fetch(self, positions: Tensor, *, seed: int, epoch: int, draw: Tensor) -> Item:
        return self.item(torch.stack(in_threads(self.workers, self.decode, positions.tolist())), positions, draw)

    def value_range(self) -> tuple[float, float]:
        return (0.0, 255.0) if self.bits == 8 else (0.0, 1.0)

    def stored(self, position: int) -> Stored:
        return in_file(self.listing.root, self.files[position])

    def decode(self, position: int) -> Tensor:
        """The image at ``position``: (channels, size, size). ``ValueError`` names its file when it cannot be read."""
        path = self.listing.root / self.files[position]
        try:
            image = read_picture(path, self.size, self.channels, self.bits)
        except ValueError as error:
            raise ValueError(f"image {int(self.ids[position])} of {self.name}: {error}") from error
        return crop_centre(image, self.size)


def column(numbers: Sequence[int]) -> Tensor:
    """The numbers of a listing's column, int64 (N,)."""
    return torch.from_numpy(np.array(numbers, np.int64))


def choices(duplicates: Duplicates | None = None) -> None:
    """The keys of every set of image files, which its function passes on to ``ImageFiles``."""


def takes_duplicates(make: Make) -> Make:
    """Mark the function of a set whose ``**files`` go to ``ImageFiles``: a recipe may then have the keys of
    ``choices``."""
    make.passes_to = choices  # type: ignore[attr-defined]
    return make


def conflicts(listing: Listing, split: Split) -> list[str]:
    """What is to be said of images that are the same, byte for byte, and lie in several classes. Said of what is
    trained on. Up to 20 GiB are read for it."""
    if split not in ("train", "all"):
        return []
    count = count_conflicts(listing.root, listing.names, listing.labels)
    if count is None:
        return ["images of several classes: not looked for (more than 20 GiB to read; sslmed data check looks)"]
    if not count:
        return []
    return [f"{count} images are copies, byte for byte, of images of another class; sslmed data check names copies"]


def without_copies(
    listing: Listing, split: Split, chosen: Tensor, duplicates: Duplicates | None
) -> tuple[Tensor, list[str]]:
    """The ``chosen`` rows of a split without those that ``duplicates`` leaves out, and what is to be said of them.

    None looks for copies unless that means to read very much, and keeps them. ``ValueError`` for ``refuse``.
    """
    if len(set(listing.splits)) < 2 or (split != "train" and duplicates != "refuse"):
        return chosen, []
    copies = find_copies(listing.root, listing.names, listing.splits, asked=duplicates is not None)
    if copies.skipped:
        size = f"{copies.skipped / 2**30:.0f} GiB"
        return chosen, [f"copies across splits: not looked for ({size} to read; data.duplicates: keep looks)"]
    if not copies.train:
        return chosen, []
    one, several = (
        "training image is a copy, byte for byte, of one",
        "training images are copies, byte for byte, of images",
    )
    line = f"{plural(len(copies.train), one, several)} in val or test"
    if duplicates == "refuse":
        first = listing.names[copies.train[0]]
        raise ValueError(f"{listing.root}: {line} (first {first}); allowed: data.duplicates: keep or drop")
    if duplicates != "drop":
        return chosen, [f"copies across splits: {line}; they are trained on (data.duplicates: drop leaves them out)"]
    kept = ~torch.isin(chosen, torch.tensor(copies.train))
    return chosen[kept], [f"copies across splits: {line}; they were dropped from training"]


def require_files(listing: Listing, chosen: Tensor) -> None:
    """``ValueError`` naming the first of the ``chosen`` rows (int64 (n,)) whose file is missing, and their number."""
    wanted = set(chosen.tolist())
    missing = [i for i in listing.missing() if i in wanted]
    if missing:
        path = listing.root / listing.names[missing[0]]
        raise ValueError(f"{path}: no such file, but it is listed ({len(missing)} of {len(wanted)} are missing)")


def in_threads(workers: int, function: Callable[[int], Tensor], items: Sequence[int]) -> list[Tensor]:
    """``function`` of every item, in the order of the items, in ``workers`` threads; 0 means in the calling thread."""
    if workers == 0:
        return [function(item) for item in items]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(function, items))


def ordered(
    title: str, root: Path, rows: Iterable[Row], classes: Sequence[str], *, grouped: bool = False, listed: bool = True
) -> Listing:
    """The listing of ``rows``, sorted by split and path.

    ``grouped``: the last entry of a row is its group; otherwise it is ignored. ``listed``: the names come from a text
    file, so a file may be missing. ``ValueError`` for a file that is listed twice, or no row at all.
    """
    # folder by folder: with "/" as the lowest of all characters, "a/z" comes before "a.b/c"
    sorted_rows = sorted(rows, key=lambda row: (SPLITS.index(row[0]), row[1].replace("/", "\0")))
    names = [row[1] for row in sorted_rows]
    repeated, count = Counter(names).most_common(1)[0] if names else ("", 0)
    if count > 1:
        raise ValueError(f"{root}: {repeated} is listed {count} times")
    if not sorted_rows:
        raise ValueError(f"{root}: no image is listed")
    # the rows turned into columns
    return Listing(
        title,
        root,
        names,
        [row[2] for row in sorted_rows],
        [row[0] for row in sorted_rows],
        tuple(classes),
        [row[3] for row in sorted_rows] if grouped else None,
        listed=listed,
    )


def unpacked(root: Path, name: str, mark: str) -> Path:
    """``root / name`` or ``root`` itself, whichever holds a file or folder ``mark``. ``ValueError`` if neither does."""
    for folder in (root / name, root):
        if (folder / mark).exists():
            return folder
    raise ValueError(f"{root}: holds no {mark}, nor a folder {name} with it; unpack the set there")


def entries(folder: Path) -> set[str]:
    """The names of the files in a folder; an empty set when the folder does not exist. ``ValueError`` naming one that
    cannot be listed."""
    try:
        with os.scandir(folder) as scan:
            return {entry.name for entry in scan if is_file(entry)}
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        raise ValueError(f"{folder}: cannot be listed: {error.strerror}") from None


def image_names(folder: Path) -> list[str]:
    """The image files directly in ``folder``, sorted, hidden ones left out. ``ValueError`` when there is none,
    or one is a link that leads nowhere."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    listed = [entry for entry in os.scandir(folder) if not hidden(entry.name) and entry.name.lower().endswith(SUFFIXES)]
    lost = sorted(entry.name for entry in listed if entry.is_symlink() and not os.path.exists(entry.path))
    if lost:
        raise ValueError(f"{folder / lost[0]}: a link that leads nowhere ({len(lost)} of {len(listed)} images here)")
    names = [entry.name for entry in listed if entry.is_file()]
    if not names:
        raise ValueError(f"{folder}: no image in it; allowed: {', '.join(SUFFIXES)}")
    return sorted(names)
