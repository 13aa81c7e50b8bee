"""``Episodes`` in one ``.npz`` file: written from a folder of exams, read with numpy alone.

    episodes        JSON: kind, version, the set's name, organ names, the recipe of the superpixels, what made them, and
                    of every exam number, spacing_mm, oriented, site (null: none), whether it has organs, voxel type
    voxels_N        the slices of exam N (``ExamFolder.read``), in the smallest type that holds its values exactly, as
                    uint8 (B, S, H, W): byte b of every value is plane b, low bytes first
    organs_N        uint8 (S, H, W), only of annotated exams
    superpixels_N   uint8 or uint16 (S, H, W), 0 = none, at the stored resolution
    phantom         the text of ``phantom.json``, only of a generated set

Nothing is resized or scaled, so what is read is what the folder gives, bit for bit. No file name is in it.
Arrays are deflated, with the bytes of a value in different planes. The 20 exams of CHAOS T2-SPIR take 38 MiB that way,
45 MiB with the bytes of each int16 value together, and 180 MiB without compression.
"""

import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslmed_dist import outputs
from sslmed_dist.atomic_files import write_atomically
from sslmed_dist.data.exams.abdominal import ORGANS, require_slices
from sslmed_dist.data.exams.exam_folder import ExamFolder, Organs, UprightExam, read_upright_exam
from sslmed_dist.data.exams.exam_masks import OrganTable
from sslmed_dist.data.exams.superpixels import VERSION as SUPERPIXELS
from sslmed_dist.data.exams.superpixels import Maps, Recipe
from sslmed_dist.data.npz import Arrays, archive_names, read_archive
from sslmed_dist.data.text_files import add_once, field, parse_json
from sslmed_dist.printable import excerpt, plural

KIND = "sslmed episodes"
VERSION = 1
HEAD, PHANTOM = "episodes", "phantom"
TYPES = ("|u1", "<i2", "<u2", "<f4")  # of voxels, tried in this order
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Entry:
    """What the head of a packed file says of one exam."""

    number: int
    spacing_mm: tuple[float, float, float]  # between rows, columns, slices
    oriented: bool
    site: int | None
    organs: bool  # whether the file holds its organ values
    voxels: str  # the type of its voxels, one of ``TYPES``


class ExamArchive:
    """An opened packed file, with the same methods as ``ExamFolder``. Arrays are read when they are asked for."""

    def __init__(self, path: Path, labelled: bool = False, why: str = "") -> None:
        """``labelled``: masks are needed, and ``why`` is what needs them (for the message). ``ValueError`` naming the
        file: damaged, of another kind or version, or without masks that are needed."""
        self.place, self.head = path, read_head(path)
        try:
            self.entries: dict[int, Entry] = {}
            for entry in map(read_entry, field(self.head, "exams", list, "head")):
                add_once(self.entries, entry.number, entry, "exams")
            self.recipe, self.made_by = Recipe(**self.head["recipe"]), dict(self.head["made_by"])
            self.name, self.organs = field(self.head, "name", str, "head"), tuple(self.head["organs"])
            if not self.organs or not all(isinstance(organ, str) for organ in self.organs):
                raise ValueError("organs: expected a list of names")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: its head is damaged: {excerpt(str(error), 200)}") from error
        if not self.entries:
            raise ValueError(f"{path}: holds no exam")
        self.numbers = list(self.entries)
        without_masks = [exam_number for exam_number, entry in self.entries.items() if not entry.organs]
        if labelled and without_masks:
            raise ValueError(f"{why}: needs organ masks, and {path} has none of exam {without_masks[0]:02d}")
        self.labelled = labelled

    def table(self, organs: Sequence[str]) -> OrganTable:
        """The organs of a recipe in this file; the default of a recipe stands for those that were packed."""
        names = self.organs if tuple(organs) == ORGANS else tuple(organs)
        return OrganTable(names, tuple(range(1, len(names) + 1)))

    def read(self, number: int, organs: OrganTable) -> UprightExam:
        """One exam, with its organ values when masks are needed. ``ValueError`` naming the file when arrays are damaged
        or an organ value is above the number of ``organs``."""
        entry = self.entries[number]
        stored = self.array(f"voxels_{number}")  # (B, S, H, W), B bytes per value
        if stored.ndim != 4 or stored.dtype != np.uint8 or len(stored) != np.dtype(entry.voxels).itemsize:
            raise ValueError(f"{self.place}: voxels of exam {number:02d} are damaged")
        slices = join_bytes(stored, entry.voxels).astype(np.float32)
        if 0 in slices.shape or not np.isfinite(slices).all():
            raise ValueError(f"{self.place}: voxels of exam {number:02d} are damaged: {slices.shape}, or not finite")
        require_slices(slices.shape[::-1], f"{self.place}: exam {number:02d}")
        organ_values = self.read_organs(number, slices.shape, organs.names) if self.labelled else None
        file = f"exam {number:02d}"
        where = f"{self.place}: {file}"
        return UprightExam(number, file, where, slices, organ_values, entry.spacing_mm, entry.oriented)

    def read_organs(self, number: int, shape: tuple[int, ...], organs: Sequence[str]) -> Organs:
        """The organ values of an annotated exam, uint8 of the given ``shape`` (S, H, W). ``ValueError`` as ``read``."""
        stored_values = self.fitting(f"organs_{number}", shape)  # 16 bits where the file is damaged: 257 is not 1
        if stored_values.max() > len(organs):
            names = f"{len(organs)} ({', '.join(organs)})"
            raise ValueError(f"{self.place}: exam {number:02d} holds an organ value outside 0 to {names}")
        return stored_values.astype(np.uint8)

    def superpixels(self, scans: Sequence[UprightExam], recipe: Recipe, cache: str | None, workers: int) -> list[Maps]:
        """The packed superpixels of every scan, uint16 (S, H, W); ``cache`` and ``workers`` have no effect.
        ``ValueError`` when the file's superpixels were made with another ``recipe``, or by another version of
        ``superpixels.py``."""
        for name, packed in asdict(self.recipe).items():
            asked = getattr(recipe, name)
            if asked != packed:
                raise ValueError(
                    f"data.{name}: {asked} asked for, but {self.place} holds superpixels made with {packed}; "
                    f"set {name} to {packed}, or pack the exams again with {name}={asked}"
                )
        if self.made_by.get("superpixels") != SUPERPIXELS:
            packed_version = self.made_by.get("superpixels")
            raise ValueError(
                f"{self.place}: superpixels of version {packed_version}, this program makes version {SUPERPIXELS}; "
                "pack the exams again"
            )
        return [self.fitting(f"superpixels_{s.number}", s.slices.shape).astype(np.uint16) for s in scans]

    def sites(self, numbers: Sequence[int]) -> Tensor | None:
        """Int64, the site of each exam; None for a set without sites."""
        exam_sites = [self.entries[exam_number].site for exam_number in numbers]
        return None if None in exam_sites else torch.tensor(exam_sites)

    def fitting(self, key: str, shape: tuple[int, ...]) -> Array:
        """The file's array ``key``: uint8 or uint16, one number for each voxel. ``ValueError`` unless it has the
        ``shape``."""
        array = self.array(key)
        if array.shape != shape or array.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"{self.place}: {key} is {array.dtype} {array.shape}, expected {shape}; damaged")
        return array

    def array(self, key: str) -> Array:
        """The file's array ``key``."""
        return read_archive(self.place, (key,))[key]


