"""``pack``: write a set of image files as shards that are read by memory map."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sslmed_dist import registry
from sslmed_dist.atomic_files import write_atomically
from sslmed_dist.data import DATASETS
from sslmed_dist.data.compact import Words
from sslmed_dist.data.dataset import SPLITS
from sslmed_dist.data.exams.exam_archive import pack_episodes
from sslmed_dist.data.exams.exams import pack_exams
from sslmed_dist.data.images.copies import sizes_and_times
from sslmed_dist.data.images.files import ImageFiles
from sslmed_dist.data.images.pack_state import STATE, is_packed
from sslmed_dist.data.images.shard_writing import Shard, write_shard
from sslmed_dist.data.images.shards import SHARD, SUMMARY, VERSION, Form, read_summary
from sslmed_dist.data.samples import by_readers
from sslmed_dist.data.workers import in_processes
from sslmed_dist.outputs import require_folder_name
from sslmed_dist.printable import plural, without_folders

LOOKED_AT = 100  # images whose size is looked at before packing
# Sets of exams, which become no shards of images: name of the set -> the function that packs it.
WHOLE: Mapping[str, Callable[..., Path]] = {"episodes": pack_episodes, "exams": pack_exams}


def pack_any(
    leaf: Mapping[str, Any],
    out: Path,
    *,
    workers: int,
    note: Callable[[str], None],
    force: bool = False,
    **form: Any,
) -> Path:
    """Pack the dataset ``leaf`` in the way that suits it: image files as shards (``pack``), sets of exams by a
    function of theirs (``WHOLE``). ``ValueError`` as theirs, and for a setting of ``pack`` that is given for a set of
    exams."""
    if leaf["name"] not in WHOLE:
        return pack(leaf, out, workers=workers, note=note, force=force, **form)
    # settings of image shards, and verify, mean nothing for these sets: refuse any that is not at its default
    changed_settings = [name for name, value in form.items() if value != signature(pack).parameters[name].default]
    if changed_settings:
        names = ", ".join("format" if name == "form" else name for name in changed_settings)
        raise ValueError(f"pack: {names}: for sets of image files; {leaf['name']} is packed as it is stored")
    packed_file: Path = registry.build(WHOLE, leaf, "pack", out=out, workers=workers, note=note, force=force)
    return packed_file


def pack(
    leaf: Mapping[str, Any],
    out: str | Path,
    *,
    form: Form = "jpeg",
    short: int = 256,
    quality: int = 90,
    rows: int = 8192,
    workers: int = 1,
    note: Callable[[str], None] = lambda line: None,
    force: bool = False,
    verify: bool = False,
) -> Path:
    """Pack all splits of the dataset ``leaf`` ({"name", "root", arguments}; a set of image files) into the folder
    ``out``, and return it. Images keep their ids, labels, groups and splits.

    Every image is brought to the short side ``short``, as the dataset itself does for ``size`` = ``short``. ``form``
    "jpeg" stores all of it at ``quality`` (libjpeg, 4:2:0 chroma); it is cut to the square when read. "raw" stores its
    middle square, ``channels x short x short`` bytes, bit-equal to the dataset's. A shard holds ``rows`` images;
    ``workers`` processes write shards side by side.
    A run that was killed goes on with the first shard that is not complete and ends with the same files. ``force``
    replaces another pack in ``out``, and what was packed of files that have changed since. A pack that is there is
    looked at by the sizes of its files and by the sizes and times of the images; with ``verify`` by all their bytes.
    Damaged shards are written anew. ``note`` is told of each finished shard, and of what is left out.
    ``ValueError``: another dataset, an argument out of range, an image that cannot be read, a folder of something else,
    images that have changed since they were packed.
    """
    for name, value, low, high in (("short", short, 16, 4096), ("quality", quality, 1, 100), ("rows", rows, 1, 10**6)):
        if not low <= value <= high:
            raise ValueError(f"pack: {name} must be {low} to {high}, got {value}")
    if form not in ("jpeg", "raw") or workers < 1:
        raise ValueError(f"pack: format must be jpeg or raw and workers at least 1, got {form!r} and {workers}")
    require_folder_name(Path(out), "image files")
    source = open_source(leaf, short)
    for line in source.notices:
        note(f"note: data: {line}")
    summary = describe(source, leaf, {"format": form, "short": short, "quality": quality, "rows": rows})
    folder = prepare(Path(out), summary, force)
    shards = list(cut(source, folder, summary))
    if (folder / SUMMARY).exists() and is_packed(folder, summary, shards, note=note, force=force, verify=verify):
        return folder
    for line in enlarged(source, short):
        note(f"note: data: {line}")
    entries: list[dict[str, Any]] = []
    try:
        for entry in in_processes(write_shard, shards, workers):
            entries.append(entry)
            size = f"{entry['images']} images, {entry['bytes']:,} bytes"
            note(f"{entry['shard']}: {size} ({len(entries)} of {len(shards)})")
    except KeyboardInterrupt:
        remove_unfinished(folder)
        done = f"{len(entries)} of {plural(len(shards), 'shard')} are written"
        raise KeyboardInterrupt(f"{folder}: {done}; the same command goes on with the others") from None
    content = json.dumps({**summary, "shards": entries}, indent=1) + "\n"
    write_atomically(folder / SUMMARY, content.encode())
    return folder


def open_source(leaf: Mapping[str, Any], short: int) -> ImageFiles:
    """The dataset with all its splits at the size ``short``. ``ValueError`` for one that is not of image files."""
    makes = "root" not in signature(DATASETS[leaf["name"]]).parameters if leaf["name"] in DATASETS else False
    if makes:
        raise ValueError(f"pack: {leaf['name']} is made and not read, so there is nothing to pack; it is used as it is")
    registry.check(DATASETS, leaf, "data", ("split", "size"))
    constructor = DATASETS[leaf["name"]]
    source = None
    if leaf["name"] != "packed" and "size" in signature(constructor).parameters:
        source = registry.build(DATASETS, leaf, "data", split="all", size=short)
    if not isinstance(source, ImageFiles) or source.bits != 8:
        raise ValueError(f"pack: {leaf['name']} is not a set of 8-bit image files; it is read as it is")
    return source


def enlarged(source: ImageFiles, short: int) -> list[str]:
    """A line where some of the first ``LOOKED_AT`` images have a shorter side below ``short``: they are stored larger
    than they are. An image that cannot be read is left to the packing, which names it."""
    from PIL import Image

    sides = []
    for name in source.files[:LOOKED_AT]:
        with contextlib.suppress(Exception), Image.open(source.listing.root / name) as picture:
            sides.append(min(picture.size))
    small = [side for side in sides if side < short]
    if not small:
        return []
    return [f"{len(small)} of the first {len(sides)} images are smaller than --short {short} and are stored enlarged"]


def describe(source: ImageFiles, leaf: Mapping[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """``pack.json`` without its list of shards; it is handed on, so it tells no folder. The fingerprint covers the
    settings and the name, label, group and split of every image, but not the folder that the files lie in."""
    identity = {"name": source.name, "classes": list(source.classes), "channels": source.channels, **settings}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    # zero bytes keep neighbouring names apart; little-endian int64 gives the same digest on every machine
    digest.update(os.fsencode("\0".join(source.listing.names)))
    digest.update("\0".join(source.listing.splits).encode())
    for values in (source.labels, source.groups):
        digest.update(values.numpy().astype("<i8").tobytes())
    asked = {key: readable(value) for key, value in leaf.items()}
    header = {"kind": "sslmed pack", "version": VERSION, "fingerprint": digest.hexdigest()}
    root = source.listing.root
    # A pack of phantoms says so wherever it is copied to, so that no figure on them passes for one on patients.
    header |= {"phantom": True} if any((place / "phantom.json").is_file() for place in (root, root.parent)) else {}
    facts = {"images": len(source), "source": without_folders(asked), STATE: state_of(source)}
    return header | identity | facts


def state_of(source: ImageFiles) -> str:
    """The sha256 of sizes and times of change of the set's files, in order."""
    facts = by_readers(sizes_and_times(source.listing.root), list(source.files))
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def readable(value: Any) -> Any:
    """An argument as JSON can hold it."""
    return str(value) if isinstance(value, Path) else value


