"""``sslmed segment``: one annotated scan in, masks for others out, each in its own voxels.

Nothing is written before the model, the support and its mask are read and found good. A query's files appear together
or not at all. Among several queries a bad one does not stop the others: they are written, ``run.json`` names the bad
one, and at the end an error names it too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sslmed_dist import outputs
from sslmed_dist.atomic_files import sha256, write_atomically
from sslmed_dist.data.exams.one_series import read_image, read_one
from sslmed_dist.data.scans.dicom_seg import require_highdicom, write_dicom_seg
from sslmed_dist.data.scans.grid import from_model, same_grid
from sslmed_dist.data.scans.nifti import nifti_like
from sslmed_dist.data.scans.scan import StoredScan, stem
from sslmed_dist.printable import note
from sslmed_dist.run_folder import environment, write_json
from sslmed_dist.training.pretrained import Part
from sslmed_dist.verbs.segment import files
from sslmed_dist.verbs.segment.model import (
    OUTSIDE,
    Device,
    Found,
    Intensity,
    Model,
    Organ,
    learn,
    load_model,
    placed,
    search,
    standardised,
)
from sslmed_dist.verbs.segment.overlay import montage, require_matplotlib

USE = "Research use only, not a medical device."
Volumes = list[dict[str, Any]]  # lines of volumes.csv


@dataclass(frozen=True)
class Settings:
    """How scans are read and searched."""

    intensity: Intensity
    window: tuple[float, float] | None
    quadrants: bool
    dicom_seg: bool


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
    device: Device = "auto",
    force: bool = False,
) -> list[Path]:
    """Segment the scans that ``query`` means (``files.find_queries``) by one annotated support. Returns the files.

    ``run``: run folder or checkpoint. ``head``, ``pixel_mm``, ``device``: see ``load_model``. ``intensity``,
    ``window``: see ``standardised``. ``support``: a NIfTI file or DICOM folder. ``support_mask``: a NIfTI file in its
    grid, any ids. ``labels``: the ids to look for (default: all of the mask). ``quadrants``: nothing is found in a
    quarter of the body that the support's organ leaves empty; refused where a file does not say how the patient lay.

    Writes for each query NAME into ``out`` (``force``: ``files.require_writable``) ``NAME_labels.nii.gz`` (ids of the
    mask), ``NAME_probability.nii.gz`` (foreground softmax, uncalibrated, float32, a fourth axis for several labels; 0
    outside the slices where the organ is taken to be), ``NAME_overlay.png``, ``NAME.ctbl``, with ``dicom_seg``
    ``NAME_seg.dcm``; and once ``volumes.csv`` and ``run.json``. ``ValueError``: one line that names what is wrong.
    """
    require_matplotlib()
    settings = Settings(intensity, window, quadrants, dicom_seg)
    check_intensity(intensity, window)
    paths = files.find_queries(query, (support, support_mask))
    for path in paths if dicom_seg else ():
        require_highdicom()
        if not path.is_dir():
            raise ValueError(f"{path}: --dicom-seg refers to DICOM files; allowed: queries that are DICOM folders")
    names = [stem(path) for path in paths]
    files.require_writable(files.targets(out, names, dicom_seg=names if dicom_seg else ()), force=force)
    model = load_model(run, which=which, part=part, head=head, pixel_mm=pixel_mm, device=device)
    organs, support_record = read_support(model, support, support_mask, labels, settings)
    return segment_all(model, organs, support_record, paths, out, settings)


def segment_all(
    model: Model,
    organs: Sequence[Organ],
    support: Mapping[str, Any],
    paths: Sequence[Path],
    out: Path,
    settings: Settings,
) -> list[Path]:
    """Segment and write every query; returns the files. ``support`` is what ``run.json`` says of the support. A bad
    query does not stop the others: ``ValueError`` names it after they are written."""
    written: list[Path] = []
    rows: Volumes = []
    queries: list[dict[str, Any]] = []
    bad: list[ValueError] = []
    for path in paths:
        try:
            query_files, query_rows, query_record = segment_one(model, organs, path, out, settings)
        except ValueError as error:
            bad.append(error)
            queries.append({"query": stem(path), "error": str(error).replace(str(path), path.name)})
        else:
            written, rows, queries = [*written, *query_files], [*rows, *query_rows], [*queries, query_record]
        if written:  # after every query: an interruption loses none of those before
            write_atomically(out / files.VOLUMES, files.volume_table(rows))
            write_json(out / files.RECORD, record(model, support, queries, settings))
    if len(bad) == len(paths) == 1:
        raise bad[0]
    if bad:
        raise ValueError(f"{len(bad)} of {len(paths)} queries could not be segmented: {'; '.join(map(str, bad))}")
    return [*written, out / files.VOLUMES, out / files.RECORD]


def check_intensity(intensity: str, window: tuple[float, float] | None) -> None:
    """``ValueError`` unless the way of clipping is known and the window is two finite numbers, the lower first."""
    if intensity not in ("auto", "clip", "keep"):
        raise ValueError(f"intensity: expected one of auto, clip, keep, got {intensity!r}")
    if window is not None and not (np.isfinite(window).all() and window[0] < window[1]):
        raise ValueError(f"window: expected two numbers, the lower first, got {window[0]:g} {window[1]:g}")


def read_support(
    model: Model, support: Path, support_mask: Path, labels: Sequence[int], settings: Settings
) -> tuple[list[Organ], dict[str, Any]]:
    """The organs to look for, and what ``run.json`` says of the support. ``ValueError`` names the file: it is
    unreadable, the mask lies in another grid than its image, has values that are no integer ids, is empty, or does not
    hold a label that is asked for."""
    (scan, notices), (mask, of_mask) = read_said(support), read_said(support_mask, mask=True)
    placement = placed(model, scan)
    if not same_grid(placement, placed(model, mask)):
        raise ValueError(
            f"{support_mask}: shape {mask.voxels.shape} or position differs from its image {support} of shape "
            f"{scan.voxels.shape}; a mask has to lie in the image's grid"
        )
    wanted = ids(mask, labels)
    if settings.quadrants:
        require_oriented(scan)
    stack, clipping = standardised(scan, placement, settings.intensity, settings.window)
    organs = learn(model, scan, mask, wanted, stack, settings.quadrants)
    support_record = {
        "image": support.name,
        "mask": support_mask.name,
        "mask_sha256": sha256(support_mask) if support_mask.is_file() else None,
        "notices": [*notices, *of_mask],
        "intensity": clipping,
        "slices": {str(organ.label): [int(z) for z in organ.shown.slices] for organ in organs},
    }
    return organs, support_record


def ids(mask: StoredScan, labels: Sequence[int]) -> list[int]:
    """The label ids to look for, ascending: ``labels``, or all of the mask. ``ValueError`` as ``read_support``."""
    values = np.unique(mask.voxels)
    if (values != np.round(values)).any() or values[0] < 0 or values[-1] > 65535:
        raise ValueError(f"{mask.path}: holds values that are no label ids; allowed: whole numbers from 0 to 65535")
    held = [int(value) for value in values if value > 0]
    if not held:
        raise ValueError(f"{mask.path}: the mask is empty; it has to hold a label id above 0")
    for label in labels:
        if label not in held:
            raise ValueError(f"{mask.path}: holds no label {label}; allowed: {', '.join(map(str, held))}")
    return sorted(set(labels)) or held


def require_oriented(scan: StoredScan) -> None:
    """``ValueError`` naming a scan that does not say where the patient's left is."""
    if not scan.oriented:
        raise ValueError(
            f"{scan.path}: has neither a qform nor an sform, so left and right are unknown and --quadrants is refused"
        )


