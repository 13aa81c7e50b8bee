"""Which scans a path means: files of NIfTI, and studies of DICOM at any depth or listed by a DICOMDIR."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslmed_dist.data.exams.exam_files import by_study, files_below
from sslmed_dist.data.scans.dicom_file import begins_as_dicom, read_dicom, readable_dicom
from sslmed_dist.data.scans.dicom_header import SUFFIXES as DICOM_SUFFIXES
from sslmed_dist.data.scans.nifti import SUFFIXES
from sslmed_dist.data.scans.scan import stem

DIRECTORY = "1.2.840.10008.1.3.10"  # SOP class of a DICOMDIR (PS3.10, 8.6)


@dataclass(frozen=True)
class Source:
    """Where one scan is to be found: ``path`` names it in messages, ``name`` in outputs. ``files`` are those that it is
    among, None where the path itself is all there is."""

    path: Path
    name: str
    files: tuple[Path, ...] | None = None


def one_source(path: Path) -> Source:
    """All that lies at a path, as one examination: a file, a folder with everything below it, or what a DICOMDIR
    lists. ``ValueError`` as ``listed_files``."""
    if path.is_dir():
        return Source(path, stem(path), tuple(with_listed(files_below(path))))
    if path.is_file() and not path.name.lower().endswith(SUFFIXES) and begins_as_dicom(path):
        name = path.stem if path.suffix.lower() in DICOM_SUFFIXES else path.name
        return Source(path, name, tuple(listed_files(path)) or (path,))
    return Source(path, stem(path))


def studies_at(path: Path, excluded: Sequence[Path] = ()) -> list[Source]:
    """The studies at a path, each by the folder that all of its files lie in, by name. Files in ``excluded``, or below
    it, are left out. ``ValueError`` as ``listed_files``."""
    left_out = {place.resolve() for place in excluded}
    files = one_source(path).files or ()
    files = tuple(file for file in files if not left_out & {file.resolve(), *file.resolve().parents})
    root = path if path.is_dir() else path.parent
    if files == (path,):
        return [one_source(path)]
    studies = [tuple(those) for those in by_study(files, root).values()]
    folders = [Path(os.path.commonpath([file.parent for file in those])) for those in studies]
    names = [stem(path) if folder == root else "_".join(folder.relative_to(root).parts) for folder in folders]
    many, number = Counter(names), Counter[str]()
    found = []
    for folder, name, those in zip(folders, names, studies, strict=True):
        number[name] += 1  # studies that share their folder are numbered
        found.append(Source(folder, f"{name}_{number[name]}" if many[name] > 1 else name, those))
    return sorted(found, key=lambda source: source.name)


def with_listed(files: Sequence[Path]) -> list[Path]:
    """The files, after it has been seen that everything a DICOMDIR among them lists is there."""
    for path in files:
        if path.name.upper() == "DICOMDIR":
            listed_files(path)
    return list(files)


def listed_files(path: Path) -> list[Path]:
    """The files that a DICOMDIR lists; none for another file. ``ValueError`` for one that is damaged, names a file
    outside of its folder, or one that is not there."""
    with readable_dicom(path):
        header: Any = read_dicom(path, header_only=True, force=True)
        if (getattr(header, "file_meta", None) or {}).get("MediaStorageSOPClassUID") != DIRECTORY:
            return []
        listed = []
        for record in header.get("DirectoryRecordSequence") or []:
            parts = record.get("ReferencedFileID") or []
            if parts:
                listed.append([parts] if isinstance(parts, str) else [str(part) for part in parts])
    # discs are written in capitals, and often copied in small letters
    there = {file.relative_to(path.parent).as_posix().lower(): file for file in files_below(path.parent)}
    for parts in listed:
        if any(not part or part in (".", "..") or "/" in part or "\0" in part for part in parts):
            raise ValueError(f"{path}: lists a file outside of its folder")
    files = [there["/".join(parts).lower()] for parts in listed if "/".join(parts).lower() in there]
    if len(files) < len(listed):
        raise ValueError(f"{path}: lists {len(listed)} files, of which {len(listed) - len(files)} are not there")
    if not files:
        raise ValueError(f"{path}: lists no file")
    return files
