"""``sslmed segment``: one annotated scan in, masks for others out, each in its own voxels.

Nothing is written before the model, the support and its mask are read and found good. A query's files appear together
or not at all. Among several queries one that fails does not stop the others: they are written, ``run.json`` names it,
and at the end an error names it too. One call at a time writes into a folder, and what stands there stays known.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sslmed_dist import outputs
from sslmed_dist.atomic_files import sha256, write_atomically
from sslmed_dist.data.exams.mask_files import read_masks
from sslmed_dist.data.exams.one_series import read_image
from sslmed_dist.data.exams.studies import Source
from sslmed_dist.data.scans.dicom_seg import require_highdicom, write_dicom_seg
from sslmed_dist.data.scans.grid import place, same_grid
from sslmed_dist.data.scans.masks import chosen, name_of
from sslmed_dist.data.scans.nifti_writing import nifti_like
from sslmed_dist.data.scans.scan import StoredScan
from sslmed_dist.endings import USER_ERROR, PartlyFailed, reason_of
from sslmed_dist.locks import alone_in_output
from sslmed_dist.printable import note, say
from sslmed_dist.run_folder import environment
from sslmed_dist.training.pretrained import Part
from sslmed_dist.verbs.segment import files
from sslmed_dist.verbs.segment.model import (
    Device,
    Intensity,
    Model,
    Organ,
    learn,
    load_model,
    placed,
    search,
    standardised,
)
from sslmed_dist.verbs.segment.naming import RECORD, WRITER, Names, Naming, name_queries, require_apart
from sslmed_dist.verbs.segment.native import Drawing
from sslmed_dist.verbs.segment.overlay import montage, require_matplotlib
from sslmed_dist.verbs.segment.record import VOLUMES, Rows, opened

USE = "Research use only, not a medical device."


@dataclass(frozen=True)
class Settings:
    """How scans are read and searched."""

    intensity: Intensity
    window: tuple[float, float] | None
    quadrants: bool
    dicom_seg: bool
    probabilities: bool = True
    naming: Naming = Naming({}, False)
    series: str = ""


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
    dicom_seg: bool = False,
    probabilities: bool = True,
    names: Names = "file",
    device: Device = "auto",
    force: bool = False,
    series: str = "",
    support_series: str = "",
) -> list[Path]:
    """Segment the scans that ``query`` means (``files.find_queries``) by one annotated support. Returns the files.

    ``run``: run folder or checkpoint. ``head``, ``pixel_mm``, ``device``: see ``load_model``. ``intensity``,
    ``window``: see ``standardised``. ``support``: a NIfTI file or DICOM folder. ``support_mask``: its masks
    (``mask_files.read_masks``). ``labels``: the ids to look for (default: all). ``quadrants``: nothing is found in a
    quarter of the body that the support's organ leaves empty; refused where a file does not say how the patient lay.
    ``names``: see ``naming.name_queries``; anonymous ones are refused with ``dicom_seg``, which names the patient.
    ``series``, ``support_series``: which series of a study is meant, where there are several (``read_one``).

    Writes for each query NAME into ``out`` (``force``: ``files.require_writable``) ``NAME_labels.nii.gz`` (ids of the
    mask), with ``probabilities`` ``NAME_probability.nii.gz`` (foreground softmax, uncalibrated, float32, a fourth axis
    for several labels; 0 outside the slices where the organ is taken to be), ``NAME_overlay.png``, ``NAME.ctbl``, with
    ``dicom_seg`` ``NAME_seg.dcm``; and once ``volumes.csv`` and ``run.json``. A label too small to be learnt is left
    out, and they say so. ``ValueError``: one line that names what is wrong.
    """
    require_matplotlib()
    check_intensity(intensity, window)
    require_apart(out, (query, support, support_mask))
    sources = files.find_queries(query, (support, support_mask))
    notices = files.passed_over(query, sources, (support, support_mask))
    for line in notices:
        note(f"{query}: {line}")
    naming = name_queries(sources, names)
    settings = Settings(intensity, window, quadrants, dicom_seg, probabilities, naming, series)
    if dicom_seg and naming.anonymous:
        raise ValueError("names: anonymous, but a DICOM-SEG carries the patient's name; leave out one of the two")
    for source in sources if dicom_seg else ():
        require_highdicom()
        if source.files is None:
            raise ValueError(f"{source.path}: --dicom-seg refers to DICOM files; allowed: queries that are DICOM")
    stems = list(naming.names.values())
    written = files.targets(out, stems, dicom_seg=stems if dicom_seg else (), probabilities=probabilities)
    outputs.require_folders(out)
    with alone_in_output(out, WRITER):
        files.require_writable(written, force=force)
        model = load_model(run, which=which, part=part, head=head, pixel_mm=pixel_mm, device=device)
        organs, support_record = read_support(model, support, support_mask, labels, settings, support_series)
        return segment_all(model, organs, support_record, out, settings, notices)


def segment_all(
    model: Model,
    organs: Sequence[Organ],
    support: Mapping[str, Any],
    out: Path,
    settings: Settings,
    notices: Sequence[str] = (),
) -> list[Path]:
    """Segment and write every query; returns the files. ``support`` and ``notices`` are what ``run.json`` says of the
    support and of the queries' folder. A query that fails, in whatever way, does not stop the others: after they are
    written ``ValueError`` names it, or ``PartlyFailed`` where it was no fault of the query that is known."""
    written: list[Path] = []
    report = opened(out, {**record(model, support, settings), "notices": list(notices)})
    failed: list[tuple[str, int]] = []
    for source, name in settings.naming.names.items():
        try:
            query_files, query_rows, query_record = segment_one(model, organs, support, source, out, settings)
        except Exception as error:
            if len(settings.naming.names) == 1:
                raise
            line, code = reason_of(error, "segment", source.path)
            failed.append((line if str(source.path) in line else f"{source.path}: {line}", code))
            report.queries.append({"query": name, "error": settings.naming.clean(source.path, line, name)})
        else:
            written += query_files
            report.written.append(name)
            report.rows += query_rows
            report.queries.append(query_record)
        if written:  # after every query: an interruption loses none of those before
            report.write(out)
    require_all_done(failed, len(report.queries))
    return [*written, out / VOLUMES, out / RECORD]


def require_all_done(failed: Sequence[tuple[str, int]], count: int) -> None:
    """The error at the end of ``segment_all``, where any of ``count`` queries has failed: (line, exit code) of each.
    Several have a line of their own before it."""
    if not failed:
        return
    for line, _ in failed if len(failed) > 1 else ():
        say(f"not segmented: {line}")
    all_known = all(code == USER_ERROR for _, code in failed)
    kind: type[Exception] = ValueError if all_known else PartlyFailed
    names = f": {failed[0][0]}" if len(failed) == 1 else ", each in a line above"
    raise kind(f"{len(failed)} of {count} queries could not be segmented{names}")


def check_intensity(intensity: str, window: tuple[float, float] | None) -> None:
    """``ValueError`` unless the way of clipping is known and the window is two finite numbers, the lower first."""
    if intensity not in ("auto", "clip", "keep"):
        raise ValueError(f"intensity: expected one of auto, clip, keep, got {intensity!r}")
    if window is not None and not (np.isfinite(window).all() and window[0] < window[1]):
        raise ValueError(f"window: expected two numbers, the lower first, got {window[0]:g} {window[1]:g}")


def read_support(
    model: Model, support: Path, support_mask: Path, labels: Sequence[int], settings: Settings, series: str = ""
) -> tuple[list[Organ], dict[str, Any]]:
    """The organs to look for, and what ``run.json`` says of the support. ``ValueError`` names the file: it is
    unreadable, the mask lies in another grid than its image, has values that are no integer ids, is empty, or does not
    hold a label that is asked for."""
    (scan, notices), naming = read_said(support, series), settings.naming
    placement, masks = placed(model, scan), read_masks(support_mask, scan)
    of_mask = list(masks.notices)
    for line in of_mask:
        note(f"{support_mask}: {line}")
    if not same_grid(placement, place(masks.shape, masks.affine, pixel=model.pixel, size=model.size)):
        raise ValueError(
            f"{support_mask}: shape {masks.shape} or position differs from its image {support} of shape "
            f"{scan.voxels.shape}; a mask has to lie in the image's grid"
        )
    wanted = chosen(masks, labels)
    if settings.quadrants:
        require_oriented(scan)
    stack, clipping = standardised(scan, placement, settings.intensity, settings.window)
    organs, left_out = learn(model, scan, masks, wanted, stack, settings.quadrants)
    for reason in left_out.values():
        note(f"{support_mask}: {reason}: left out")
    hidden = naming.anonymous and masks.by_files
    support_record = {
        "image": naming.shown(support, "support"),
        "mask": naming.shown(support_mask, "support mask"),
        "mask_sha256": sha256(support_mask) if support_mask.is_file() else None,
        "notices": [
            *(naming.clean(support, line) for line in notices),
            *(naming.clean(support_mask, line) for line in of_mask),
        ],
        "intensity": clipping,
        "labels": {str(organ.label): name_of(organ.label) if hidden else masks.names[organ.label] for organ in organs},
        "left_out": {str(label): reason for label, reason in left_out.items()},
        "slices": {str(organ.label): [int(z) for z in organ.shown.slices] for organ in organs},
    }
    return organs, support_record


def require_oriented(scan: StoredScan) -> None:
    """``ValueError`` naming a scan that does not say where the patient's left is."""
    if not scan.oriented:
        raise ValueError(f"{scan.path}: {scan.doubt}, so left and right are unknown and --quadrants is refused")