def prepare(folder: Path, summary: Mapping[str, Any], force: bool) -> Path:
    """Make the folder to write into, and delete the temporary files of a killed run, or with ``force`` another pack.
    ``ValueError`` when it holds another pack, or anything else."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: exists and is not a folder")
    folder.mkdir(parents=True, exist_ok=True)
    foreign_files = sorted(
        p.name for p in folder.iterdir() if not p.name.startswith((".", "shard-")) and p.name != SUMMARY
    )
    if foreign_files:
        raise ValueError(
            f"{folder}: holds {foreign_files[0]}, which is no part of a pack; give an empty or a new folder"
        )
    if (folder / SUMMARY).exists() and read_summary(folder)["fingerprint"] != summary["fingerprint"]:
        if not force:
            raise ValueError(
                f"{folder / SUMMARY}: another pack; give an empty or a new folder, or --force to replace it"
            )
        # The summary goes first: without it a folder is no pack, whatever happens before the new one is complete.
        (folder / SUMMARY).unlink()
        for path in folder.iterdir():
            if SHARD.fullmatch(path.stem) and path.suffix in (".bin", ".npz"):
                path.unlink()
    remove_unfinished(folder)
    return folder


def remove_unfinished(folder: Path) -> None:
    """Delete what a process that was ended has begun to write."""
    for path in folder.glob(".shard-*"):
        path.unlink(missing_ok=True)


def cut(source: ImageFiles, folder: Path, summary: Mapping[str, Any]) -> Iterator[Shard]:
    """The shards of a set: ``rows`` images each, in the order of the ids."""
    # an image's id is its row in the listing, so the ids pick the splits of the source's images
    splits = torch.tensor(Words.of(source.listing.splits, SPLITS).codes)
    columns = {"ids": source.ids, "labels": source.labels, "groups": source.groups, "splits": splits[source.ids]}
    rows = int(summary["rows"])
    for shard_number, start in enumerate(range(0, len(source), rows)):
        shard_rows = slice(start, start + rows)
        yield Shard(
            folder=folder,
            number=shard_number,
            root=source.listing.root,
            names=source.files[shard_rows],
            columns={key: values[shard_rows].numpy().astype(np.int64) for key, values in columns.items()},
            fingerprint=summary["fingerprint"],
            form=summary["format"],
            short=summary["short"],
            quality=summary["quality"],
            channels=source.channels,
        )
