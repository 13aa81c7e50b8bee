"""Inspection of folders of examinations, and of packs of them: what was found, and which series a recipe would take."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from sslmed_dist.data.check.findings import Findings
from sslmed_dist.data.exams.exam_files import find_exams, folders_of
from sslmed_dist.data.exams.exam_series import DEFAULT_RULES, Preparation, candidates, reasons
from sslmed_dist.data.exams.exam_store import SUMMARY, TABLE, open_pack
from sslmed_dist.data.exams.exam_table import Table, read_exam_table
from sslmed_dist.data.exams.series import DAMAGED, Examination, read_examination
from sslmed_dist.data.scans.dicom_file import begins_as_dicom
from sslmed_dist.data.scans.grid import IMPLAUSIBLE
from sslmed_dist.data.scans.nifti import SUFFIXES
from sslmed_dist.printable import plural

LOOKED_AT = 2000  # files that are opened to see whether a folder holds DICOM
UNSEEN = "; a slice that is missing at an end of these would not be noticed"
WRITTEN_OUT = 100  # examinations whose series are listed


def holds_examinations(root: Path) -> bool:
    """Whether the folder is a pack of exams, has a table of exams, or holds DICOM or NIfTI files at some depth."""
    if (root / SUMMARY).is_file():
        return True
    if (root / TABLE).is_file():
        with (root / TABLE).open("rb") as file:
            heading = file.readline(4096).decode("utf-8-sig", "replace").lower()
        if "exam" in [word.strip() for word in heading.split(",")]:
            return True
    for number, path in enumerate(path for path in root.rglob("*") if path.is_file()):
        if number >= LOOKED_AT:
            return False
        if path.name.lower().endswith((".dcm", *SUFFIXES)) or begins_as_dicom(path):
            return True
    return False


def inspect_examinations(root: Path, findings: Findings, rules: Mapping[str, str] | None = None) -> None:
    """The series of every examination, which of them each slot of the ``rules`` would take (by default any series of
    each plane), what is left aside and why, and the labels of the table."""
    if (root / SUMMARY).is_file():
        inspect_exam_pack(root, findings)
        return
    findings.lines.append("layout: examinations (DICOM or NIfTI)")
    how = Preparation(DEFAULT_RULES if rules is None else rules)
    try:
        table = read_exam_table(root / TABLE) if (root / TABLE).is_file() else None
        found = find_exams(root, table)
    except ValueError as error:
        findings.problems.append(str(error))
        return
    findings.lines.append(f"examinations: {len(found.files)}" + ("" if table else ", without a table labels.csv"))
    called = row_names(found.files, root) if table is None else {}
    if table is None:
        findings.lines.append(f"for a table: {TABLE} with the column exam, in it the names below, and a column a label")
    findings.named(TABLE, ("row without an examination", "rows without an examination"), found.without_files)
    findings.named(str(root), ("examination without a row", "examinations without a row"), found.without_row)
    slots: Counter[str] = Counter()
    aside: Counter[str] = Counter()
    scanners: Counter[str] = Counter()
    uncounted = 0
    in_order = sorted(found.files.items(), key=lambda exam: called.get(exam[0], exam[0]))
    for number, (name, files) in enumerate(in_order):
        exam = read_examination(files)
        chosen = inspect_exam(called.get(name, name), exam, how, findings, listed=number < WRITTEN_OUT)
        slots.update(chosen)
        aside.update(reasons(exam.aside))
        uncounted += sum(not series.ends_known for series in exam.series)
        scanners.update({series.tags.scanner or "unknown" for series in exam.series})
    if len(found.files) > WRITTEN_OUT:
        findings.lines.append(f"... and {len(found.files) - WRITTEN_OUT} examinations more, counted below")
    # Without rules nobody asked for every plane: a single series of one plane has nothing wrong with it.
    counts = {slot: slots[slot] for slot in how.rules if rules is not None or slots[slot] or not slots}
    findings.classes("examinations with a series for", counts)
    findings.lines.append("scanners: " + ", ".join(f"{name} {count}" for name, count in sorted(scanners.items())))
    findings.lines.extend(f"left aside: {reason} ({count})" for reason, count in sorted(aside.items()))
    if uncounted:
        findings.lines.append(f"series whose files do not say how many slices they have: {uncounted}{UNSEEN}")
    if table is not None:
        inspect_table(table, findings)


def row_names(studies: Mapping[str, Sequence[Path]], root: Path) -> dict[str, str]:
    """What a row of a table may call each study: its folder, or, where that is shared, its StudyInstanceUID."""
    folders = folders_of(studies, root)
    shared = Counter(folders.values())
    return {study: folder if shared[folder] == 1 and folder != "." else study for study, folder in folders.items()}


def inspect_exam(name: str, exam: Examination, how: Preparation, findings: Findings, *, listed: bool) -> list[str]:
    """The slots that an examination has; its lines and problems are written down."""
    taken: dict[int, str] = {}
    fitting = {slot: candidates(exam.series, slot, rule) for slot, rule in how.rules.items()}
    for slot, those in fitting.items():
        if those:
            several = f" (of {len(those)})" if len(those) > 1 else ""
            taken[id(those[0])] = f"{taken.get(id(those[0]), '')} {slot}{several}".strip()
    if listed:
        for series in exam.series:
            side = f" {series.tags.laterality}" if series.tags.laterality else ""
            findings.lines.append(f"{name} | {taken.get(id(series), '-')} | {series.line}{side}")
        note_aside(name, exam, findings)
    if len(exam.studies) > 1:
        findings.problems.append(f"{name}: {len(exam.studies)} studies; name each by its StudyInstanceUID in a row")
    if not any(fitting.values()):
        findings.problems.append(f"{name}: no series for any of {', '.join(how.rules)}")
    note_problems(name, exam, findings)
    return [slot for slot, those in fitting.items() if those]


def note_aside(name: str, exam: Examination, findings: Findings) -> None:
    """A line for everything that was left aside in an examination, and why."""
    for item in exam.aside:
        detail = f" ({item.detail})" if item.detail else ""
        findings.lines.append(f"{name} | left aside | {item.description} ({item.images} images): {item.reason}{detail}")


def note_problems(name: str, exam: Examination, findings: Findings) -> None:
    """A line for every damaged or impossible file of an examination, and for slices that are missing."""
    findings.problems.extend(item.detail for item in exam.aside if item.reason in (DAMAGED, IMPLAUSIBLE))
    for series in exam.series:
        findings.problems.extend(series.damaged)
        if series.missing:
            where = "; ".join(series.holes[:3])
            findings.problems.append(f"{name}: {series.line}: {plural(series.missing, 'slice')} missing, {where}")


def inspect_table(table: Table, findings: Findings) -> None:
    """Splits, sources, sites, and for each label how often it is there, absent and missing."""
    for what in ("split", "source", "site", "laterality"):
        counts = Counter(getattr(row, what) or "not said" for row in table.rows)
        if set(counts) != {"not said"}:
            findings.lines.append(f"{what}: " + ", ".join(f"{name} {count}" for name, count in sorted(counts.items())))
    for k, label in enumerate(table.labels):
        values = [row.labels[k] for row in table.rows]
        positive, negative = values.count(1.0), values.count(0.0)
        missing = len(values) - positive - negative
        findings.lines.append(f"label {label}: {positive} with, {negative} without, {missing} missing")
        if not positive or not negative:
            findings.problems.append(f"label {label}: all known values are {0 if negative else 1}")


def inspect_exam_pack(root: Path, findings: Findings) -> None:
    """How many examinations a pack has in each slot, and how it was written."""
    findings.lines.append("layout: pack of examinations")
    try:
        store = open_pack(root)
    except ValueError as error:
        findings.problems.append(str(error))
        return
    how = store.how
    findings.lines.append(
        f"examinations: {len(store.exams)}, slices of {how.size} x {how.size} pixels of {how.mm:g} mm, {how.bits} bit"
    )
    for slot, rule in how.rules.items():
        stacks = [exam.slots[slot] for exam in store.exams if slot in exam.slots]
        slices, several = sum(stack.count for stack in stacks), sum(stack.others > 0 for stack in stacks)
        findings.lines.append(
            f"{slot} (rule {rule!r}): {len(stacks)} exams, {slices:,} slices; chosen among several series: {several}"
        )
    findings.named(
        str(root),
        ("exam without any series", "exams without any series"),
        [exam.name for exam in store.exams if not exam.slots],
    )
    if store.table is not None:
        inspect_table(store.table, findings)
