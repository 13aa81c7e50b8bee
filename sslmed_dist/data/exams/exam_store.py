"""Examinations made ready: the slices of every slot one after another, in memory or in a pack that is memory-mapped.

A pack is a folder: ``exams.json`` says what is in it, ``SLOT.bin`` holds the slices of a slot (all of ``size`` x
``size`` pixels, uint8 or little-endian int16), ``labels.csv`` is the table. It holds patients' images, descriptions and
identifiers, so it stays where the examinations are.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslmed_dist.atomic_files import appearing, write_atomically
from sslmed_dist.data.damage import damage_named
from sslmed_dist.data.exams.exam_files import find_exams
from sslmed_dist.data.exams.exam_series import Preparation, candidates, prepare_series
from sslmed_dist.data.exams.exam_table import Table, read_exam_table
from sslmed_dist.data.exams.series import Examination, LeftAside, read_examination
from sslmed_dist.data.text_files import field, read_json
from sslmed_dist.data.workers import in_processes
from sslmed_dist.printable import excerpt, plural

SUMMARY, TABLE, KIND, VERSION = "exams.json", "labels.csv", "sslmed exams", 1
MOST_IN_MEMORY = 2**30  # bytes of slices that are kept without a pack
Stored = NDArray[Any]


@dataclass(frozen=True)
class Stack:
    """The slices of one slot of an exam: rows ``start`` ... ``start + count - 1`` of the slot, a hash of them, and what
    is known of the series (``exam_series.prepare_series``); ``others`` series fitted the rule as well."""

    start: int
    count: int
    digest: str
    others: int
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Exam:
    """An examination: the slots that it has, and what was left aside. ``files_patient`` is the PatientID of its
    files."""

    name: str
    studies: tuple[str, ...]
    files_patient: str
    laterality: str
    slots: Mapping[str, Stack]
    aside: tuple[LeftAside, ...]


@dataclass(frozen=True)
class Store:
    """All examinations that have files, by name. ``arrays`` holds the slices of each slot in memory, ``folder`` is the
    pack; one of them is None. ``without_files`` and ``without_row`` count what did not find its counterpart."""

    how: Preparation
    exams: tuple[Exam, ...]
    table: Table | None
    without_files: int
    without_row: int
    arrays: Mapping[str, Stored] | None = None
    folder: Path | None = None

    def slices(self, slot: str, rows: NDArray[np.int64]) -> Stored:
        """Slices ``rows`` of a slot (n, size, size). Of a pack only these are read: the map is closed again, so the
        pages that were read do not add up."""
        if self.arrays is not None:
            return np.asarray(self.arrays[slot][rows])
        assert self.folder is not None
        path, kind = self.folder / f"{slot}.bin", stored_type(self.how)
        shape = (sum(exam.slots[slot].count for exam in self.exams if slot in exam.slots), *[self.how.size] * 2)
        with damage_named(path, "cannot be read or is truncated"):
            mapped = np.memmap(path, kind, "r", shape=shape)
            return np.array(mapped[rows]).astype(kind.newbyteorder("="), copy=False)


def stored_type(how: Preparation) -> "np.dtype[Any]":
    """The type that slices are stored as."""
    return np.dtype(np.uint8 if how.bits == 8 else "<i2")


def prepare_exam(job: tuple[str, list[Path], str], how: Preparation) -> tuple[Exam, dict[str, Stored]]:
    """One examination (name, files, laterality of the table) and the slices of its slots, whose ``start`` is 0.

    A series that cannot be read is left aside, and the next that fits the rule is taken. ``ValueError`` for files of
    two studies.
    """
    name, files, laterality = job
    found = read_examination(files)
    if len(found.studies) > 1:
        raise ValueError(
            f"{files[0].parent}: exam {excerpt(name)} holds {len(found.studies)} studies; name each by its "
            "StudyInstanceUID in the column exam"
        )
    aside, stacks, arrays = list(found.aside), {}, {}
    for slot, rule in how.rules.items():
        fitting = candidates(found.series, slot, rule)
        for series in fitting:
            side = laterality or series.tags.laterality
            try:
                stored, facts = prepare_series(series, how, side)
            except ValueError as error:
                kind = "all pixels are equal" if "are equal" in str(error) else "a damaged slice"
                aside.append(LeftAside(series.tags.description, series.shape[0], kind, str(error)))
                continue
            digest = hashlib.blake2b(stored.tobytes(), digest_size=16).hexdigest()
            stacks[slot], arrays[slot] = Stack(0, len(stored), digest, len(fitting) - 1, facts), stored
            break
    side = laterality or side_of_all(found)
    patient = found.patients[0] if len(found.patients) == 1 else ""
    return Exam(name, found.studies, patient, side, stacks, tuple(aside)), arrays


def side_of_all(found: Examination) -> str:
    """The side that the tags of all series that say one agree on; "" where they do not."""
    sides = {series.tags.laterality for series in found.series} - {""}
    return sides.pop() if len(sides) == 1 else ""


def table_of(root: Path, labels: str) -> Table | None:
    """The table ``labels`` of the folder ``root``, or at an absolute path; None where the folder has none of the usual
    name. ``ValueError`` as ``read_exam_table``, and where another one was asked for and is not there."""
    if (root / labels).is_file():
        return read_exam_table(root / labels)
    if labels != TABLE:
        raise ValueError(f"data.labels: {root / labels}: no such file; allowed: a path from {root}, or an absolute one")
    return None


def prepared(
    root: Path, labels: str, how: Preparation, workers: int, keep: Callable[[str, Stored], None]
) -> tuple[list[Exam], Table | None, int, int]:
    """(exams, table, rows without files, exams without a row) of a folder of examinations. ``keep`` gets the slices of
    every slot of every exam, one exam after another. ``ValueError`` as ``find_exams``, ``read_exam_table``,
    ``prepare_exam``, and for a study that two rows name."""
    table = table_of(root, labels)
    found = find_exams(root, table)
    if not found.files:
        what = f"; none of the {len(table.rows)} rows of {labels} names a folder or study in it" if table else ""
        raise ValueError(f"{root}: no examination in it{what}; allowed: DICOM or NIfTI files at any depth")
    side_of = {row.exam: row.laterality for row in table.rows} if table else {}
    jobs = [(name, files, side_of.get(name, "")) for name, files in found.files.items()]
    starts = dict.fromkeys(how.rules, 0)
    exams: list[Exam] = []
    owner: dict[str, str] = {}
    for exam, arrays in in_processes(partial(prepare_exam, how=how), jobs, workers):
        for study in exam.studies:
            first = owner.setdefault(study, exam.name)
            if first != exam.name:
                raise ValueError(f"{root}: {excerpt(first)} and {excerpt(exam.name)} are one study; allowed: one row")
        slots = {}
        for slot, stored in arrays.items():
            slots[slot] = replace(exam.slots[slot], start=starts[slot])
            starts[slot] += len(stored)
            keep(slot, stored)
        exams.append(replace(exam, slots=slots))
    return exams, table, len(found.without_files), len(found.without_row)


def in_memory(root: Path, labels: str, how: Preparation) -> Store:
    """The examinations of a folder, their slices in memory. ``ValueError`` as ``prepared``, and above 1 GiB."""
    arrays: dict[str, list[Stored]] = {slot: [] for slot in how.rules}
    size = 0

    def keep(slot: str, stored: Stored) -> None:
        nonlocal size
        size += stored.nbytes
        if size > MOST_IN_MEMORY:
            raise ValueError(
                f"{root}: more than {MOST_IN_MEMORY >> 30} GiB of slices; write a pack, which is read a slice at a "
                f"time: sslmed data pack exams {root} OUT"
            )
        arrays[slot].append(stored)

    exams, table, without_files, without_row = prepared(root, labels, how, 1, keep)
    kept = {slot: np.concatenate(parts) for slot, parts in arrays.items() if parts}
    return Store(how, tuple(exams), table, without_files, without_row, arrays=kept)


def write_pack(
    root: Path, out: Path, *, labels: str, how: Preparation, workers: int, note: Callable[[str], None], force: bool
) -> Path:
    """Write the examinations of ``root`` as a pack into the new folder ``out`` and return it: completely or not at all.
    ``force`` replaces another pack. ``ValueError`` as ``prepared``, and for a folder of something else."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / SUMMARY).is_file())):
        raise ValueError(f"{out}: exists and is no pack of exams; give an empty or a new folder")
    if (out / SUMMARY).is_file() and not force:
        raise ValueError(f"{out / SUMMARY}: another pack; give an empty or a new folder, or --force to replace it")
    if (root / SUMMARY).is_file():
        raise ValueError(f"{root / SUMMARY}: is a pack already")
    with ExitStack() as stack:
        folder = stack.enter_context(appearing(out.resolve()))
        files = {slot: stack.enter_context((folder / f"{slot}.bin").open("wb")) for slot in how.rules}
        done = 0

        def keep(slot: str, stored: Stored) -> None:
            nonlocal done
            files[slot].write(stored.astype(stored_type(how)).tobytes())
            done += len(stored)

        exams, table, without_files, without_row = prepared(root, labels, how, workers, keep)
        if not done:
            what = f"none of {plural(len(exams), 'exam')} has a series for {' or '.join(how.rules)}"
            raise ValueError(f"{root}: {what}; sslmed data check {root} lists what there is")
        if table is not None:
            shutil.copyfile(root / labels, folder / TABLE)
        content = {
            "kind": KIND,
            "version": VERSION,
            "preparation": asdict(how),
            "without_files": without_files,
            "without_row": without_row,
            "exams": [asdict(exam) for exam in exams],
        }
        write_atomically(folder / SUMMARY, (json.dumps(content, indent=1) + "\n").encode())
        for file in files.values():
            file.flush()
        if force and (out / SUMMARY).is_file():
            shutil.rmtree(out)
        note(f"{out.name}: {plural(len(exams), 'exam')}, {done:,} slices")
    return out


