"""Inspection of exam sets: NIfTI volumes with masks, and the MRNet layout."""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from sslmed_dist.data.check.findings import Findings
from sslmed_dist.data.dataset import content_hash
from sslmed_dist.data.exams import kneemri
from sslmed_dist.data.exams.abdominal import ORGANS, Exam, read_exam
from sslmed_dist.data.exams.exam_layouts import ANNOTATED, find_layout
from sslmed_dist.data.exams.exam_masks import OrganTable, organ_table, unpaired
from sslmed_dist.data.exams.exam_set import read_sites
from sslmed_dist.data.exams.mrnet import FOLDERS, LABELS, SIDE, exam_number, open_stack, read_table
from sslmed_dist.data.npz import map_array
from sslmed_dist.data.scans.nifti import stored_axes
from sslmed_dist.printable import plural


def inspect_volumes(root: Path, findings: Findings) -> None:
    """Exams with masks, in a layout that says which file is a mask: geometry, organs, and masks on another grid than
    their image."""
    try:
        layout = find_layout(root, ANNOTATED)
    except ValueError as error:
        findings.lines.append("layout: exams with masks")
        findings.problems.append(str(error))
        return
    images, masks, table = layout.images, layout.masks, organ_table(layout, ORGANS, root)
    if layout.organs:  # of a set that names its organs all are counted
        table = OrganTable(tuple(layout.organs.values()), tuple(layout.organs))
    findings.lines.append(f"layout: {layout.name}")
    findings.lines.extend(layout.aside)
    findings.lines.append(f"exams: {len(images)}, {len(masks)} with a mask")
    findings.problems.extend(unpaired(images, masks))
    exams, digests, axis_codes = [], [], []
    for exam_id, path in images.items():
        try:
            exam = read_exam(exam_id, path, masks.get(exam_id), folder=root, organs=table, min_voxels=1)
        except ValueError as error:
            findings.problems.append(str(error))
            continue
        exams.append(exam)
        digests.append((exam.facts["file"], content_hash(exam.slices)))
        axis_codes.append(stored_axes(path))
    if exams:
        describe_volumes(findings, exams, axis_codes, table)
    findings.repeats({"all": digests}, "volumes")
    inspect_sites(root, list(images), findings)


def describe_volumes(findings: Findings, exams: list[Exam], axis_codes: list[str], organs: OrganTable) -> None:
    """Grid, spacing, axes, empty slices and ``organs`` of the exams that could be read.

    ``axis_codes`` says of each exam which way the axes of its file run.
    """
    grids = torch.tensor([exam.facts["shape"] for exam in exams])
    spacing = torch.tensor([exam.facts["spacing_mm"] for exam in exams])
    # the smallest and the largest value along each axis; one number where they agree
    low, high = grids.amin(0).tolist(), grids.amax(0).tolist()
    findings.lines.append(
        "grid: " + " x ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in zip(low, high, strict=True))
    )
    ranges = zip(spacing.amin(0).tolist(), spacing.amax(0).tolist(), strict=True)
    findings.lines.append(
        "spacing mm: " + " x ".join(f"{a:.3g}" if b - a < 5e-3 else f"{a:.3g}-{b:.3g}" for a, b in ranges)
    )
    findings.lines.append("axes: " + "; ".join(f"{axes} ({count})" for axes, count in Counter(axis_codes).items()))
    empty = sum(exam.facts["shape"][2] - len(exam.kept) for exam in exams)
    findings.lines.append(f"slices: {sum(len(exam.kept) for exam in exams)} with content, {empty} empty")
    organ_tables = [exam.present for exam in exams if exam.present is not None]
    if organ_tables:
        # each is (slices, organs) of 0 and 1: the sum over all slices of all exams
        slice_counts = torch.cat(organ_tables).sum(0).to(torch.int64).tolist()
        findings.classes("slices with organ", dict(zip(organs.names, slice_counts, strict=True)))
        empty_masks = [exam.facts["file"] for exam in exams if exam.present is not None and not exam.present.any()]
        findings.named("masks", ("exam whose mask is empty", "exams whose mask is empty"), empty_masks)


def inspect_sites(root: Path, exam_ids: list[int], findings: Findings) -> None:
    """Exams per site of ``sites.csv``, where there is one."""
    try:
        sites = read_sites(root / "sites.csv", exam_ids)
    except ValueError as error:
        findings.problems.append(str(error))
        return
    if sites is not None:
        counts = Counter(sites.tolist())
        findings.lines.append("exams per site: " + ", ".join(f"{site}: {counts[site]}" for site in sorted(counts)))


