"""Reading ``.npz`` archives whose content is not trusted."""

import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

# What damaged bytes raise; TokenError is numpy's, of the header of an array.
DAMAGE = (
    *(ValueError, OSError, EOFError, KeyError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error, tokenize.TokenError),
)
Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]


@contextmanager
def open_archive(path: Path) -> Iterator[Any]:
    """The open archive; every way of failing to read it becomes one ``ValueError`` that names the file."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("a single array, not an .npz archive")
            yield archive
    except DAMAGE as error:
        raise ValueError(f"{path}: not a readable .npz: {error}") from error


def archive_names(path: Path) -> list[str]:
    """The names of the arrays in an ``.npz``, without reading them. ``ValueError`` naming the file if it is damaged."""
    with open_archive(path) as archive:
        return list(archive.files)


def read_archive(path: Path, keys: Sequence[str] = ()) -> Arrays:
    """The arrays of an ``.npz`` by name, all of them or those in ``keys``; nothing pickled is read.

    ``ValueError`` naming the file when it is missing, damaged, or lacks one of ``keys``.
    """
    with open_archive(path) as archive:
        missing = [key for key in keys if key not in archive.files]
        if missing:
            raise ValueError(f"lacks {', '.join(map(repr, missing))}; it holds {', '.join(archive.files)}")
        return {key: archive[key] for key in (keys or archive.files)}


def find_archive(root: Path) -> Path:
    """``root`` itself when it is a file, else the one ``.npz`` inside it. ``ValueError`` when there is not just one."""
    if root.is_file():
        return root
    if not root.is_dir():
        raise ValueError(f"{root}: no such file or folder")
    archives = sorted(root.glob("*.npz"))
    if len(archives) != 1:
        raise ValueError(f"{root}: expected exactly one .npz file in it, found {len(archives)}; name the file itself")
    return archives[0]
