"""Which scans a query path means, and the files written for one of them: all of them, or none."""

import colorsys
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sslmed_dist import outputs
from sslmed_dist.atomic_files import arriving, sha256, write_atomically
from sslmed_dist.data.exams.abdominal import NAME
from sslmed_dist.data.exams.exam_files import files_below
from sslmed_dist.data.exams.mask_files import is_volume_file
from sslmed_dist.data.exams.studies import Source, one_source, studies_at
from sslmed_dist.data.scans.dicom_file import begins_as_dicom
from sslmed_dist.printable import note
from sslmed_dist.verbs.segment.naming import RECORD, WRITER, files_of, is_output, without_outputs
from sslmed_dist.verbs.segment.record import VOLUMES, is_volumes

SEGMENT = WRITER  # the mark of ``run.json``
PAGE = "overlay.html"
LABELS, PROBABILITY, OVERLAY = "_labels.nii.gz", "_probability.nii.gz", "_overlay.png"
COLOURS, DICOM_SEG = ".ctbl", "_seg.dcm"


def find_queries(query: Path, excluded: Sequence[Path]) -> list[Source]:
    """The scans that the path ``query`` means, sorted by name. The first of these that applies:

    - a file of NIfTI, unless it is an output, or of DICOM (enhanced, of several frames): that file; a DICOMDIR: the
      studies that it lists;
    - a folder with NIfTI files: those files, but not masks (named ``label_PP`` in the abdominal layout);
    - any other folder: the studies below it, at any depth.

    Paths in ``excluded`` (the support and its mask) and outputs of this command (``naming.is_output``) are left out of
    a folder. ``ValueError`` where nothing is left, or where two scans have one name, because the files to be written
    are named after the scans.
    """
    if not query.exists():
        raise ValueError(f"{query}: no such file or folder")
    if not query.is_dir():
        if is_output(query):
            raise ValueError(f"{query}: a label map or an output of {SEGMENT}, not a scan; nothing is found in it")
        return studies_at(query) or [one_source(query)]
    entries, left_out = sorted(query.iterdir()), {path.resolve() for path in excluded}
    files = [path for path in entries if path.is_file() and is_volume_file(path)]
    if files:
        masks = [path for path in files if (match := NAME.fullmatch(path.name)) and match[1] == "label"]
        scans = [path for path in files if path not in masks and path.resolve() not in left_out]
        found = [one_source(path) for path in without_outputs(scans, query)]
    else:
        below = [entry for entry in sorted(query.rglob("*")) if entry.is_dir()]
        found = studies_at(query, (*excluded, *(set(below) - set(without_outputs(below, query)))))
    if not found:
        raise ValueError(
            f"{query}: no scan in it; allowed: NIfTI files (.nii, .nii.gz), DICOM files or folders of them"
        )
    by_name: dict[str, Source] = {}
    for scan in found:
        if scan.name in by_name:
            raise ValueError(
                f"{scan.path}: named like {by_name[scan.name].path.name}; the files of both would have one name"
            )
        by_name[scan.name] = scan
    return found


def passed_over(query: Path, sources: Sequence[Source], excluded: Sequence[Path]) -> list[str]:
    """What lies in the folder ``query`` and is not among the ``sources`` it means, in lines that are also said on
    standard error: how many supports and masks (``excluded``), and how many scans of which kind."""
    if not query.is_dir():
        return []
    lines, folder = [], query.resolve()
    given = {path.resolve() for path in excluded if folder in path.resolve().parents}
    if given:
        lines.append(f"{len(given)} of its files or folders are a support or its mask: no queries")
    lines += passed_over_scans(query, sources, excluded)
    for line in lines:
        note(f"{query}: {line}")
    return lines