def read_said(path: Path, *, mask: bool = False) -> tuple[StoredScan, list[str]]:
    """The image (or the ``mask``) in ``path``, and a line for everything that reading it left aside, changed or had to
    guess. They are also said on standard error. ``ValueError`` as ``read_image``."""
    scan, notices = (read_one if mask else read_image)(path)
    if not scan.oriented:
        notices.append("has neither a qform nor an sform: where left and right are is a guess")
    for notice in notices:
        note(f"{scan.path}: {notice}")
    return scan, notices


def segment_one(
    model: Model, organs: Sequence[Organ], path: Path, out: Path, settings: Settings
) -> tuple[list[Path], Volumes, dict[str, Any]]:
    """Read, search and write one query: (files, rows of ``volumes.csv``, what ``run.json`` says of it)."""
    scan, notices = read_said(path)
    placement = placed(model, scan)
    if settings.quadrants:
        require_oriented(scan)
    stack, clipping = standardised(scan, placement, settings.intensity, settings.window)
    findings = search(model, organs, stack, placement, settings.quadrants)
    values, probability, margins = native(findings, scan)
    contents: dict[str, Any] = {
        files.PROBABILITY: nifti_like(probability, scan.affine, scan.header),
        files.OVERLAY: montage(organs, findings, stack, scan.name),
        files.COLOURS: files.colour_table([organ.label for organ in organs]),
        files.LABELS: nifti_like(values, scan.affine, scan.header),
    }
    if settings.dicom_seg:
        wanted = [organ.label for organ in organs]
        contents[files.DICOM_SEG] = lambda file: write_dicom_seg(
            file, path, scan.series, values, wanted, model=model.sha256
        )
    rows = [row(scan, finding, values, margins) for finding in findings]
    slice_ranges = {str(finding.label): asdict(finding.estimate) for finding in findings}
    written = files.write_all(out, scan.name, contents)
    hashes = {file.name: sha256(file) for file in written}
    query_record = {"query": scan.name, "notices": notices, "intensity": clipping, "slices": slice_ranges}
    return written, rows, {**query_record, "files": hashes}


