"""Folders of DICOM or NIfTI examinations with a table of labels; a sample is one exam, of one slot."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sslmed_dist.data.dataset import Split, Stored, select_split
from sslmed_dist.data.exams.exam_dataset import ExamDataset, NoSeries
from sslmed_dist.data.exams.exam_series import DEFAULT_RULES, Preparation, Side, reasons
from sslmed_dist.data.exams.exam_set import split_exams
from sslmed_dist.data.exams.exam_store import SUMMARY, TABLE, Exam, Store, in_memory, open_pack, write_pack
from sslmed_dist.data.exams.exam_table import EXPERT, Row
from sslmed_dist.outputs import require_folder_name

Experts = Literal["as_split", "test"]


class Exams(ExamDataset):
    """The examinations below ``root`` that have the slot ``plane``: DICOM or NIfTI at any depth, or the pack that
    ``sslmed data pack exams`` wrote of them. ``labels`` is the table (``exam_table``); without one every study is an
    unlabelled exam.

    series   slot -> rule, a regular expression that is searched in the line of a series (``exam_series``); by default
             each of the three planes takes any series. Of several that fit, the one with the most pixels is taken
    size     pixels along a side, 256 by default; mm, of each, 0.6 by default; bits 8 (uint8) or 16 (int16 to 32,767)
    side     mirror the exams of the other side of the body to this one; where no one says the side they are left as
             they are
    experts  "test": patients with a row of ``source`` expert are for testing, and their other rows are left out
    These four of a pack are those that it was written with: another value is refused.

    A sample's id is the place of its exam among all rows (all exams), sorted by name: it is the same in every slot.
    Groups are patients: of the table, else of the files, else the exam. ``records[i]["slots"]`` are the slots that the
    exam has. ``scanners`` int64 (N,) numbers the scanners of the table, else of the files, in an order that says
    nothing of their names.
    split: the column ``split``, or ``val_fraction`` and ``test_fraction`` of the patients, keyed by ``seed``.
    """

    def __init__(
        self,
        root: str | Path,
        split: Split = "train",
        plane: str = "sagittal",
        clip: int | None = None,
        series: Mapping[str, str] | None = None,
        labels: str = TABLE,
        size: int | None = None,
        mm: float | None = None,
        bits: Literal[8, 16] | None = None,
        side: Side | None = None,
        experts: Experts = "as_split",
        val_fraction: float = 0.0,
        test_fraction: float = 0.0,
        seed: int = 0,
    ) -> None:
        """``ValueError`` as ``exam_store.prepared`` and ``open_pack``, for a slot that is none, and where no exam has
        it."""
        folder = Path(root)
        asked = {"rules": None if series is None else dict(series), "size": size, "mm": mm, "bits": bits, "side": side}
        self.store = stored_exams(folder, labels, {name: v for name, v in asked.items() if v is not None})
        if plane not in self.store.how.rules:
            raise ValueError(f"data.plane: no slot {plane!r}; allowed: {', '.join(self.store.how.rules)}")
        self.slot = plane
        rows = rows_of(self.store)
        names = sorted(rows)
        patients = patients_of(self.store, rows)
        fractions = (val_fraction, test_fraction)
        part, left_out = splits_of(self.store, rows, patients, experts, fractions, seed, str(folder))
        usable = [exam for exam in self.store.exams if plane in exam.slots and part[exam.name]]
        if not usable:
            raise NoSeries(f"{folder}: none of {len(self.store.exams)} exams has a series for the slot {plane}")
        require_no_copies(self.store, part, folder)
        named = self.store.table is not None and "split" in self.store.table.columns
        hint = f"; the column split of {labels} says which" if named else f"; data.{split}_fraction makes one"
        hint = hint if split in ("val", "test") else ""
        parts = [part[exam.name] for exam in usable]
        chosen = [usable[i] for i in select_split(parts, split, str(folder), hint).tolist()]
        number = {name: position for position, name in enumerate(names)}
        group = {patient: position for position, patient in enumerate(sorted(set(patients.values())))}
        table = self.store.table
        values = torch.tensor([rows[exam.name].labels for exam in chosen], dtype=torch.float32)
        scanner_of = {exam.name: scanner_name(exam, rows[exam.name]) for exam in self.store.exams}
        self.stacks = [exam.slots[plane] for exam in chosen]
        super().__init__(
            counts=torch.tensor([stack.count for stack in self.stacks]),
            clip=clip,
            scanners=torch.tensor(numbered([scanner_of[e.name] for e in chosen], list(scanner_of.values()))),
            name=f"{folder.name} {plane}",
            ids=torch.tensor([number[exam.name] for exam in chosen]),
            labels=values if table is not None and table.labels else torch.full((len(chosen),), -1),
            classes=table.labels if table is not None else (),
            channels=1,
            bits=self.store.how.bits,
            groups=torch.tensor([group[patients[exam.name]] for exam in chosen]),
            sites=sites_of([rows[exam.name] for exam in chosen], list(rows.values())),
            records=[record(exam, plane, rows[exam.name], scanner_of[exam.name]) for exam in chosen],
            notices=notices(self.store, plane, left_out),
        )

    def slices(self, position: int, numbers: Tensor) -> Tensor:
        rows = self.stacks[position].start + numbers.numpy()
        return torch.from_numpy(self.store.slices(self.slot, rows)).unsqueeze(1)

    def reading(self) -> dict[str, Any]:
        """How the exams were prepared: of a pack, what it was written with."""
        how = self.store.how
        return {"series": dict(how.rules), "size": how.size, "mm": how.mm, "bits": how.bits, "side": how.side}

    def value_range(self) -> tuple[float, float]:
        return (0.0, float(self.store.how.white))

    def stored(self, position: int) -> Stored:
        digest = self.stacks[position].digest
        return Stored(lambda: digest)


def stored_exams(folder: Path, labels: str, asked: dict[str, Any]) -> Store:
    """The pack in ``folder``, or the examinations below it. ``asked`` are arguments of ``Preparation``; ``ValueError``
    for a pack that was written with others."""
    if not (folder / SUMMARY).is_file():
        return in_memory(folder, labels, Preparation(**({"rules": DEFAULT_RULES} | asked)))
    store = open_pack(folder)
    for name, value in asked.items():
        held = getattr(store.how, name)
        if held != value:
            key = "series" if name == "rules" else name
            raise ValueError(f"data.{key}: {value}, but {folder / SUMMARY} was written with {held}")
    return store


def rows_of(store: Store) -> dict[str, Row]:
    """The row of every exam of the table and of every exam with files; one that the table does not name is empty."""
    table = {} if store.table is None else {row.exam: row for row in store.table.rows}
    count = 0 if store.table is None else len(store.table.labels)
    return table | {
        exam.name: Row(exam.name, (float("nan"),) * count) for exam in store.exams if exam.name not in table
    }


def patients_of(store: Store, rows: Mapping[str, Row]) -> dict[str, str]:
    """The patient of every exam with files. What stands in the table, in the files and the exam's name are kept
    apart."""
    return {
        exam.name: f"table {rows[exam.name].patient}"
        if rows[exam.name].patient
        else (f"files {exam.files_patient}" if exam.files_patient else f"exam {exam.name}")
        for exam in store.exams
    }


def splits_of(
    store: Store,
    rows: Mapping[str, Row],
    patients: Mapping[str, str],
    experts: Experts,
    fractions: tuple[float, float],
    seed: int,
    where: str,
) -> tuple[dict[str, str], int]:
    """(split of every exam with files, "" where it is left out; how many are). ``ValueError`` for a patient in two
    splits, and for fractions beside a column ``split``."""
    if store.table is not None and "split" in store.table.columns:
        if any(fractions):
            raise ValueError(f"{where}: val_fraction and test_fraction, but the table has a column split")
        part = {exam.name: rows[exam.name].split for exam in store.exams}
    else:
        names = sorted(set(patients.values()))
        by_patient = dict(zip(names, split_exams(range(len(names)), fractions, seed, where), strict=True))
        part = {exam.name: by_patient[patients[exam.name]] for exam in store.exams}
    left_out = 0
    if experts == "test":
        theirs = {patients[exam.name] for exam in store.exams if rows[exam.name].source == EXPERT}
        for name in part:
            if patients[name] in theirs:
                part[name] = "test" if rows[name].source == EXPERT else ""
                left_out += not part[name]
    seen: dict[str, str] = {}
    for name, own in part.items():
        if own and seen.setdefault(patients[name], own) != own:
            raise ValueError(
                f"{where}: exam {name} is of a patient who is in split {seen[patients[name]]} and in {own}"
            )
    return part, left_out


def require_no_copies(store: Store, part: Mapping[str, str], folder: Path) -> None:
    """``ValueError`` for two exams with the very same slices in two splits."""
    seen: dict[tuple[str, str], str] = {}
    for exam in store.exams:
        for slot, stack in exam.slots.items():
            first = seen.setdefault((slot, stack.digest), exam.name)
            if part[first] and part[exam.name] and part[first] != part[exam.name]:
                both = f"{first} ({part[first]}) and {exam.name} ({part[exam.name]})"
                raise ValueError(f"{folder}: the slices of {both} are equal, and they are in two splits")


def scanner_name(exam: Exam, row: Row) -> str:
    """The scanner of an exam: of the table, else of its files, else ""."""
    names = [str(stack.facts.get("scanner") or "") for stack in exam.slots.values()]
    return row.scanner or next((name for name in names if name), "")


def numbered(names: Sequence[str], everyone: Sequence[str]) -> list[int]:
    """A number for each of ``names``, its place among ``everyone`` in the order of their hashes."""
    order = sorted(set(everyone), key=lambda name: hashlib.blake2b(name.encode(), digest_size=16).digest())
    return [order.index(name) for name in names]


def sites_of(chosen: Sequence[Row], everyone: Sequence[Row]) -> Tensor | None:
    """The site of each exam, int64 (N,): numbers as they are, names in alphabetical order; None without any."""
    names = sorted({row.site for row in everyone})
    if names in ([""], []):
        return None
    if all(name.isascii() and name.isdecimal() and len(name) < 10 for name in names):
        return torch.tensor([int(row.site) for row in chosen])
    return torch.tensor([names.index(row.site) for row in chosen])


def record(exam: Exam, slot: str, row: Row, scanner: str) -> dict[str, Any]:
    """What is known of an exam and of its series in ``slot``; it stays at the site."""
    stack = exam.slots[slot]
    known = {"exam": exam.name, "slots": list(exam.slots), "laterality": exam.laterality, "source": row.source}
    return known | {**stack.facts, "slices": stack.count, "others": stack.others, "scanner": scanner}


def notices(store: Store, slot: str, left_out: int) -> list[str]:
    """What was left aside, guessed or chosen, in counts."""
    exams = store.exams
    stacks = [exam.slots[slot] for exam in exams if slot in exam.slots]
    empty = sum(not exam.slots for exam in exams)
    unknown = sum(not exam.laterality for exam in exams) if store.how.side else 0
    aside = Counter(reason for exam in exams for reason in reasons(exam.aside))
    said = Counter(line.partition(",")[0] for stack in stacks for line in stack.facts.get("notices") or ())
    none = ", which no examination has" if not stacks else ""
    counts = {
        "rows of the table without an examination": store.without_files,
        "examinations without a row of the table, left out": store.without_row,
        "examinations without any series of the recipe, left out": empty,
        f"examinations without a series for {slot}{none}, left out of this slot": len(exams) - empty - len(stacks),
        f"examinations with several series for {slot}: that with most pixels was taken, of equals the last": (
            sum(stack.others > 0 for stack in stacks)
        ),
        f"series for {slot} with slices missing": sum(bool(stack.facts.get("missing")) for stack in stacks),
        **{f"series for {slot} with {kind}": count for kind, count in sorted(said.items())},
        f"examinations of unknown side, not mirrored to the {store.how.side}": unknown,
        "examinations of a patient with expert labels, left out": left_out,
        **{f"series or files left aside: {reason}": count for reason, count in sorted(aside.items())},
    }
    return [f"{count} {what}" for what, count in counts.items() if count]


def pack_exams(
    root: str,
    *,
    out: Path,
    workers: int,
    note: Any,
    force: bool = False,
    series: Mapping[str, str] | None = None,
    labels: str = TABLE,
    size: int = 256,
    mm: float = 0.6,
    bits: Literal[8, 16] = 8,
    side: Side | None = None,
) -> Path:
    """Write the examinations below ``root`` as a pack, and say what was left aside, guessed or chosen. ``ValueError``
    as ``write_pack``."""
    require_folder_name(Path(out), "examinations")
    how = Preparation(DEFAULT_RULES if series is None else series, size, mm, bits, side)
    written = write_pack(Path(root), Path(out), labels=labels, how=how, workers=workers, note=note, force=force)
    store = open_pack(written)
    if store.table is None:
        note(f"note: data: no table {labels} in {root}: these exams have no labels")
    for line in dict.fromkeys(line for slot in how.rules for line in notices(store, slot, 0)):
        note(f"note: data: {line}")
    return written
