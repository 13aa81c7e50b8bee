"""Inspection of exam sets: NIfTI volumes with masks, and the MRNet layout."""

from collections import Counter
from pathlib import Path

import numpy as np
import torch

from sslmed_dist.data.check.findings import Findings
from sslmed_dist.data.dataset import content_hash
from sslmed_dist.data.exams.abdominal import ORGANS, Exam, list_exams, read_exam, unpaired
from sslmed_dist.data.exams.exam_set import read_sites
from sslmed_dist.data.exams.mrnet import FOLDERS, LABELS, exam_number, open_stack, read_table
from sslmed_dist.data.scans.nifti import stored_axes


def inspect_volumes(place: Path, findings: Findings) -> None:
    """NIfTI exams ``image_PP``, ``label_PP``: geometry, organs, and masks on another grid than their image."""
    findings.lines.append("layout: NIfTI exams")
    try:
        images, masks = list_exams(place)
    except ValueError as error:
        findings.problems.append(str(error))
        return
    findings.lines.append(f"exams: {len(images)}, {len(masks)} with a mask")
    findings.problems.extend(unpaired(images, masks))
    exams, digests, turned = [], [], []
    for number, path in images.items():
        try:
            exam = read_exam(number, path, masks.get(number), organs=ORGANS, min_voxels=1)
        except ValueError as error:
            findings.problems.append(str(error))
            continue
        exams.append(exam)
        digests.append((path.name, content_hash(exam.slices)))
        turned.append(stored_axes(path))
    if exams:
        describe_volumes(findings, exams, turned)
    findings.repeats({"all": digests}, "volumes")
    inspect_sites(place, list(images), findings)


def describe_volumes(findings: Findings, exams: list[Exam], turned: list[str]) -> None:
    """Grid, spacing, axes, empty slices and organs of the exams that could be read."""
    grids = torch.tensor([exam.facts["shape"] for exam in exams])
    spacing = torch.tensor([exam.facts["spacing_mm"] for exam in exams])
    low, high = grids.amin(0).tolist(), grids.amax(0).tolist()
    findings.lines.append(
        "grid: " + " x ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in zip(low, high, strict=True))
    )
    ends = zip(spacing.amin(0).tolist(), spacing.amax(0).tolist(), strict=True)
    findings.lines.append(
        "spacing mm: " + " x ".join(f"{a:.3g}" if b - a < 5e-3 else f"{a:.3g}-{b:.3g}" for a, b in ends)
    )
    findings.lines.append("axes: " + "; ".join(f"{axes} ({count})" for axes, count in Counter(turned).items()))
    empty = sum(exam.facts["shape"][2] - len(exam.kept) for exam in exams)
    findings.lines.append(f"slices: {sum(len(exam.kept) for exam in exams)} with content, {empty} empty")
    masked = [exam.present for exam in exams if exam.present is not None]
    if masked:
        slices = torch.cat(masked).sum(0).to(torch.int64).tolist()
        findings.classes("slices with organ", dict(zip(ORGANS, slices, strict=True)))
        empty_masks = [exam.facts["file"] for exam in exams if exam.present is not None and not exam.present.any()]
        findings.named("masks", "exams whose mask is empty", empty_masks)


def inspect_sites(place: Path, numbers: list[int], findings: Findings) -> None:
    """Exams per site of ``sites.csv``, where there is one."""
    try:
        sites = read_sites(place / "sites.csv", numbers)
    except ValueError as error:
        findings.problems.append(str(error))
        return
    if sites is not None:
        counts = Counter(sites.tolist())
        findings.lines.append("exams per site: " + ", ".join(f"{site}: {counts[site]}" for site in sorted(counts)))


def inspect_mrnet(place: Path, findings: Findings) -> None:
    """Knee exams: planes, slices, labels, and exams that one plane or label file lacks."""
    findings.lines.append("layout: MRNet")
    numbers: list[int] = []
    per_plane: dict[str, dict[str, list[tuple[str, bytes]]]] = {}
    for split, folder in FOLDERS.items():
        planes = {}
        for plane in sorted(entry.name for entry in (place / folder).glob("*") if entry.is_dir()):
            planes[plane], digests = inspect_stacks(place / folder / plane, findings)
            per_plane.setdefault(plane, {})[split] = digests
        exams = sorted(set().union(*planes.values()))
        for plane, known in planes.items():
            findings.named(f"{folder}/{plane}", "exams missing", [f"{n:04d}" for n in exams if n not in known])
        inspect_labels(place, folder, exams, findings)
        repeated = sorted(set(exams) & set(numbers))
        findings.named(folder, "exams also in train", [f"{number:04d}" for number in repeated])
        numbers.extend(exams)
    for plane, splits in per_plane.items():
        findings.repeats({f"{split} {plane}": entries for split, entries in splits.items()}, "exams")
    inspect_sites(place, numbers, findings)


def inspect_stacks(folder: Path, findings: Findings) -> tuple[set[int], list[tuple[str, bytes]]]:
    """Read every exam of one plane; return the exam numbers and (file name, content hash) of the readable ones."""
    known, lengths, digests, constant = set(), [], [], []
    for path in sorted(folder.glob("*.npy")):
        try:
            number, stack = exam_number(path), np.array(open_stack(path))
        except ValueError as error:
            findings.problems.append(str(error))
            continue
        known.add(number)
        lengths.append(len(stack))
        digests.append((path.name, content_hash(torch.from_numpy(stack))))
        if stack.max() == stack.min():
            constant.append(path.name)
    span = f", {min(lengths)} to {max(lengths)} slices of 256 x 256, 8 bit" if lengths else ""
    findings.lines.append(f"{folder.parent.name}/{folder.name}: {len(known)} exams{span}")
    findings.named(f"{folder.parent.name}/{folder.name}", "constant exams", constant)
    return known, digests


def inspect_labels(place: Path, folder: str, exams: list[int], findings: Findings) -> None:
    """Positive exams per label file of one split, and exams that it leaves out."""
    if not exams:
        return
    for name in LABELS:
        path = place / f"{folder}-{name}.csv"
        try:
            table = read_table(path)
        except ValueError as error:
            findings.problems.append(str(error))
            continue
        findings.lines.append(f"{path.name}: {int(sum(table.get(n, 0.0) for n in exams))} of {len(exams)} positive")
        findings.named(path.name, "exams without a label", [f"{n:04d}" for n in exams if n not in table])