def passed_over_scans(query: Path, sources: Sequence[Source], excluded: Sequence[Path]) -> list[str]:
    """Scans below the folder ``query`` that are not among the ``sources`` it means: a line that counts them, by kind.

    A folder with NIfTI files means these files, so it lacks what is DICOM and what lies in folders below it. Masks and
    outputs are no scans (``find_queries``).
    """
    if any(source.files is not None for source in sources):
        return []  # everything below it has been looked at
    known = {source.path.resolve() for source in sources} | {path.resolve() for path in excluded}
    below = [path for path in files_below(query) if path.parent != query or not is_volume_file(path)]
    rest = [path for path in below if not known & {path.resolve(), *path.resolve().parents}]
    outputs_here = {folder for folder in {path.parent for path in rest} if is_output(folder)}
    rest = [path for path in rest if path.parent not in outputs_here]
    nifti = [path for path in rest if is_volume_file(path)]
    dicom = [path for path in rest if path not in nifti and begins_as_dicom(path)]
    counted = [f"{len(found)} {kind}" for kind, found in (("DICOM", dicom), ("NIfTI", nifti)) if found]
    if not counted:
        return []
    return [f"files of {' and '.join(counted)} beside or below its NIfTI files are passed over; they need a --query"]


def targets(
    out: Path, names: Sequence[str], *, dicom_seg: Sequence[str] = (), probabilities: bool = True
) -> list[Path]:
    """Every file that is written for queries of these names; a DICOM-SEG file for those in ``dicom_seg`` only."""
    endings = (LABELS, *((PROBABILITY,) if probabilities else ()), OVERLAY, COLOURS)
    per_query = [out / f"{name}{ending}" for name in names for ending in endings]
    return [*per_query, *(out / f"{name}{DICOM_SEG}" for name in dicom_seg), out / VOLUMES, out / PAGE, out / RECORD]


def require_writable(files: Sequence[Path], *, force: bool) -> None:
    """``ValueError`` naming the first file that is there already and must stay (``outputs.require_writable``). With
    ``force`` a mask that a person has corrected since stays all the same: ``run.json`` has the hash of each file."""
    outputs.require_writable([(path, is_ours) for path in files], force=force)


def is_ours(path: Path) -> bool:
    """Whether the ``run.json`` beside a file is one of this program and says that it wrote these very bytes."""
    record = outputs.read_mapping(path.with_name(RECORD))
    if record.get(outputs.MARK) != SEGMENT:
        return False
    if path.name == PAGE:
        return outputs.is_page(path)
    if path.name in (RECORD, VOLUMES):
        return path.name == RECORD or is_volumes(path)
    return files_of(record).get(path.name) == sha256(path)


def write_all(out: Path, name: str, contents: Mapping[str, bytes | Callable[[Path], object]]) -> list[Path]:
    """Write the files of one query, ``NAME`` + each key of ``contents``, all or none; returns them. A content is bytes,
    or a function that writes the file at the path it gets."""
    with arriving(out, name, last=LABELS) as folder:  # a folder of its own until all files are there
        for ending, content in contents.items():
            path = folder / f"{name}{ending}"
            if isinstance(content, bytes):
                write_atomically(path, content)
            else:
                content(path)
    return [out / f"{name}{ending}" for ending in contents]


def colour(label_index: int) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of label number 0, 1, ...: hues by the golden ratio, so that neighbours differ."""
    red, green, blue = colorsys.hsv_to_rgb((0.02 + label_index * 0.618034) % 1.0, 0.75, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def colour_table(names: Mapping[int, str]) -> bytes:
    """A colour table for 3D Slicer of labels and their ``names``: a line per label, id, name (one word), red, green,
    blue, opacity; 0 is the background."""
    lines = ["# Color table of a label map: id name r g b a", "0 background 0 0 0 0"]
    for label_index, (label, name) in enumerate(names.items()):
        word = re.sub(r"[^\w.()+-]+", "_", name).strip("_") or f"label_{label}"
        lines.append(" ".join(map(str, (label, word, *colour(label_index), 255))))
    return ("\n".join(lines) + "\n").encode()


def left_out_line(left_out: Mapping[str, str]) -> str:
    """A line about the labels (id: why) that were not looked for."""
    return f"Not looked for: {'; '.join(left_out.values())}."


def left_out_rows(query: str, left_out: Mapping[str, str]) -> list[dict[str, Any]]:
    """A row of ``volumes.csv`` for every label (id: why) that was not looked for: no figures, the reason as a note."""
    return [{"query": query, "label": int(label), "note": f"not looked for: {why}"} for label, why in left_out.items()]