def open_pack(folder: Path) -> Store:
    """The pack in a folder. ``ValueError`` naming the file that is damaged, or of another version."""
    path = folder / SUMMARY
    content = read_json(path)
    if field(content, "kind", str, str(path)) != KIND or field(content, "version", int, str(path)) != VERSION:
        raise ValueError(f"{path}: not a pack of exams of version {VERSION}")
    with damage_named(path, "not a pack of exams"):
        how = Preparation(**content["preparation"])
        exams = tuple(exam_of(entry, how) for entry in content["exams"])
        without_files, without_row = int(content["without_files"]), int(content["without_row"])
    for slot in how.rules:
        require_whole(folder / f"{slot}.bin", [exam.slots[slot] for exam in exams if slot in exam.slots], how)
    table = read_exam_table(folder / TABLE) if (folder / TABLE).is_file() else None
    return Store(how, exams, table, without_files, without_row, folder=folder)


def exam_of(entry: Mapping[str, Any], how: Preparation) -> Exam:
    """An exam of ``exams.json``. Any error for one that is damaged."""
    slots = {slot: Stack(**stack) for slot, stack in entry["slots"].items()}
    assert set(slots) <= set(how.rules) and all(s.count > 0 and s.start >= 0 for s in slots.values())
    aside = tuple(LeftAside(**item) for item in entry["aside"])
    return Exam(**(dict(entry) | {"slots": slots, "aside": aside, "studies": tuple(entry["studies"])}))


def require_whole(path: Path, stacks: Sequence[Stack], how: Preparation) -> None:
    """``ValueError`` unless the file of a slot has the bytes of its ``stacks``, which follow each other."""
    ends = [0]
    for stack in stacks:
        if stack.start != ends[-1]:
            raise ValueError(f"{path}: its slices do not follow each other in {SUMMARY}")
        ends.append(stack.start + stack.count)
    needed = ends[-1] * how.size**2 * stored_type(how).itemsize
    held = path.stat().st_size if path.is_file() else -1
    if held != needed:
        raise ValueError(f"{path}: {'missing' if held < 0 else f'{held:,} bytes'}; {SUMMARY} says {needed:,}")