def is_archive(path: Path) -> bool:
    """Whether ``path`` is meant as a packed file: it is a file, or it does not exist and its name ends in .npz."""
    return path.is_file() or (path.suffix == ".npz" and not path.is_dir())


def read_head(path: Path) -> dict[str, Any]:
    """The head of a packed file. ``ValueError`` when the file is missing, damaged, or of another kind or version."""
    if HEAD not in archive_names(path):
        raise ValueError(f"{path}: not packed episodes (`sslmed data pack episodes ROOT OUT.npz` makes them)")
    stored = read_archive(path, (HEAD,))[HEAD]
    if stored.ndim or stored.dtype.kind != "U":
        raise ValueError(f"{path}: its head is damaged: {stored.dtype} {stored.shape}, expected one text")
    head = parse_json(stored.item(), path)
    if not isinstance(head, dict) or head.get("kind") != KIND or not isinstance(head.get("version"), int):
        raise ValueError(f"{path}: not packed episodes (`sslmed data pack episodes ROOT OUT.npz` makes them)")
    if head["version"] > VERSION:
        versions = f"version {head['version']}, this program reads version {VERSION}"
        raise ValueError(f"{path}: written by a newer sslmed ({versions}); update it here or pack the exams again")
    return head


def is_packed(path: Path) -> bool:
    """Whether a file is a set of packed episodes. ``ValueError`` for one that cannot be read."""
    return bool(read_head(path))


def read_entry(stored: Mapping[str, Any]) -> Entry:
    """One exam's entry of the head. ``ValueError``, ``KeyError`` or ``TypeError`` unless ``store`` made it."""
    row, column, between = field(stored, "spacing_mm", list, "an exam")
    entry = Entry(**{**stored, "spacing_mm": (float(row), float(column), float(between))})
    if entry.voxels not in TYPES:
        raise ValueError(f"voxels of type {entry.voxels!r}")
    for name, kind in (("number", int), ("oriented", bool), ("organs", bool), ("site", (int, type(None)))):
        field(stored, name, kind, f"exam {entry.number}")
    if not 0 <= entry.number < 10**9 or not 0 <= (entry.site or 0) < 2**62:
        raise ValueError(f"exam {entry.number} of site {entry.site}: numbers below 0, or too large")
    if not all(math.isfinite(side) and side > 0 for side in entry.spacing_mm):
        raise ValueError(f"exam {entry.number}: spacing_mm {entry.spacing_mm}; each side must be above 0")
    return entry


