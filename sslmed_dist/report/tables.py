"""From evaluation rows to tables: one per site, with a row for each arm and a column for each measure. Over runs of
several seeds a cell holds the mean and the standard deviation."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sslmed_dist.downstream.coverage import remarks_in
from sslmed_dist.printable import plural
from sslmed_dist.report.runs import Experiment, Row
from sslmed_dist.report.wording import (
    ALL_SITES,
    ARM_NAMES,
    METRIC_NAMES,
    Column,
    arm_name,
    column_name,
    evaluator_name,
    number,
    site_name,
)

AT_SITES = "sites"  # the file of rows that the sites themselves have measured: evaluate/sites.json
FEW_PATIENTS, FEW_SAMPLES = 30, 100  # below either, a table carries a caution


@dataclass(frozen=True)
class Cell:
    """One measure of one arm at one site over the runs of an experiment.

    ``value`` is the mean over the runs in which the measure is defined, ``sd`` their standard deviation (None for one
    run). ``low`` and ``high`` are the bootstrap interval where there is a single run. ``each`` holds (label, row) of
    every run.
    """

    value: float | None
    sd: float | None
    low: float | None
    high: float | None
    each: tuple[tuple[str, Row], ...]

    @property
    def samples(self) -> tuple[int, int]:
        """Fewest and most test samples over the runs."""
        return span(row["n"] for _, row in self.each)

    @property
    def patients(self) -> tuple[int, int]:
        """Fewest and most patients (groups) over the runs; samples where rows do not know their patients."""
        return span(row.get("groups") or row["n"] for _, row in self.each)


@dataclass(frozen=True)
class Table:
    """Arms (rows) by columns at one site. A cell that is missing in ``cells`` was not run. ``difference``: arms are
    differences ``A - B``. ``names`` replaces what an arm is called, ``hint`` explains how the numbers were made."""

    title: str
    arms: tuple[str, ...]
    columns: tuple[Column, ...]
    cells: Mapping[tuple[str, Column], Cell]
    difference: bool = False
    names: Mapping[str, str] = field(default_factory=dict)
    hint: str = ""

    def name(self, arm: str) -> str:
        """An arm as it is printed."""
        return self.names.get(arm) or arm_name(arm)

    def caution(self) -> str | None:
        """A note where the numbers are too few to conclude from."""
        if not self.cells:
            return None
        samples = min(cell.samples[0] for cell in self.cells.values())
        patients = min(cell.patients[0] for cell in self.cells.values())
        if patients >= FEW_PATIENTS and samples >= FEW_SAMPLES:
            return None
        known = f"{plural(patients, 'patient')} or exams, " if patients != samples else ""
        return f"descriptive: few patients ({known}{plural(samples, 'test sample')})"

    def coverage(self) -> list[str]:
        """Which classes lack samples, in the words of the rows' notes, each remark once."""
        rows = (row for cell in self.cells.values() for _, row in cell.each)
        return list(dict.fromkeys(note for row in rows for note in notes_of(row) if remarks_in(note)))

    def counts(self) -> str:
        """Test samples and patients (where the data know them), as ranges where cells or runs differ."""
        samples = span(n for cell in self.cells.values() for n in cell.samples)
        patients = span(n for cell in self.cells.values() for n in cell.patients)
        counts = f"{between(samples)} test samples"
        if patients != samples:
            counts += f" of {between(patients)} patients or exams"
        return f"{counts}; {self.hint}" if self.hint else counts


def span(numbers: Iterable[int]) -> tuple[int, int]:
    """The smallest and the largest number; (0, 0) for none."""
    counts = [int(count) for count in numbers]
    return (min(counts), max(counts)) if counts else (0, 0)


def between(ends: tuple[int, int]) -> str:
    """``12`` or ``12-15``."""
    return str(ends[0]) if ends[0] == ends[1] else f"{ends[0]}-{ends[1]}"


def site_tables(experiment: Experiment, *, difference: bool = False) -> list[Table]:
    """One table per site, all sites together first; ``difference`` picks the rows of paired differences instead."""
    cells = collect(experiment, difference)
    sites = sorted({site for site, _, _ in cells}, key=lambda site: (site != ALL_SITES, natural(site)))
    arms_with_rows = {arm for _, arm, _ in cells}
    # an arm that is looked for and has no row stands in the table as "not run"
    arms_expected = set() if difference else set(expected_arms(experiment))
    arms = tuple(sorted(arms_with_rows | (arms_expected if cells else set()), key=arm_order))
    columns = ordered_columns(column for _, _, column in cells)
    return [
        Table(site, arms, columns, {(arm, c): cell for (s, arm, c), cell in cells.items() if s == site}, difference)
        for site in sites
    ]


def collect(experiment: Experiment, difference: bool) -> dict[tuple[str, str, Column], Cell]:
    """Cells by (site, arm, column). Two files of a run may measure the same thing with different results (say, of the
    last and of the best encoder); then the name of the later file is added to the arm. ``ValueError`` where one file
    has the same measure twice."""
    rows_by_cell: dict[tuple[str, str, Column], dict[str, Row]] = {}  # the row of each run, by the run's label
    for label, run in zip(experiment.labels, experiment.runs, strict=True):
        for row in run.rows:
            if bool(row.get("difference")) != difference:
                continue
            site, arm, column = (
                str(row["site"] or ALL_SITES),
                str(row["arm"]),
                (str(row["evaluator"]), str(row["metric"])),
            )
            # where another file has this cell already: drop equal numbers, give others an arm of their own
            earlier = rows_by_cell.get((site, arm, column), {}).get(label)
            if earlier is not None and earlier["file"] != row["file"]:
                if all(earlier[key] == row[key] for key in ("value", "low", "high", "n")):
                    continue
                arm = f"{arm} ({row['file']})"
                earlier = rows_by_cell.get((site, arm, column), {}).get(label)
            if earlier is not None:
                raise ValueError(
                    f"{run.folder}: evaluate/{row['file']}.json holds {site} / {arm} / {' / '.join(column)} twice"
                )
            rows_by_cell.setdefault((site, arm, column), {})[label] = row
    return {key: summarise(list(each.items())) for key, each in rows_by_cell.items()}