def native(
    findings: Sequence[Found], scan: StoredScan
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(label ids (I, J, K), probability (I, J, K) or (I, J, K, labels), winning margin (I, J, K)) in the scan's voxels.
    Margins are interpolated in the plane first and compared with 0 then; of labels above 0 the largest margin wins."""
    largest = max(finding.label for finding in findings)
    values = np.zeros(scan.voxels.shape, np.uint8 if largest < 256 else np.uint16)
    best = np.zeros(scan.voxels.shape, np.float32)  # the background's margin is 0: a label has to exceed it
    probability = np.zeros((*scan.voxels.shape, len(findings)), np.float32)
    for channel, finding in enumerate(findings):
        margin = from_model(finding.margins, finding.placement, outside=OUTSIDE)
        better = margin > best
        values[better], best[better] = finding.label, margin[better]
        # The softmax of two logits is the sigmoid of their difference.
        probability[..., channel] = torch.sigmoid(torch.from_numpy(np.ascontiguousarray(margin))).numpy()
    return values, probability[..., 0] if len(findings) == 1 else probability, best


def row(
    scan: StoredScan, finding: Found, values: np.ndarray[Any, Any], margins: np.ndarray[Any, Any]
) -> dict[str, Any]:
    """One row of ``volumes.csv``: ``mean_margin`` is that of the label's voxels, "" where there are none."""
    inside = values == finding.label
    count = int(inside.sum())
    in_plane = tuple(axis for axis in range(3) if axis != finding.placement.axes[2])
    # A voxel's volume in mm^3 is the determinant of the affine's linear part.
    millilitres = count * abs(float(np.linalg.det(scan.affine[:3, :3]))) / 1000
    return {
        "query": scan.name,
        "label": finding.label,
        "slices": int(inside.any(axis=in_plane).sum()),
        "voxels": count,
        "volume_ml": round(millilitres, 4),
        "mean_margin": round(float(margins[inside].mean()), 4) if count else "",
    }


def record(
    model: Model, support: Mapping[str, Any], queries: Sequence[Mapping[str, Any]], settings: Settings
) -> dict[str, Any]:
    """``run.json``."""
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
        "probability": "foreground softmax of the head, uncalibrated; 0 outside the estimated slices",
        "mean_margin": "foreground less background logit, mean over the label's voxels, uncalibrated",
        "support": support,
        "queries": list(queries),
        "environment": environment(),
    }