def pack_episodes(
    root: str | Path,
    out: Path,
    organs: tuple[str, ...] = ORGANS,
    scale: float = 1.0,
    sigma: float = 1.0,
    min_size: int = 400,
    body_threshold: float = 50.0,
    cache: str | None = None,
    workers: int = 1,
    note: Callable[[str], None] = lambda line: None,
    force: bool = False,
) -> Path:
    """Write all exams of the folder ``root``, with their masks where there are any, into the new file ``out``
    (``.npz``), and return it. Arguments are those of ``Episodes``; ``note`` is told of each exam. The same exams give
    the same bytes.

    ``out`` is written completely or not at all; over a set that was packed before only with ``force``. ``ValueError``:
    what ``Episodes`` says of a file, a mask without an image, ``out`` that must stay or has another suffix.
    """
    out, folder = Path(out), Path(root)
    if out.suffix != ".npz":
        raise ValueError(f"{out}: episodes are packed into one file; give a name that ends in .npz")
    outputs.require_writable([(out, is_packed)], force=force)
    recipe = Recipe(float(scale), float(sigma), int(min_size), float(body_threshold))
    source = ExamFolder(folder, False, "")
    table = source.table(organs)
    scans = read_all(source, table)
    sites = source.sites(source.numbers)
    maps = source.superpixels(scans, recipe, cache, workers)
    arrays: Arrays = {}
    exams = []
    for index, (scan, exam_maps) in enumerate(zip(scans, maps, strict=True)):
        exam_arrays, entry = store(scan, exam_maps, None if sites is None else int(sites[index]))
        arrays |= exam_arrays
        exams.append(entry)
        note(f"exam {scan.number:02d}: {len(scan.slices)} slices, {'with' if entry['organs'] else 'no'} organ masks")
    head = {
        "kind": KIND,
        "version": VERSION,
        "name": source.name,
        "organs": list(table.names),
        "recipe": asdict(recipe),
    }
    made_by = {"superpixels": SUPERPIXELS, "scikit-image": version("scikit-image")}
    arrays[HEAD] = np.array(json.dumps(head | {"made_by": made_by, "exams": exams}))
    if (folder / "phantom.json").is_file():
        arrays[PHANTOM] = np.array((folder / "phantom.json").read_text(encoding="utf-8"))
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, stream.getvalue())
    note(f"{out}: {plural(len(scans), 'exam')}, {out.stat().st_size:,} bytes")
    return out


def read_all(source: ExamFolder, organs: OrganTable) -> list[UprightExam]:
    """Every exam of a folder, with its mask where it has one. ``ValueError`` as ``read_scan``, also for a constant
    volume and a mask without an image."""
    images, masks = source.layout.images, source.layout.masks
    for exam_number in sorted(masks.keys() - images.keys()):
        raise ValueError(f"{masks[exam_number]}: has no image_... beside it")
    scans = [
        read_upright_exam(exam_number, path, masks.get(exam_number), source.place, organs)
        for exam_number, path in images.items()
    ]
    for scan in scans:
        scan.moments()  # refuses a constant volume, so that no unusable exam is packed
    return scans


def store(scan: UprightExam, maps: Maps, site: int | None) -> tuple[Arrays, dict[str, Any]]:
    """(arrays, entry of the head) of one exam."""
    voxels = smallest(scan.slices)
    arrays: Arrays = {f"voxels_{scan.number}": split_bytes(voxels)}
    if scan.organs is not None:
        arrays[f"organs_{scan.number}"] = scan.organs
    arrays[f"superpixels_{scan.number}"] = maps.astype(np.uint8) if maps.max() <= 255 else maps
    entry = Entry(scan.number, scan.spacing, scan.oriented, site, scan.organs is not None, voxels.dtype.str)
    return arrays, asdict(entry)


def smallest(voxels: Array) -> Array:
    """The float32 ``voxels`` in the first of ``TYPES`` from which all of them come back bit for bit."""
    low, high = float(voxels.min()), float(voxels.max())
    for kind in TYPES[:-1]:
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            stored: Array = voxels.astype(kind)
            # compared as bits: -0.0 equals 0.0 and would not come back
            if np.array_equal(stored.astype(np.float32).view(np.uint32), voxels.view(np.uint32)):
                return stored
    return voxels.astype(TYPES[-1])


def split_bytes(values: Array) -> Array:
    """Uint8 (B, ...) of values (...) of B bytes each: the first bytes of all values, then the second ones. Deflate
    compresses them better this way."""
    split = values[..., None].view(np.uint8)  # (..., B)
    return np.ascontiguousarray(np.moveaxis(split, -1, 0))


def join_bytes(planes: Array, kind: str) -> Array:
    """The values of the type ``kind`` that ``split_bytes`` took apart."""
    joined: Array = np.ascontiguousarray(np.moveaxis(planes, 0, -1)).view(kind)[..., 0]
    return joined