def read_said(source: Path | Source, series: str = "") -> tuple[StoredScan, list[str]]:
    """The image of a source, and a line for everything that reading it left aside, changed or had to guess. They are
    also said on standard error. ``ValueError`` as ``read_image``."""
    scan, notices = read_image(source, series)
    for notice in notices:
        note(f"{source.path if isinstance(source, Source) else source}: {notice}")
    return scan, notices


def segment_one(
    model: Model, organs: Sequence[Organ], support: Mapping[str, Any], source: Source, out: Path, settings: Settings
) -> tuple[list[Path], Rows, dict[str, Any]]:
    """Read, search and write one query: (files, rows of ``volumes.csv``, what ``run.json`` says of it)."""
    scan, notices = read_said(source, settings.series)
    placement = placed(model, scan)
    if settings.quadrants:
        require_oriented(scan)
    stack, clipping = standardised(scan, placement, settings.intensity, settings.window)
    naming, name = settings.naming, settings.naming.of(source)
    left_out = files.left_out_line(support["left_out"])
    drawing = Drawing(scan, placement, organs)
    findings = search(model, organs, stack, placement, settings.quadrants)
    contents: dict[str, Callable[[Path], object]] = {}  # made in this order, so the search comes first
    if settings.probabilities:  # they are written while the search goes on, a label at a time
        contents[files.PROBABILITY] = lambda file: drawing.write_probabilities(file, findings)
    else:
        drawing.draw(findings)
    contents[files.OVERLAY] = lambda file: write_atomically(
        file, montage(organs, drawing.findings, drawing.winners, stack, name, left_out, oriented=scan.oriented)
    )
    named = {organ.label: support["labels"][str(organ.label)] for organ in organs}
    contents[files.COLOURS] = lambda file: write_atomically(file, files.colour_table(named))
    contents[files.LABELS] = lambda file: write_atomically(file, nifti_like(drawing.values, scan.affine, scan.header))
    if settings.dicom_seg:
        contents[files.DICOM_SEG] = lambda file: write_dicom_seg(
            file, scan.path, scan.series, drawing.values, named, model=model.sha256
        )
    written = files.write_all(out, name, contents)
    rows = drawing.rows(name, support["labels"]) + files.left_out_rows(name, support["left_out"])
    slice_ranges = {str(finding.label): asdict(finding.estimate) for finding in drawing.findings}
    hashes = {file.name: sha256(file) for file in written}
    said = [naming.clean(source.path, line, name) for line in notices]
    query_record = {"query": name, "notices": said, "intensity": clipping, "slices": slice_ranges}
    return written, rows, {**query_record, "files": hashes}


def record(model: Model, support: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """``run.json``, without its queries."""
    return {
        outputs.MARK: files.SEGMENT,
        "use": USE,
        "model": {"file": model.file.name, "sha256": model.sha256, "method": model.method},
        "head": model.head,
        "grid": {"size": model.size, "pixel_mm": model.pixel},
        "protocol": {
            "slices": "numbered from 0, inferior to superior",
            "support_slices": "of the n that hold the label, those numbered floor(n / 6), floor(n / 2), floor(5 n / 6)",
            "slice_range": "estimated; seen false: the support's own slices do not stand out, so the range is a guess",
            "overlap": "the label with the larger margin",
            "quadrants": settings.quadrants,
        },
        "intensity": {"asked": settings.intensity, "window": settings.window},
        "probability": "foreground softmax of the head, uncalibrated; 0 outside the estimated slices; the fourth axis "
        "has the labels of support.labels in their order"
        if settings.probabilities
        else "not written (--no-probabilities)",
        "mean_margin": "foreground less background logit, mean over the label's voxels, uncalibrated",
        "support": support,
        "environment": environment(),
    }
