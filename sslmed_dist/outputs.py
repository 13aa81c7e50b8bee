"""What a verb may write over: nothing that this program did not write, and of its own only what ``--force`` allows.

One rule for every verb with an output path (``require_writable``). A file is known by what is in it, never by its name:
a mark that its writer puts there, of the same kind as what is to be written. So the features of ``embed`` cannot land
on a checkpoint or an image, nor a description of ``export`` on the results of ``evaluate``.
"""

import json
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from sslmed_dist.atomic_files import sha256
from sslmed_dist.json_files import LARGEST_OBJECT, require_ordinary
from sslmed_dist.zip_files import open_zip

# What the marks are called and say: a key of JSON and of a safetensors header, a member of an .npz.
MARK, EXPORT, FEATURES = "written_by", "sslmed export", "sslmed embed"
WEIGHTS = "weights_sha256"  # in a description: the hash of the weights beside it, where these have no room for a mark
RESEARCH = "Research use only, not a medical device."  # stands on whatever is handed on
# How a report begins and ends.
PAGE_BEGIN = "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
TEXT_END = f"{RESEARCH}\n"
LARGEST_HEADER = 2**24  # bytes of a safetensors file's header: 100,000 tensors; in Python they take 20 times as much

Recogniser = Callable[[Path], bool]


def require_writable(outputs: Iterable[tuple[Path, Recogniser]], *, force: bool) -> None:
    """``ValueError`` naming the first path that holds something which must stay: a link or folder, what its recogniser
    does not know as this program's output of that kind, or such an output without ``force``. Also where a folder of the
    path is a file."""
    for path, is_ours in outputs:
        require_folders(path.parent)
        if not path.is_symlink() and not path.exists():
            continue
        if path.is_symlink() or not path.is_file():
            kind = "a link" if path.is_symlink() else "a folder" if path.is_dir() else "no ordinary file"
            raise ValueError(f"{path}: is {kind} and is not written over; give another name")
        if not known(path, is_ours):
            raise ValueError(
                f"{path}: exists and is not what this command writes there, so it is not written over, --force or not; "
                "give another name"
            )
        if not force:
            raise ValueError(f"{path}: exists already; give another name, or --force to write over it")


def require_folders(folder: Path) -> None:
    """``ValueError`` naming what is a file where ``folder``, or one above it, is to be."""
    for above in (folder, *folder.parents):
        if above.exists() and not above.is_dir():
            raise ValueError(f"{above}: is a file; expected a folder to write into")


def require_ours(path: Path, is_ours: Recogniser) -> None:
    """``ValueError`` where ``path`` holds something else than this program's output of that kind, which alone may be
    written anew without being asked; and where nothing can be written there, before any work is done."""
    place = next(folder for folder in path.absolute().parents if folder.exists())
    if not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"{path}: {place} cannot be written to (read-only, or not this user's); work on a copy")
    if (path.is_symlink() or path.exists()) and not (path.is_file() and known(path, is_ours)):
        raise ValueError(f"{path}: exists and is not what this command writes there; move it away")


def known(path: Path, is_ours: Recogniser) -> bool:
    """``is_ours(path)``; a file that cannot be read is not ours."""
    try:
        return is_ours(path)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, RecursionError):
        return False


def read_mapping(path: Path) -> Mapping[str, Any]:
    """A JSON file's mapping; empty for any other content. ``ValueError`` for a file that is larger than ours are."""
    require_ordinary(path, LARGEST_OBJECT)
    content = json.loads(path.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}


def is_description(path: Path) -> bool:
    """The JSON file of an export."""
    return read_mapping(path).get(MARK) == EXPORT


def is_results(path: Path) -> bool:
    """The results of ``evaluate``."""
    content = read_mapping(path)
    return isinstance(content.get("rows"), list) and isinstance(content.get("encoder"), dict)


def is_probe(path: Path) -> bool:
    """The results of ``probe``."""
    content = read_mapping(path)
    return isinstance(content.get("rows"), list) and isinstance(content.get("probe"), str)


def is_export(path: Path) -> bool:
    """The safetensors file of an export: its header has the mark."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length)) if length <= min(path.stat().st_size, LARGEST_HEADER) else {}
    return isinstance(header, dict) and (header.get("__metadata__") or {}).get(MARK) == EXPORT


def is_described(path: Path) -> bool:
    """Weights whose description beside them is an export's and holds their SHA-256."""
    facts = read_mapping(path.with_suffix(".json"))
    return facts.get(MARK) == EXPORT and facts.get(WEIGHTS) == sha256(path)


def is_card(path: Path) -> bool:
    """The model card of an export: the head of the Markdown file begins with the mark."""
    start = f"---\n{MARK}: {json.dumps(EXPORT)}\n".encode()
    with path.open("rb") as file:
        return file.read(len(start)) == start


def is_features(path: Path) -> bool:
    """The features of ``embed``: an .npz with the mark."""
    import numpy as np

    with open_zip(path) as archive:
        member = archive.getinfo(f"{MARK}.npy")
        if member.file_size > 1024:
            return False
        with archive.open(member) as stream:
            array = np.lib.format.read_array(stream, allow_pickle=False)
    return str(array) == FEATURES


def is_page(path: Path) -> bool:
    """The HTML page of a report."""
    with path.open("rb") as file:
        return file.read(len(PAGE_BEGIN)) == PAGE_BEGIN.encode()


def is_text(path: Path) -> bool:
    """The Markdown file of a report."""
    end = b"\n\n" + TEXT_END.encode()
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(end)))
        return file.read(len(end)) == end


def require_folder_name(out: Path, what: str) -> None:
    """``ValueError`` where ``what`` is written into a folder, and ``out``, which is not there, is called like an
    archive."""
    if out.suffix.lower() in (".npz", ".zip", ".tar") and not out.is_dir():
        raise ValueError(f"{out}: {what} are packed into a folder; allowed: a name without {out.suffix}")
