"""Which files belong to which examination of a folder."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sslmed_dist.data.exams.exam_table import Table
from sslmed_dist.data.exams.series_tags import read_tags
from sslmed_dist.data.listed_paths import Below
from sslmed_dist.data.scans.dicom_header import read_header
from sslmed_dist.data.scans.nifti import SUFFIXES
from sslmed_dist.printable import excerpt


@dataclass(frozen=True)
class Found:
    """The files of each examination by its name, and what did not find its counterpart."""

    files: dict[str, list[Path]]
    without_files: list[str] = field(default_factory=list)  # rows of the table
    without_row: list[str] = field(default_factory=list)  # examinations that no row names


def find_exams(root: Path, table: Table | None) -> Found:
    """The examinations below ``root``. Those of the ``table`` are folders below it or StudyInstanceUIDs; without a
    table every study is one (for NIfTI files: every folder with some), named by its UID or folder.

    ``ValueError`` for a folder that is not there or leads out of the root, and for two rows that name the same files.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    if table is None:
        return Found(by_study(files_below(root), root))
    below = Below(root)
    folders = {row.exam: root / below(row.exam, "exam") for row in table.rows}
    named = {exam: folder for exam, folder in folders.items() if folder.is_dir()}
    require_apart(named)
    inside = {folder.resolve() for folder in named.values()}
    # what no row names by its folder: it may be named by its study
    rest = [path for path in files_below(root) if not any(parent in inside for parent in path.resolve().parents)]
    studies = by_study(rest, root)
    files = {exam: files_below(folder) for exam, folder in named.items()}
    files |= {row.exam: studies[row.exam] for row in table.rows if row.exam not in named and row.exam in studies}
    return Found(
        {exam: files[exam] for exam in sorted(files) if files[exam]},
        [row.exam for row in table.rows if not files.get(row.exam)],
        [study for study in studies if study not in files],
    )


def folders_of(studies: Mapping[str, Sequence[Path]], root: Path) -> dict[str, str]:
    """The folder below ``root`` that holds all files of a study, for the ``studies`` of ``by_study``; "." is ``root``
    itself."""
    folders = {study: os.path.commonpath([file.parent for file in files]) for study, files in studies.items()}
    return {study: Path(folder).relative_to(root).as_posix() for study, folder in folders.items()}


def require_apart(folders: dict[str, Path]) -> None:
    """``ValueError`` for a folder of an examination that lies in that of another one."""
    by_place = {folder.resolve(): exam for exam, folder in folders.items()}
    if len(by_place) < len(folders):
        twice = next(exam for exam, folder in folders.items() if by_place[folder.resolve()] != exam)
        raise ValueError(f"{folders[twice]}: two rows name this folder")
    for place, exam in by_place.items():
        for parent in place.parents:
            if parent in by_place:
                raise ValueError(f"{folders[exam]}: lies in the folder of another exam, {excerpt(by_place[parent])}")


def files_below(folder: Path) -> list[Path]:
    """All files below a folder but hidden ones, sorted; links to folders are not followed."""
    found: list[Path] = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found.extend(Path(place) / name for name in sorted(names) if not name.startswith("."))
    return found


def by_study(files: Sequence[Path], root: Path) -> dict[str, list[Path]]:
    """The files of each study by its StudyInstanceUID, of NIfTI files by their folder below ``root``. A file that does
    not say its study (a damaged one, or one that is no image) belongs to that of the file before it in its folder, the
    first ones to that of the file behind them. Damaged files alone in a folder are a study of their own."""
    studies: dict[str, list[Path]] = {}
    last: dict[Path, str] = {}
    waiting: dict[Path, list[Path]] = {}
    damaged: set[Path] = set()
    for path in files:
        study = ""
        try:
            if path.name.lower().endswith(SUFFIXES):
                study = path.parent.relative_to(root).as_posix()
            else:
                header = read_header(path, pixels=False)
                if header is not None:
                    study = read_tags(path, header).study or last.get(path.parent, "")
                    study = study or path.parent.relative_to(root).as_posix()
        except ValueError:
            damaged.add(path)
        study = study or last.get(path.parent, "")
        if not study:
            waiting.setdefault(path.parent, []).append(path)
            continue
        last[path.parent] = study
        studies.setdefault(study, []).extend([*waiting.pop(path.parent, []), path])
    for folder, those in waiting.items():
        if alone := [path for path in those if path in damaged]:
            studies.setdefault(folder.relative_to(root).as_posix(), []).extend(alone)
    return dict(sorted(studies.items()))
