"""Knee phantoms as a hospital exports them: a folder of DICOM files per examination, several series each, and a table.

An examination has a localizer, up to three planes in up to two contrasts, some of them missing, some repeated, turned
by a few degrees as a technician does it, on one of many scanners. The table has empty cells.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sslmed_dist.data.phantom.canvas import Dice
from sslmed_dist.data.phantom.chaos import uid, write_series
from sslmed_dist.data.phantom.knee_anatomy import LABELS, PLANES, REACH, Knee, draw_knee, field_of_view
from sslmed_dist.data.phantom.publish import assign_sites, draw_joint, publish, require_counts, write_rows
from sslmed_dist.data.phantom.scanner import acquire, scanner
from sslmed_dist.data.workers import in_processes
from sslmed_dist.randomness import key

TABLE = "labels.csv"
COLUMNS = ("exam", "patient", "site", "laterality", "split", "source", *LABELS)
SHORT = {"axial": "tra", "coronal": "cor", "sagittal": "sag"}
# Where the columns, the rows and the slices of a drawn plane run, in RAS (see ``draw_knee``).
DIRECTIONS = {
    "axial": ((-1, 0, 0), (0, -1, 0), (0, 0, -1)),
    "coronal": ((-1, 0, 0), (0, 0, -1), (0, -1, 0)),
    "sagittal": ((0, -1, 0), (0, 0, -1), (-1, 0, 0)),
}
ABSENT = {("axial", "t1"): 1.0, ("axial", "pd"): 0.1, ("coronal", "t1"): 0.3, ("sagittal", "t1"): 0.6}


@dataclass(frozen=True)
class Planned:
    """A series to be drawn: its plane, contrast and number; ``turn`` in degrees about the axis of its rows."""

    plane: str
    contrast: str
    number: int
    turn: float


@dataclass(frozen=True)
class Examined:
    """An examination to be drawn into ``folder``, on the scanner ``machine``; ``by_tag``: the tags say the side."""

    folder: Path
    knee: Knee
    machine: int
    by_tag: bool
    seed: int
    size: int
    slices: tuple[int, int]


def planned(dice: Dice) -> Iterator[Planned]:
    """The series of an examination in the order they were taken, without the localizer."""
    number = 2
    for plane in ("sagittal", "coronal", "axial"):
        for contrast in ("pd", "t1"):
            if dice.chance(ABSENT.get((plane, contrast), 0.0), f"absent {plane} {contrast}"):
                continue
            turn = dice.between(-20.0, 20.0, f"turn {plane}")
            repeats = 2 if contrast == "pd" and dice.chance(0.1, f"repeat {plane}") else 1
            for _ in range(repeats):
                yield Planned(plane, contrast, number, turn)
                number += 1


def affine_of(plane: str, shape: tuple[int, ...], sides: tuple[float, float, float], turn: float) -> Any:
    """(4, 4): index (column, row, slice) to RAS mm about the middle of the joint, turned about the columns' axis."""
    column, row, step = (np.array(vector, np.float64) for vector in DIRECTIONS[plane])
    sine, cosine = np.sin(np.deg2rad(turn)), np.cos(np.deg2rad(turn))
    row, step = cosine * row + sine * step, cosine * step - sine * row
    affine = np.eye(4)
    affine[:3, :3] = np.stack([column, row, step], 1) * np.array(sides)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def tags_of(exam: Examined, series: str, description: str, number: int) -> dict[str, Any]:
    """The tags of a series beyond its geometry."""
    scan = f"{exam.folder.parent.name}/{exam.folder.name}"
    tags: dict[str, Any] = {
        "StudyInstanceUID": uid(scan, "study"),
        "SeriesInstanceUID": uid(f"{scan}/{series}", "series"),
        "PatientID": exam.folder.parent.name,
        "SeriesNumber": number,
        "SeriesDescription": description,
        "Manufacturer": "PHANTOM",
        "ManufacturerModelName": f"Model {exam.machine}",
        "MagneticFieldStrength": 1.5 if exam.machine % 2 else 3.0,
        "BodyPartExamined": "KNEE",
        "ImageType": ["ORIGINAL", "PRIMARY", "M"],
    }
    return tags | ({"Laterality": exam.knee.laterality[0].upper()} if exam.by_tag else {})


def recorded(exam: Examined, series: Planned, count: int) -> NDArray[np.int16]:
    """The voxels (columns, rows, slices) of a series as the scanner records it."""
    clean = draw_knee(exam.knee, series.plane, count, exam.size, series.contrast)
    noise = torch.tensor([key(exam.knee.subject, "acquire", series.plane, series.contrast, series.number)])
    image = acquire(clean[None], scanner(exam.machine, exam.seed), noise)[0]  # (S, H, W)
    return np.ascontiguousarray((1000.0 * image).round().numpy().astype(np.int16).transpose(2, 1, 0))