def inspect_mrnet(root: Path, findings: Findings) -> None:
    """Knee exams: planes, slices and labels; and as problems, exams that one plane or label file lacks."""
    findings.lines.append("layout: MRNet")
    seen_ids: list[int] = []
    digests_by_plane: dict[str, dict[str, list[tuple[str, bytes]]]] = {}
    for split, folder in FOLDERS.items():
        ids_by_plane = {}
        for plane in sorted(entry.name for entry in (root / folder).glob("*") if entry.is_dir()):
            ids_by_plane[plane], digests = inspect_stacks(root / folder / plane, findings)
            digests_by_plane.setdefault(plane, {})[split] = digests
        # an exam of the split is one that any plane has; every plane and label file must have it too
        exam_ids = sorted(set().union(*ids_by_plane.values()))
        for plane, present_ids in ids_by_plane.items():
            findings.named(
                f"{folder}/{plane}",
                ("exam missing", "exams missing"),
                [f"{exam_id:04d}" for exam_id in exam_ids if exam_id not in present_ids],
            )
        inspect_labels(root, folder, exam_ids, findings)
        repeated = sorted(set(exam_ids) & set(seen_ids))
        findings.named(
            folder, ("exam also in train", "exams also in train"), [f"{exam_id:04d}" for exam_id in repeated]
        )
        seen_ids.extend(exam_ids)
    for plane, splits in digests_by_plane.items():
        findings.repeats({f"{split} {plane}": entries for split, entries in splits.items()}, "exams")
    inspect_sites(root, seen_ids, findings)


def side_of(paths: Sequence[Path]) -> int:
    """Pixels along a side of the first exam that can be read; those of MRNet where there is none."""
    for path in paths:
        with suppress(ValueError):
            shape = map_array(path).shape
            if len(shape) == 3 and shape[1] == shape[2]:
                return int(shape[1])
    return SIDE


def inspect_stacks(folder: Path, findings: Findings) -> tuple[set[int], list[tuple[str, bytes]]]:
    """Read every exam of one plane; return the exam numbers and (file name, content hash) of the readable ones."""
    present_ids, slice_counts, digests, constant = set(), [], [], []
    paths = sorted(folder.glob("*.npy"))
    side = side_of(paths)
    for path in paths:
        try:
            exam_id, stack = exam_number(path), np.array(open_stack(path, side))
        except ValueError as error:
            findings.problems.append(str(error))
            continue
        present_ids.add(exam_id)
        slice_counts.append(len(stack))
        digests.append((path.name, content_hash(torch.from_numpy(stack))))
        if stack.max() == stack.min():
            constant.append(path.name)
    span = f", {min(slice_counts)} to {max(slice_counts)} slices of {side} x {side}, 8 bit" if slice_counts else ""
    span += f" (not {SIDE}: to be read with data.side={side})" if side != SIDE else ""
    findings.lines.append(f"{folder.parent.name}/{folder.name}: {plural(len(present_ids), 'exam')}{span}")
    findings.named(f"{folder.parent.name}/{folder.name}", ("constant exam", "constant exams"), constant)
    return present_ids, digests


def inspect_labels(root: Path, folder: str, exam_ids: list[int], findings: Findings) -> None:
    """Note the positive exams per label file of one split, and as a problem the exams that it leaves out."""
    if not exam_ids:
        return
    for name in LABELS:
        path = root / f"{folder}-{name}.csv"
        try:
            labels = read_table(path)
        except ValueError as error:
            findings.problems.append(str(error))
            continue
        findings.lines.append(
            f"{path.name}: {int(sum(labels.get(exam_id, 0.0) for exam_id in exam_ids))} of {len(exam_ids)} positive"
        )
        findings.named(
            path.name,
            ("exam without a label", "exams without a label"),
            [f"{exam_id:04d}" for exam_id in exam_ids if exam_id not in labels],
        )


def inspect_kneemri(root: Path, findings: Findings) -> None:
    """Pickled knee volumes: volumes per split and diagnosis, and every volume or row that cannot be used."""
    findings.lines.append("layout: KneeMRI")
    try:
        rows, volumes = kneemri.read_rows(root / kneemri.TABLE), kneemri.find_volumes(root)
    except ValueError as error:
        findings.problems.append(str(error))
        return
    findings.named(
        kneemri.TABLE, ("row without its volume", "rows without their volume"), sorted(set(rows) - set(volumes))
    )
    findings.named(str(root), ("volume without a row", "volumes without a row"), sorted(set(volumes) - set(rows)))
    digests: dict[str, list[tuple[str, bytes]]] = {}
    diagnoses: Counter[tuple[str, str]] = Counter()
    for name, (split, path) in volumes.items():
        try:
            volume = kneemri.read_volume(path)
        except ValueError as error:
            findings.problems.append(str(error))
            continue
        digests.setdefault(split, []).append((name, content_hash(torch.from_numpy(volume.astype(np.float32)))))
        if name in rows:
            diagnoses[split, kneemri.CLASSES[int(rows[name]["aclDiagnosis"])]] += 1
    for split in digests:
        findings.classes(split, {name: diagnoses[split, name] for name in kneemri.CLASSES})
    findings.repeats(digests, "volumes")
