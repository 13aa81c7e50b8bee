"""How every ``data prepare`` ends: a folder of NIfTI exams, checked, with pictures and a list. It is written completely
or not at all.

``OUT/image_PP.nii.gz`` int16 and ``OUT/label_PP.nii.gz`` uint8 are what ``Abdominal`` and ``Episodes`` read.
``OUT/pictures/PP.png`` is for the eye. ``OUT/manifest.json`` says what was done. PP is the number of the exam in the
source. No name of a source file gets into any of them, and nothing of a DICOM header but geometry.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslmed_dist import __version__
from sslmed_dist.atomic_files import appearing
from sslmed_dist.data.exams.abdominal import NAME, ORGANS
from sslmed_dist.data.exams.exam_layouts import require_number
from sslmed_dist.data.prepare.contact_sheet import contact_sheet, write_picture
from sslmed_dist.data.prepare.orientation import margin, misplaced, require_arrangement
from sslmed_dist.data.scans.nifti_writing import nifti_bytes
from sslmed_dist.data.scans.regrid import Affine, Labels, Volume, spacing

Note = Callable[[str], None]
FEWEST_GREYS = 64  # the least range of a volume that may be rounded to whole numbers
INT16 = np.iinfo(np.int16)


def silent(line: str) -> None:
    """The ``Note`` that drops its line."""


@dataclass(frozen=True)
class PreparedExam:
    """One prepared exam: axes left, anterior, superior."""

    number: int
    image: Volume  # (I, J, K) float32
    labels: Labels | None  # (I, J, K) uint8, 0 to 4
    affine: Affine  # (4, 4) voxel index to RAS mm
    scores: Mapping[str, float]  # of the ways to lay the mask on the image (``arrangement_scores``); empty without mask
    facts: dict[str, Any]  # go into the manifest as they are


@contextmanager
def whole_folder(out: str | Path) -> Iterator[Path]:
    """A temporary folder beside ``out``. It becomes ``out`` when the block ends without an error, else it is removed.

    ``ValueError`` when ``out`` is a file or a folder that is not empty.
    """
    target = Path(out).resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target}: exists and is not an empty folder; nothing is overwritten")
    with appearing(target) as unfinished:
        yield unfinished


def numbered(places: Iterable[Path], pattern: str) -> dict[int, Path]:
    """The paths whose name matches ``pattern``, by the number that the pattern's first group finds, ascending.
    ``ValueError`` for a number that repeats or is too long."""
    paths: dict[int, Path] = {}
    for path in sorted(places):
        match = re.fullmatch(pattern, path.name)
        if match:
            require_number(path, match[1])
        if match and int(match[1]) in paths:
            raise ValueError(f"{path}: a second one of number {int(match[1])}, beside {paths[int(match[1])].name}")
        if match:
            paths[int(match[1])] = path
    return dict(sorted(paths.items()))


def require_raw(source: Path) -> None:
    """``ValueError`` for no folder, or one that is the output of ``data prepare`` or of a like recipe."""
    if not source.is_dir():
        raise ValueError(f"{source}: no such folder")
    if (source / "manifest.json").is_file() or any(NAME.fullmatch(path.name) for path in source.iterdir()):
        raise ValueError(f"{source}: holds image_PP.nii.gz, a prepared set; preparing it again would clip it twice")


def whole_numbers(image: Volume, name: str) -> NDArray[np.int16]:
    """``image`` rounded to int16. ``ValueError`` naming ``name`` where rounding would lose the image: values beyond
    int16, or a range of fewer than 64 whole numbers."""
    low, high = float(image.min()), float(image.max())
    if low < INT16.min or high > INT16.max:
        raise ValueError(f"{name}: values from {low:g} to {high:g} do not fit into int16")
    if high - low < FEWEST_GREYS:
        raise ValueError(
            f"{name}: values from {low:g} to {high:g}; fewer than {FEWEST_GREYS} whole numbers, rounding would lose it"
        )
    return np.rint(image).astype(np.int16)


def written(folder: Path, name: str, content: bytes) -> dict[str, str]:
    """Write a file; its name and SHA-256 for the manifest."""
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return {"file": name, "sha256": hashlib.sha256(content).hexdigest()}


def organ_sizes(labels: Labels, affine: Affine) -> dict[str, dict[str, float]]:
    """Voxels and millilitres of each organ."""
    ml = float(abs(np.linalg.det(affine[:3, :3]))) / 1000
    counts = np.bincount(labels.ravel(), minlength=len(ORGANS) + 1)
    return {organ: {"voxels": int(n), "ml": round(int(n) * ml, 2)} for organ, n in zip(ORGANS, counts[1:], strict=True)}


def write_scan(folder: Path, scan: PreparedExam) -> dict[str, Any]:
    """Write image, mask and picture of one exam; return its entry of the manifest. ``ValueError`` for a mask without an
    organ, and as ``whole_numbers``."""
    name = f"exam {scan.number:02d}"
    if scan.labels is not None and not scan.labels.any():
        raise ValueError(f"{name}: the mask is empty after preparation")
    voxels = whole_numbers(scan.image, name)
    entry: dict[str, Any] = {
        "exam": scan.number,
        "shape": list(voxels.shape),
        "spacing_mm": [round(side, 6) for side in spacing(scan.affine)],
        "affine": [[round(float(value), 6) for value in row] for row in scan.affine],
        "image": written(folder, f"image_{scan.number:02d}.nii.gz", nifti_bytes(voxels, scan.affine)),
    }
    picture = folder / "pictures" / f"{scan.number:02d}.png"
    picture.parent.mkdir(exist_ok=True)
    write_picture(picture, contact_sheet(scan.image, scan.labels))
    entry["picture"] = written(folder, f"pictures/{picture.name}", picture.read_bytes())
    if scan.labels is not None:
        entry["label"] = written(folder, f"label_{scan.number:02d}.nii.gz", nifti_bytes(scan.labels, scan.affine))
        ratio, other = margin(scan.scores)
        entry["organs"] = organ_sizes(scan.labels, scan.affine)
        entry["orientation"] = {
            "scores": {title: round(score, 4) for title, score in scan.scores.items()},
            "margin": round(min(ratio, 1e6), 3),
            "runner_up": other,
            "anatomy": misplaced(scan.labels, scan.affine),
        }
    return entry | scan.facts


def describe(entry: Mapping[str, Any]) -> str:
    """One line about a finished exam."""
    line = f"exam {entry['exam']:02d}: {' x '.join(map(str, entry['shape']))}"
    if "organs" not in entry:
        return f"{line}, no mask"
    sizes = ", ".join(f"{organ} {size['ml']:.0f} ml" for organ, size in entry["organs"].items())
    return f"{line}, {sizes}; mask on image {entry['orientation']['margin']:.1f} times the best other way"


def require_orientation(entries: Iterable[Mapping[str, Any]]) -> None:
    """``ValueError`` when a mask does not lie on its image, or organs do not lie in the patient as they should."""
    judged = {f"exam {entry['exam']:02d}": entry["orientation"] for entry in entries if "orientation" in entry}
    require_arrangement({scan: verdict["scores"] for scan, verdict in judged.items()})
    for scan, verdict in judged.items():
        if verdict["anatomy"]:
            raise ValueError(f"{scan}: {'; '.join(verdict['anatomy'])}: image and mask seem to be mirrored together")


def versions() -> dict[str, str]:
    """The versions of this package and of the packages that read and write the files."""
    package_versions = {"sslmed-dist": __version__}
    for package in ("nibabel", "numpy", "pydicom", "torchvision"):
        try:
            package_versions[package] = version(package)
        except PackageNotFoundError:
            package_versions[package] = "absent"
    return package_versions


def write_set(
    out: str | Path, kind: str, steps: list[str], scans: Iterable[PreparedExam], note: Note, source: str | Path
) -> Path:
    """Write all ``scans`` (one at a time is in memory) and the manifest to ``out``, or nothing at all; return ``out``.
    A ``source`` of phantoms has a mark (``phantom.json``), which is copied.

    ``ValueError``: as ``whole_folder``, ``write_scan`` and ``require_orientation``; no scan.
    """
    with whole_folder(out) as folder:
        entries = []
        for scan in scans:
            entries.append(write_scan(folder, scan))
            note(describe(entries[-1]))
        if not entries:
            raise ValueError(f"{kind}: no exam to prepare")
        require_orientation(entries)
        manifest = {
            "kind": "sslmed prepared set",
            "recipe": kind,
            "version": 1,
            "steps": steps,
            "axes": "left, anterior, superior",
            "labels": {str(value): organ for value, organ in enumerate(ORGANS, start=1)},
            "exams": len(entries),
            "masks": sum("label" in entry for entry in entries),
            "slices": sum(entry["shape"][2] for entry in entries),
            "versions": versions(),
            "entries": entries,
        }
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        mark = Path(source) / "phantom.json"
        if mark.is_file():
            (folder / mark.name).write_bytes(mark.read_bytes())
    return Path(out).resolve()