def summarise(each: Sequence[tuple[str, Row]]) -> Cell:
    """Mean and standard deviation over runs; the interval of a single run."""
    values = [float(row["value"]) for _, row in each if row["value"] is not None]
    if len(each) == 1:
        row = each[0][1]
        return Cell(values[0] if values else None, None, row["low"], row["high"], tuple(each))
    # over several runs the spread of the runs takes the place of the single runs' intervals
    mean = math.fsum(values) / len(values) if values else None
    return Cell(mean, statistics.stdev(values) if len(values) > 1 else None, None, None, tuple(each))


def expected_arms(experiment: Experiment) -> tuple[str, ...]:
    """The arms that a reader looks for, run or not: those of ``federated.compare`` and the federation; without a
    federation the encoder and a random one. Where the sites themselves have measured (``evaluate/sites.json``), those
    that they told: whatever wants the data of several sites in one place there is not."""
    federated = experiment.config.get("federated")
    if any(row["file"] == AT_SITES for run in experiment.runs for row in run.rows):
        return ("federated",)
    if not isinstance(federated, Mapping):
        return ("random", "encoder")
    return (*(federated.get("compare") or ()), "federated")


def arm_order(arm: str) -> tuple[int, str]:
    """Sort key: known arms in the order of ``ARM_NAMES``, then the others by name."""
    known = list(ARM_NAMES)
    return (known.index(arm) if arm in known else len(known), arm)


def natural(text: str) -> list[tuple[int, Any]]:
    """Sort key in which site-10 comes after site-2."""
    # numbers are compared as numbers, after the text without digits
    digits = "".join(letter if letter.isdecimal() else " " for letter in text).split()
    return [(0, "".join(letter for letter in text if not letter.isdecimal())), *((1, int(part)) for part in digits)]


def ordered_columns(columns: Iterable[Column]) -> tuple[Column, ...]:
    """The distinct columns: evaluators in the order in which they first occur, and for each the known metrics first,
    then the labels (``auc/LABEL``)."""
    distinct = list(dict.fromkeys(columns))
    evaluators = list(dict.fromkeys(evaluator for evaluator, _ in distinct))
    known = list(METRIC_NAMES)

    def sort_key(column: Column) -> tuple[int, int]:
        return evaluators.index(column[0]), known.index(column[1]) if column[1] in known else len(known)

    return tuple(sorted(distinct, key=sort_key))


def main_columns(columns: Sequence[Column]) -> tuple[Column, ...]:
    """The columns of the main tables: all but those of single labels."""
    return tuple(column for column in columns if "/" not in column[1])


def plotted_columns(columns: Sequence[Column]) -> tuple[Column, ...]:
    """The columns worth a picture: accuracy and AUC."""
    return tuple(column for column in columns if column[1] in ("accuracy", "auc"))


def cell_text(cell: Cell | None, metric: str, *, signed: bool = False) -> tuple[str, str]:
    """(value, uncertainty) as printed: ``("84.2", "[81.0, 87.1]")``, ``("84.2", "± 1.3")``, ``("not run", "")``."""
    if cell is None:
        return "not run", ""
    if cell.value is None:
        return "undefined", ""
    value = number(cell.value, metric, signed=signed)
    if cell.sd is not None:
        return value, f"\N{PLUS-MINUS SIGN} {number(cell.sd, metric)}"
    if cell.low is None or cell.high is None:
        return value, ""
    return value, f"[{number(cell.low, metric, signed=signed)}, {number(cell.high, metric, signed=signed)}]"


def is_clear(cell: Cell | None) -> bool:
    """Whether the interval of a difference leaves out 0."""
    return cell is not None and cell.low is not None and cell.high is not None and cell.low * cell.high > 0


def undefined(table: Table) -> list[str]:
    """Why measures of a table have no value, in one line each."""
    reasons = {
        f"{column_name(column)}: {note}"
        for (_, column), cell in table.cells.items()
        for _, row in cell.each
        for note in notes_of(row)
        if row["value"] is None and note.startswith("undefined")
    }
    return sorted(reasons)


def notes(tables: Sequence[Table]) -> dict[str, list[str]]:
    """Each note of the rows once, with the places (site, arm, measure, run) it belongs to. A note about the learning
    rate holds for all measures of a probe, so its place is the evaluator."""
    places_of: dict[str, dict[str, None]] = {}  # in order, each place once
    for table in tables:
        for (arm, column), cell in table.cells.items():
            for label, row in cell.each:
                for note in notes_of(row):
                    if remarks_in(note):  # classes that lack samples are said beside each table
                        continue
                    rate = note.startswith("learning rate")
                    what = evaluator_name(column[0]) if rate else column_name(column).removesuffix(", %")
                    run = [label] if len(cell.each) > 1 else []
                    where = ", ".join([site_name(table.title), table.name(arm), what, *run])
                    places_of.setdefault(note, {})[where] = None
    return {note: list(places) for note, places in places_of.items()}


def notes_of(row: Row) -> list[str]:
    """The notes of a row. They stand in one text, joined by semicolons."""
    return [note for note in str(row.get("note") or "").split("; ") if note]
