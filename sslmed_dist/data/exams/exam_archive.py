"""``Episodes`` in one ``.npz`` file: written from a folder of exams, read with numpy alone.

    episodes        JSON: kind, version, the set's name, organ names, the recipe of the superpixels, what made them, and
                    of every exam number, spacing_mm, oriented, site (null: none), whether it has organs, voxel type
    voxels_N        exam N upright (``abdominal.upright``), in the smallest type that holds its values exactly; uint8
                    (B, S, H, W): byte b of every value is plane b, low bytes first
    organs_N        uint8 (S, H, W), only of annotated exams
    superpixels_N   uint8 or uint16 (S, H, W), 0 = none, at the stored resolution
    phantom         the text of ``phantom.json``, only of a generated set

Nothing is resized or scaled, so what is read is what the folder gives, bit for bit. No file name is in it.
Deflated, with the bytes apart: the 20 exams of CHAOS T2-SPIR take 38 MiB so, 45 with whole int16 values, 180 without
compression.
"""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslmed_dist.atomic_files import write_atomically
from sslmed_dist.data.exams.abdominal import ORGANS, list_exams
from sslmed_dist.data.exams.exam_folder import ExamFolder, Organs, UprightExam, read_upright_exam
from sslmed_dist.data.exams.superpixels import VERSION as SUPERPIXELS
from sslmed_dist.data.exams.superpixels import Maps, Recipe
from sslmed_dist.data.npz import Arrays, archive_names, read_archive

KIND = "sslmed episodes"
VERSION = 1
HEAD, PHANTOM = "episodes", "phantom"
TYPES = ("|u1", "<i2", "<u2", "<f4")  # of voxels, tried in this order
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Entry:
    """What the head of a packed file says of one exam."""

    number: int
    spacing_mm: tuple[float, float, float]
    oriented: bool
    site: int | None
    organs: bool
    voxels: str