def write_examination(exam: Examined) -> None:
    """Draw and write all series of one examination, their files numbered on through the examination."""
    dice, view = Dice(exam.knee.subject), field_of_view(exam.knee)
    pixel = view / exam.size
    scan, written = f"{exam.folder.parent.name}/{exam.folder.name}", 0
    for series in planned(dice):
        count = dice.pick(*exam.slices, f"slices {series.plane}")
        voxels = recorded(exam, series, count)
        name = f"{series.contrast}_tse_{'fs_' if series.contrast == 'pd' else ''}{SHORT[series.plane]}"
        tags = tags_of(exam, f"{series.number}", name, series.number)
        tags |= {"EchoTime": 33.0 + exam.machine % 5 if series.contrast == "pd" else 11.0}
        tags |= {"RepetitionTime": 3200.0 + 40 * (exam.machine % 7) if series.contrast == "pd" else 620.0}
        sides = (pixel, pixel, REACH[series.plane] * view / count)
        affine = affine_of(series.plane, voxels.shape, sides, series.turn)
        files = [f"{written + k + 1:06d}.dcm" for k in range(count)]
        write_series(exam.folder, voxels, affine, series=f"{scan}/{series.number}", names=files, tags=tags)
        written += count
    for part, plane in enumerate(PLANES):  # the localizer: one thick slice of each plane in one series
        clean = draw_knee(exam.knee, plane, 1, 32)
        voxels = np.ascontiguousarray((1000.0 * clean).numpy().astype(np.int16).transpose(2, 1, 0))
        affine = affine_of(plane, voxels.shape, (view / 32, view / 32, 8.0), 0.0)
        tags = tags_of(exam, "localizer", "localizer", 1)
        names = [f"{written + part + 1:06d}.dcm"]
        write_series(exam.folder, voxels, affine, series=f"{scan}/loc{plane}", names=names, tags=tags)


def write_knee_exams(
    root: str | Path,
    *,
    exams: int = 60,
    scanners: int = 20,
    test: float = 0.3,
    size: int = 96,
    slices: tuple[int, int] = (12, 18),
    missing: float = 0.05,
    workers: int = 1,
    seed: int = 0,
) -> Path:
    """Write knee phantoms as DICOM examinations into the folder ``root``: ``PATIENT/STUDY/NNNNNN.dcm``, all series of
    a study in one folder, and ``labels.csv`` with the columns ``COLUMNS``.

    Three planes, two contrasts of which some are missing, some series repeated, both sides (said by a tag, by the
    table, or by neither), ``scanners`` scanners, four sites, labels that go together as in MRNet (``publish.JOINT``),
    of which a share ``missing`` is empty. A share ``test`` of the exams is for testing, half of it labelled by experts.
    ``ValueError`` for impossible requests or a used folder.
    """
    require_counts(exams=exams)
    for name, share in (("test", test), ("missing", missing)):
        if not 0.0 <= share < 1.0:
            raise ValueError(f"{name}: expected a share from 0 and below 1, got {share}")
    if exams < 2 or size < 16 or not 2 <= slices[0] <= slices[1]:
        raise ValueError(f"exams, size, slices: expected at least 2, 16 and 2, got {exams}, {size}, {tuple(slices)}")
    ids = torch.arange(exams)
    machines = assign_sites(ids, scanners, seed).tolist()
    labels = draw_joint(ids, dict.fromkeys(LABELS, 0.0), seed, "knee exams")
    spec = {"kind": "knee_exams", "version": 1, "exams": exams, "scanners": scanners, "test": test, "size": size}
    spec |= {"slices": list(slices), "missing": missing, "seed": seed}
    knees = [
        Knee(key(seed, "knee exams", i), **{name: bool(values[i]) for name, values in labels.items()})
        for i in range(exams)
    ]

    def fill(folder: Path) -> None:
        jobs, rows = [], []
        for i, knee in enumerate(knees):
            dice, place = Dice(knee.subject), Path(f"P{i:04d}") / "1"
            said = dice.pick(0, 2, "said")  # by a tag, by the table, by neither
            in_test = i >= exams - round(test * exams)
            jobs.append(Examined(folder / place, knee, machines[i], said == 0, seed, size, slices))
            cells = ["" if dice.chance(missing, f"unlabelled {name}") else int(getattr(knee, name)) for name in LABELS]
            site = f"site {machines[i] % 4}"
            source = "expert" if in_test and i % 2 else "report"
            side = knee.laterality if said == 1 else ""
            rows.append((place.as_posix(), f"P{i:04d}", site, side, "test" if in_test else "train", source, *cells))
        for _ in in_processes(write_examination, jobs, workers):
            pass
        write_rows(folder / TABLE, [COLUMNS, *rows])

    return publish(root, spec, fill)
