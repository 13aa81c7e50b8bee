"""``sslmed segment``: one annotated scan in, masks for others out, each in its own voxels.

Nothing is written before the model, the support and its mask are read and found good. A query's files appear together
or not at all. Among several queries one that fails does not stop the others: they are written, ``run.json`` names it,
and at the end an error names it too. One call at a time writes into a folder; what stands there stays known.

Writes for each query NAME into ``out`` (``force``: ``files.require_writable``) ``NAME_labels.nii.gz`` (ids of the
mask), with ``probabilities`` ``NAME_probability.nii.gz`` (foreground softmax, uncalibrated, float32, a fourth axis for
several labels; 0 outside the slices where the organ is taken to be), ``NAME_overlay.png``, ``NAME.ctbl``, with
``dicom_seg`` ``NAME_seg.dcm``; and once ``volumes.csv``, ``overlay.html`` and ``run.json``. A label too small to be
learnt is left out, and they say so.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sslmed_dist import outputs
from sslmed_dist.atomic_files import sha256, write_atomically
from sslmed_dist.data.exams.one_series import OPTION
from sslmed_dist.data.exams.studies import Source
from sslmed_dist.data.scans.dicom_seg import require_highdicom, write_dicom_seg
from sslmed_dist.data.scans.nifti_writing import nifti_like
from sslmed_dist.downstream.oneshot.copying import AUTO
from sslmed_dist.endings import USER_ERROR, PartlyFailed, reason_of
from sslmed_dist.locks import alone_in_output
from sslmed_dist.printable import note, say
from sslmed_dist.training.pretrained import Part
from sslmed_dist.verbs.segment import files, page
from sslmed_dist.verbs.segment.facts import copied_of, doubt, facts, say_doubts, support_lines, trust_of
from sslmed_dist.verbs.segment.model import (
    Device,
    Intensity,
    Model,
    field_of_view,
    load_model,
    placed,
    standardised,
)
from sslmed_dist.verbs.segment.naming import RECORD, WRITER, Names, name_queries, require_apart
from sslmed_dist.verbs.segment.native import Drawing
from sslmed_dist.verbs.segment.overlay import montage, require_matplotlib
from sslmed_dist.verbs.segment.record import VOLUMES, opened
from sslmed_dist.verbs.segment.search import Kind, Organ, encode, search
from sslmed_dist.verbs.segment.settings import Settings, check, require_in_stack
from sslmed_dist.verbs.segment.support import (
    SUPPORT_OPTION,
    read_annotated,
    read_said,
    read_support,
    require_oriented,
)


@dataclass(frozen=True)
class Done:
    """One query: its files, rows of ``volumes.csv``, what ``run.json`` says of it, and its part of the page."""

    files: list[Path]
    rows: list[dict[str, Any]]
    record: dict[str, Any]
    section: str


def segment(
    run: Path,
    support: Path,
    support_mask: Path,
    query: Path,
    out: Path,
    *,
    labels: Sequence[int] = (),
    which: str = "last",
    part: Part = "encoder",
    head: Mapping[str, Any] | None = None,
    pixel_mm: float | None = None,
    intensity: Intensity = "auto",
    window: tuple[float, float] | None = None,
    quadrants: bool = False,
    tidy: bool = True,
    copying: str = AUTO,
    span: tuple[int, int] | None = None,
    supports: Sequence[tuple[Path, Path]] = (),
    dicom_seg: bool = False,
    probabilities: bool = True,
    names: Names = "file",
    device: Device = "auto",
    force: bool = False,
    series: str = "",
    support_series: str = "",
) -> list[Path]:
    """Segment the scans that ``query`` means (``files.find_queries``) by one annotated support. Returns the files.

    ``run``: run folder or checkpoint. ``head``, ``pixel_mm``, ``device``: ``load_model``. ``intensity``, ``window``:
    ``standardised``. ``support_mask``: ``mask_files.read_masks``. ``labels``: the ids to look for (default: all).
    ``quadrants``: nothing is found in a quarter of the body that the support's organ leaves empty. ``tidy``:
    ``Segmenter``. ``copying``: auto or off, see ``downstream.oneshot.copying``. ``span``: first and last slice of the
    organs in every query, from 0, inferior to superior (default: estimated). ``supports``: more annotated scans,
    (image, mask) each, of the same label ids. ``names``: ``naming.name_queries``; anonymous ones are refused with
    ``dicom_seg``, which names the patient. ``series``, ``support_series``: which series of a study is meant.
    ``ValueError``: one line that names what is wrong.
    """
    check(intensity, window, span, copying, {OPTION: series, SUPPORT_OPTION: support_series})
    read = (support, support_mask, *(path for pair in supports for path in pair))
    require_apart(out, (query, *read))
    sources = files.find_queries(query, read)
    notices = files.passed_over(query, sources, read)
    naming = name_queries(sources, names)
    settings = Settings(intensity, window, quadrants, dicom_seg, tidy, probabilities, naming, series, span, copying)
    written = claimed(out, settings)
    with alone_in_output(out, WRITER):
        files.require_writable(written, force=force)
        annotations = read_annotated([*supports, (support, support_mask)], support_series)
        field = field_of_view(annotations[-1].scan)
        reading = partial(load_model, which=which, part=part, head=head, pixel_mm=pixel_mm, field_mm=field)
        model = reading(run, device=device, quadrants=quadrants, tidy=tidy, copying=copying)
        organs, kind, support_record = read_support(model, annotations, labels, settings)
        return segment_all(model, organs, kind, support_record, out, settings, notices)


def claimed(out: Path, settings: Settings) -> list[Path]:
    """The files that will be written. ``ValueError`` where no picture can be drawn (matplotlib is missing), the folder
    cannot be one, or no DICOM-SEG can be written as asked: highdicom is missing, names are to be hidden, or a query is
    no DICOM."""
    require_matplotlib()
    outputs.require_folders(out)
    naming = settings.naming
    if settings.dicom_seg:
        if naming.anonymous:
            raise ValueError("names: anonymous, but a DICOM-SEG carries the patient's name; leave out one of the two")
        require_highdicom()
    for source in naming.names if settings.dicom_seg else ():
        if source.files is None:
            raise ValueError(f"{source.path}: --dicom-seg refers to DICOM files; allowed: queries that are DICOM")
    stems = list(naming.names.values())
    with_seg = stems if settings.dicom_seg else ()
    return files.targets(out, stems, dicom_seg=with_seg, probabilities=settings.probabilities)


def segment_all(
    model: Model,
    organs: Sequence[Organ],
    kind: Kind,
    support: Mapping[str, Any],
    out: Path,
    settings: Settings,
    notices: Sequence[str] = (),
) -> list[Path]:
    """Segment and write every query; returns the files. ``kind`` is the support's; ``support`` and ``notices`` are what
    ``run.json`` says of it and of the queries' folder. A query that fails, in whatever way, does not stop the others:
    after they are written ``ValueError`` names it, or ``PartlyFailed`` where it was no fault of the query that is
    known."""
    done: list[Done] = []
    report = opened(out, {**facts(model, support, settings), "notices": list(notices)})
    failed: list[tuple[str, int]] = []
    for source, name in settings.naming.names.items():
        try:
            done.append(segment_one(model, organs, kind, support, source, out, settings))
        except Exception as error:
            if len(settings.naming.names) == 1:
                raise
            line, code = reason_of(error, "segment", source.path)
            failed.append((line if str(source.path) in line else f"{source.path}: {line}", code))
            report.queries.append({"query": name, "error": settings.naming.clean(source.path, line, name)})
        else:
            report.written.append(name)
            report.rows += done[-1].rows
            report.queries.append(done[-1].record)
        if done:  # after every query: an interruption loses none of those before
            labels = [support["labels"][str(organ.label)] for organ in organs]
            write_atomically(out / files.PAGE, page.page([each.section for each in done], labels, report.elsewhere()))
            report.write(out)
    if failed:
        raise_failed(failed, len(report.queries))
    return [*(file for each in done for file in each.files), out / VOLUMES, out / files.PAGE, out / RECORD]


def raise_failed(failed: Sequence[tuple[str, int]], count: int) -> None:
    """The error at the end of ``segment_all``, where any of ``count`` queries has failed: (line, exit code) of each.
    Several have a line of their own before it."""
    for line, _ in failed if len(failed) > 1 else ():
        say(f"not segmented: {line}")
    kind: type[Exception] = ValueError if all(code == USER_ERROR for _, code in failed) else PartlyFailed
    why = f": {failed[0][0]}" if len(failed) == 1 else ", each in a line above"
    raise kind(f"{len(failed)} of {count} queries could not be segmented{why}")


def segment_one(
    model: Model,
    organs: Sequence[Organ],
    kind: Kind,
    support: Mapping[str, Any],
    source: Source,
    out: Path,
    settings: Settings,
) -> Done:
    """Read, search and write one query."""
    scan, notices = read_said(source, settings.series)
    placement = placed(model, scan)
    if settings.quadrants:
        require_oriented(scan)
    stack, clipping = standardised(scan, placement, settings.intensity, settings.window)
    naming, name = settings.naming, settings.naming.of(source)
    drawing = Drawing(scan, placement, organs)
    encoded = encode(model, scan, stack, placement, kind)
    for line in encoded.warnings:
        note(f"{name}: {line}")
    said_above = [*support_lines(support), *encoded.warnings]
    require_in_stack(settings.span, placement.slices, scan.path)
    findings = search(model, organs, encoded, settings.span)
    contents: dict[str, Callable[[Path], object]] = {}  # made in this order, so the search comes first
    if settings.probabilities:  # they are written while the search goes on, a label at a time
        contents[files.PROBABILITY] = lambda file: drawing.write_probabilities(file, findings)
    else:
        drawing.draw(findings)
    contents[files.OVERLAY] = lambda file: write_atomically(
        file,
        montage(organs, drawing.findings, drawing.winners, stack, name, "\n".join(said_above), oriented=scan.oriented),
    )
    named = {organ.label: support["labels"][str(organ.label)] for organ in organs}
    contents[files.COLOURS] = lambda file: write_atomically(file, files.colour_table(named))
    contents[files.LABELS] = lambda file: write_atomically(file, nifti_like(drawing.values, scan.affine, scan.header))
    if settings.dicom_seg:
        contents[files.DICOM_SEG] = lambda file: write_dicom_seg(
            file, scan.path, scan.series, drawing.values, named, model=model.sha256
        )
    written = files.write_all(out, name, contents)
    doubts = {
        finding.label: doubt(finding, finding.label in support["calibrated"], encoded.warnings)
        for finding in drawing.findings
    }
    rows = drawing.rows(name, support["labels"], doubts) + files.left_out_rows(name, support["left_out"])
    say_doubts(name, drawing.findings)
    slice_ranges = {str(finding.label): asdict(finding.estimate) for finding in drawing.findings}
    trust = {
        str(finding.label): trust_of(finding, finding.label in support["calibrated"]) for finding in drawing.findings
    }
    hashes = {file.name: sha256(file) for file in written}
    said = [naming.clean(source.path, line, name) for line in notices]
    query_record = {"query": name, "notices": said, "intensity": clipping, "slices": slice_ranges}
    copied = {str(finding.label): copied_of(finding) for finding in drawing.findings if finding.weighing is not None}
    query_record |= {"reliability": trust, "copying": copied, "warnings": encoded.warnings}
    section = page.section(name, organs, drawing.findings, drawing.winners, stack, encoded, rows, [*said_above, *said])
    return Done(written, rows, {**query_record, "files": hashes}, section)
