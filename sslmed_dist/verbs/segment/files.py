"""Which scans a query path means, and the files written for one of them: all of them, or none."""

import colorsys
import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sslmed_dist.atomic_files import arriving, write_atomically
from sslmed_dist.data.exams.abdominal import NAME
from sslmed_dist.data.scans.nifti import SUFFIXES
from sslmed_dist.data.scans.scan import stem

VOLUMES, RECORD = "volumes.csv", "run.json"
LABELS, PROBABILITY, OVERLAY = "_labels.nii.gz", "_probability.nii.gz", "_overlay.png"
COLOURS, DICOM_SEG = ".ctbl", "_seg.dcm"
COLUMNS = ("query", "label", "slices", "voxels", "volume_ml", "mean_margin")


def find_queries(place: Path, apart: Sequence[Path]) -> list[Path]:
    """The scans that ``place`` means, sorted by name: a NIfTI file; the NIfTI files of a folder, where there are any,
    less the masks ``label_PP`` of the abdominal layout and the files ``apart`` (the support and its mask); else the
    folder itself, where DICOM files lie in it; else the folders in it that hold DICOM files, less those ``apart``.

    ``ValueError`` where nothing is left, or two scans have one name, for the files written are named after them.
    """
    if not place.exists():
        raise ValueError(f"{place}: no such file or folder")
    if not place.is_dir():
        return [place]
    entries, left_out = sorted(place.iterdir()), {path.resolve() for path in apart}
    files = [path for path in entries if path.is_file() and path.name.lower().endswith(SUFFIXES)]
    if files:
        masks = [path for path in files if (match := NAME.fullmatch(path.name)) and match[1] == "label"]
        found = [path for path in files if path not in masks and path.resolve() not in left_out]
    elif holds_dicom(place):
        found = [place]
    else:
        found = [path for path in entries if path.is_dir() and path.resolve() not in left_out and holds_dicom(path)]
    if not found:
        raise ValueError(
            f"{place}: no scan in it; allowed: NIfTI files (.nii, .nii.gz), DICOM files or folders of them"
        )
    names: dict[str, Path] = {}
    for path in found:
        if stem(path) in names:
            raise ValueError(f"{path}: named like {names[stem(path)].name}; the files of both would have one name")
        names[stem(path)] = path
    return found


def holds_dicom(folder: Path) -> bool:
    """Whether a file right in the folder ends in ``.dcm`` or has the mark of DICOM (PS3.10, 7.1) after 128 bytes."""
    for path in sorted(folder.iterdir()):
        if path.is_file():
            if path.suffix.lower() == ".dcm":
                return True
            with path.open("rb") as file:
                if file.read(132)[128:] == b"DICM":
                    return True
    return False


def targets(out: Path, names: Sequence[str], *, dicom_seg: Sequence[str] = ()) -> list[Path]:
    """Every file that queries of these names are written to; DICOM-SEG for those in ``dicom_seg``."""
    ends = (LABELS, PROBABILITY, OVERLAY, COLOURS)
    each = [out / f"{name}{end}" for name in names for end in ends]
    return [*each, *(out / f"{name}{DICOM_SEG}" for name in dicom_seg), out / VOLUMES, out / RECORD]


def refuse_existing(files: Sequence[Path]) -> None:
    """``ValueError`` naming the first file that is there already."""
    for path in files:
        if path.exists():
            raise ValueError(f"{path}: exists already and is not written over; choose another --out")


def write_all(out: Path, name: str, contents: Mapping[str, bytes | Callable[[Path], None]]) -> list[Path]:
    """Write ``NAME`` + each ending: bytes, or what a function writes to the path it is given. Returns the files."""
    with arriving(out, name, last=LABELS) as part:
        for ending, content in contents.items():
            path = part / f"{name}{ending}"
            if isinstance(content, bytes):
                write_atomically(path, content)
            else:
                content(path)
    return [out / f"{name}{ending}" for ending in contents]


def colour(place: int) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of the ``place``-th label: hues by the golden ratio, so neighbours differ."""
    red, green, blue = colorsys.hsv_to_rgb((0.02 + place * 0.618034) % 1.0, 0.75, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def colour_table(labels: Sequence[int]) -> bytes:
    """A colour table for 3D Slicer: a line per label, id, name, red, green, blue, opacity; 0 is the background."""
    lines = ["# Color table of a label map: id name r g b a", "0 background 0 0 0 0"]
    for place, label in enumerate(labels):
        lines.append(" ".join(map(str, (label, f"label_{label}", *colour(place), 255))))
    return ("\n".join(lines) + "\n").encode()


def volume_table(rows: Sequence[Mapping[str, object]]) -> bytes:
    """``volumes.csv``: ``COLUMNS``, a row per query and label."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()
