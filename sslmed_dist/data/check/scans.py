"""Inspection of plain scans: NIfTI files of any names, a DICOM series in a folder, or a single file of either kind."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from sslmed_dist.data.check.examinations import note_aside, note_problems
from sslmed_dist.data.check.findings import Findings
from sslmed_dist.data.dataset import content_hash
from sslmed_dist.data.exams.exam_files import files_below
from sslmed_dist.data.exams.exam_layouts import holds_dicom
from sslmed_dist.data.exams.exam_store import SUMMARY, TABLE
from sslmed_dist.data.exams.mask_files import is_volume_file
from sslmed_dist.data.exams.one_series import read_image
from sslmed_dist.data.exams.series import Examination, read_examination
from sslmed_dist.data.exams.studies import Source, one_source
from sslmed_dist.data.scans.dicom_file import begins_as_dicom
from sslmed_dist.data.scans.nifti import WORDS, unit
from sslmed_dist.data.scans.scan import StoredScan

FEW_VALUES = 64  # whole numbers that a label map has at most


def holds_scans(root: Path) -> bool:
    """Whether ``root`` is one scan or a folder of NIfTI files alone: a file of NIfTI or DICOM; a folder with NIfTI
    files and none below it; one whose DICOM files, right in it, make at most one series. A set with a table or a pack
    of exams is none."""
    if root.is_file():
        return is_volume_file(root) or begins_as_dicom(root)
    if any((root / name).is_file() for name in (SUMMARY, TABLE)):
        return False
    files = files_below(root)
    if not all(path.parent == root for path in files if is_volume_file(path) or path.suffix.lower() == ".dcm"):
        return False
    if any(is_volume_file(path) for path in files):
        return not holds_dicom(root)
    return holds_dicom(root) and len(read_examination([path for path in files if path.parent == root]).series) < 2


def inspect_scans(root: Path, findings: Findings) -> None:
    """What each scan is: size, spacing, field, axes, whether it says where left is, unit, range of values, and what
    reading it replaced or had to guess. Scans that cannot be read, are constant or repeat others are problems."""
    nifti = [path for path in sorted(root.iterdir()) if is_volume_file(path)] if root.is_dir() else []
    sources = [one_source(path) for path in nifti] or [one_source(root)]
    kind = "NIfTI" if nifti or is_volume_file(root) else "DICOM"
    what = "series" if not nifti and root.is_dir() else "file" if len(sources) == 1 else "files"
    findings.lines.append(f"layout: {len(sources)} {kind} {what}")
    digests = []
    for source in sources:
        scan = inspect_source(source, findings)
        if scan is not None:
            digests.append((source.name, content_hash(torch.from_numpy(np.ascontiguousarray(scan.voxels)))))
    findings.repeats({"all": digests}, "scans")


def inspect_source(source: Source, findings: Findings) -> StoredScan | None:
    """The lines of one scan; None where it cannot be read, which is a problem."""
    exam = read_examination(source.files) if source.files else None
    before = len(findings.problems)
    if exam is not None:
        findings.lines.extend(f"{source.name} | {series.line}" for series in exam.series)
        note_aside(source.name, exam, findings)
        note_problems(source.name, exam, findings)
    try:
        scan, notices = read_image(source)
    except ValueError as error:
        if len(findings.problems) == before:  # else it has been said what is wrong
            findings.problems.append(str(error))
        return None
    findings.lines.append(f"{source.name}: {described(scan, exam)}")
    findings.lines.extend(f"{source.name}: {line}" for line in notices if not line.startswith("left aside: "))
    low, high = float(scan.voxels.min()), float(scan.voxels.max())
    if low == high:
        findings.problems.append(f"{source.path}: all voxels are {low:g}")
    return scan


def described(scan: StoredScan, exam: Examination | None) -> str:
    """Modality, size, spacing, field of view, axes, sides, unit and values of a scan in one line."""
    import nibabel

    voxels = scan.voxels
    sides = [float(side) for side in np.linalg.norm(scan.affine[:3, :3], axis=0)]
    field = [side * count for side, count in zip(sides, voxels.shape, strict=True)]
    axes = ", ".join(WORDS[code] for code in nibabel.aff2axcodes(scan.affine))
    stated = "DICOM's mm" if scan.series is not None else unit(scan.header) or "not stated, taken as mm"
    parts = [
        *sorted({series.tags.modality for series in exam.series if series.tags.modality} if exam else ()),
        f"{times(voxels.shape)} voxels of {times(sides)} mm (field of view {times(field)} mm)",
        f"axes {axes}",
        "left and right stated" if scan.oriented else "left and right unknown",
        f"unit {stated}",
        f"values {float(voxels.min()):g} to {float(voxels.max()):g}{label_map(voxels)}",
    ]
    return "; ".join(parts)


def times(numbers: Iterable[float]) -> str:
    """``3 x 4 x 5``, of at most four digits each."""
    return " x ".join(f"{number:.4g}" for number in numbers)


def label_map(voxels: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> str:
    """In words, that the voxels may be labels: few whole numbers from 0 on; "" for others."""
    if voxels.min() != 0 or voxels.max() > 65535 or voxels.max() == 0:
        return ""
    some = np.unique(voxels[:: max(1, voxels.shape[0] // 8)])
    if len(some) > FEW_VALUES or (some != np.rint(some)).any():
        return ""
    values = np.unique(voxels)
    few = len(values) <= FEW_VALUES and bool((values == np.rint(values)).all())
    return f" (a label map by its {len(values)} whole values)" if few else ""