class ExamArchive:
    """An opened file; what ``ExamFolder`` is for a folder. Arrays are read when they are asked for."""

    def __init__(self, path: Path, labelled: bool = False, why: str = "") -> None:
        """``ValueError`` naming the file: damaged, of another kind or version, or without the organ masks that are
        needed (``labelled``, for ``why``)."""
        self.place, self.head = path, read_head(path)
        try:
            self.entries = {entry.number: entry for entry in map(read_entry, self.head["exams"])}
            self.recipe, self.made_by = Recipe(**self.head["recipe"]), dict(self.head["made_by"])
            self.name, self.organs = str(self.head["name"]), tuple(map(str, self.head["organs"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: its head is damaged: {error}") from error
        self.numbers = list(self.entries)
        bare = [number for number, entry in self.entries.items() if not entry.organs]
        if labelled and bare:
            raise ValueError(f"{why}: needs organ masks, and {path} has none of exam {bare[0]:02d}")
        self.labelled = labelled

    def read(self, number: int, organs: Sequence[str]) -> UprightExam:
        """One exam, with its organ values when masks are needed. ``ValueError`` naming the file when arrays are damaged
        or an organ value is above the number of ``organs``."""
        entry = self.entries[number]
        stored = self.array(f"voxels_{number}")
        if stored.ndim != 4 or stored.dtype != np.uint8 or len(stored) != np.dtype(entry.voxels).itemsize:
            raise ValueError(f"{self.place}: voxels of exam {number:02d} are damaged")
        slices = join_bytes(stored, entry.voxels).astype(np.float32)
        found = self.read_organs(number, slices.shape, organs) if self.labelled else None
        file = f"exam {number:02d}"
        where = f"{self.place}: {file}"
        return UprightExam(number, file, where, slices, found, entry.spacing_mm, entry.oriented)

    def read_organs(self, number: int, shape: tuple[int, ...], organs: Sequence[str]) -> Organs:
        """The organ values of an annotated exam, uint8 ``shape``. ``ValueError`` as ``read``."""
        found: Organs = self.fitting(f"organs_{number}", shape).astype(np.uint8)
        if found.max() > len(organs):
            names = f"{len(organs)} ({', '.join(organs)})"
            raise ValueError(f"{self.place}: exam {number:02d} holds an organ value outside 0 to {names}")
        return found

    def superpixels(self, scans: Sequence[UprightExam], recipe: Recipe, cache: str | None, workers: int) -> list[Maps]:
        """The packed superpixels of every scan, uint16 (S, H, W); ``cache`` and ``workers`` play no part.
        ``ValueError`` when ``recipe`` is another one, or another version of this program's made them."""
        for name, packed in asdict(self.recipe).items():
            asked = getattr(recipe, name)
            if asked != packed:
                raise ValueError(
                    f"data.{name}: {asked} asked for, but {self.place} holds superpixels made with {packed}; "
                    f"set {name} to {packed}, or pack the exams again with {name}={asked}"
                )
        if self.made_by.get("superpixels") != SUPERPIXELS:
            made = self.made_by.get("superpixels")
            raise ValueError(
                f"{self.place}: superpixels of version {made}, this program makes version {SUPERPIXELS}; "
                "pack the exams again"
            )
        return [self.fitting(f"superpixels_{s.number}", s.slices.shape).astype(np.uint16) for s in scans]

    def sites(self, numbers: Sequence[int]) -> Tensor | None:
        """Int64, the site of each exam; None for a set without sites."""
        found = [self.entries[number].site for number in numbers]
        return None if None in found else torch.tensor(found)

    def fitting(self, key: str, shape: tuple[int, ...]) -> Array:
        """An array of whole numbers, one for each voxel."""
        found = self.array(key)
        if found.shape != shape or found.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"{self.place}: {key} is {found.dtype} {found.shape}, expected {shape}; damaged")
        return found

    def array(self, key: str) -> Array:
        """One array of the file."""
        return read_archive(self.place, (key,))[key]


def is_archive(place: Path) -> bool:
    """Whether ``place`` is meant as a packed file: one, or a name like one's that is not there."""
    return place.is_file() or (place.suffix == ".npz" and not place.is_dir())


def read_head(path: Path) -> dict[str, Any]:
    """The facts of a packed file. ``ValueError`` when it is missing, damaged, or of another kind or version."""
    if HEAD not in archive_names(path):
        raise ValueError(f"{path}: not packed episodes (`sslmed data pack episodes ROOT OUT.npz` makes them)")
    try:
        head = json.loads(str(read_archive(path, (HEAD,))[HEAD].item()))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: its head is damaged: {error}") from error
    if not isinstance(head, dict) or head.get("kind") != KIND or not isinstance(head.get("version"), int):
        raise ValueError(f"{path}: not packed episodes (`sslmed data pack episodes ROOT OUT.npz` makes them)")
    if head["version"] > VERSION:
        found = f"version {head['version']}, this program reads version {VERSION}"
        raise ValueError(f"{path}: written by a newer sslmed ({found}); update it here or pack the exams again")
    return head


def read_entry(said: Mapping[str, Any]) -> Entry:
    """One exam's facts. ``ValueError``, ``KeyError`` or ``TypeError`` when they are not what was written."""
    row, column, between = said["spacing_mm"]
    entry = Entry(**{**said, "spacing_mm": (float(row), float(column), float(between))})
    if entry.voxels not in TYPES:
        raise ValueError(f"voxels of type {entry.voxels!r}")
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
) -> Path:
    """Write all exams of the folder ``root`` with their masks, where there are any, into the file ``out`` (a new one,
    ``.npz``), and return it. Arguments are those of ``Episodes``. The same exams give the same bytes.

    ``ValueError``: what ``Episodes`` says of a file, a mask without an image, ``out`` that is there already or has
    another suffix. ``out`` is written whole or not at all.
    """
    out, folder = Path(out), Path(root)
    if out.suffix != ".npz":
        raise ValueError(f"{out}: episodes are packed into one file; give a name that ends in .npz")
    if out.exists():
        raise ValueError(f"{out}: is there already; remove it or give a new name")
    recipe = Recipe(float(scale), float(sigma), int(min_size), float(body_threshold))
    source, scans = ExamFolder(folder, False, ""), read_all(folder, organs)
    sites = source.sites(source.numbers)
    maps = source.superpixels(scans, recipe, cache, workers)
    arrays: Arrays = {}
    exams = []
    for row, (scan, found) in enumerate(zip(scans, maps, strict=True)):
        stored, said = store(scan, found, None if sites is None else int(sites[row]))
        arrays |= stored
        exams.append(said)
        note(f"exam {scan.number:02d}: {len(scan.slices)} slices, {'with' if said['organs'] else 'no'} organ masks")
    facts = {"kind": KIND, "version": VERSION, "name": source.name, "organs": list(organs), "recipe": asdict(recipe)}
    made_by = {"superpixels": SUPERPIXELS, "scikit-image": version("scikit-image")}
    arrays[HEAD] = np.array(json.dumps(facts | {"made_by": made_by, "exams": exams}))
    if (folder / "phantom.json").is_file():
        arrays[PHANTOM] = np.array((folder / "phantom.json").read_text(encoding="utf-8"))
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, stream.getvalue())
    note(f"{out}: {len(scans)} exams, {out.stat().st_size:,} bytes")
    return out


def read_all(folder: Path, organs: Sequence[str]) -> list[UprightExam]:
    """Every exam of a folder, with its mask where it has one. ``ValueError`` as ``read_scan``, also for a constant
    volume and a mask without an image."""
    images, masks = list_exams(folder)
    for number in sorted(masks.keys() - images.keys()):
        raise ValueError(f"{masks[number]}: has no image_... beside it")
    scans = [read_upright_exam(number, path, masks.get(number), organs) for number, path in images.items()]
    for scan in scans:
        scan.moments()
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
    """The float32 values in the first of ``TYPES`` that gives all of them back bit for bit."""
    low, high = float(voxels.min()), float(voxels.max())
    for kind in TYPES[:-1]:
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            stored: Array = voxels.astype(kind)
            if np.array_equal(stored.astype(np.float32).view(np.uint32), voxels.view(np.uint32)):
                return stored
    return voxels.astype(TYPES[-1])


def split_bytes(values: Array) -> Array:
    """Uint8 (B, ...) of values (...) of B bytes: their first bytes, then their second ones. Deflate finds more in
    them so."""
    split = values[..., None].view(np.uint8)
    return np.ascontiguousarray(np.moveaxis(split, -1, 0))


def join_bytes(planes: Array, kind: str) -> Array:
    """The values of the type ``kind`` that ``split_bytes`` took apart."""
    joined: Array = np.ascontiguousarray(np.moveaxis(planes, 0, -1)).view(kind)[..., 0]
    return joined
