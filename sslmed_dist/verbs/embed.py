"""``sslmed embed``: the features of a folder of images."""

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from sslmed_dist import outputs
from sslmed_dist.atomic_files import write_atomically
from sslmed_dist.data.images.decode import read_picture
from sslmed_dist.data.images.files import ImageFiles
from sslmed_dist.data.images.folder import list_folder
from sslmed_dist.downstream import extract
from sslmed_dist.printable import plural
from sslmed_dist.training import build, pretrained

Names = Literal["file", "anonymous"]
THREADS, SHOWN = 2, 3  # of decoding; bad images that are named


@dataclass(frozen=True)
class Embedded:
    """How many images have features, and how many were left out because they cannot be read."""

    images: int
    skipped: int


def embed(
    source: Path,
    images: Path,
    out: Path,
    which: str = "last",
    part: pretrained.Part = "encoder",
    *,
    names: Names = "anonymous",
    skip_bad: bool = False,
    force: bool = False,
    note: Callable[[str], None] = lambda line: None,
) -> Embedded:
    """Write the features of every image in the folder ``images`` (any layout), in sorted order, to ``out`` (.npz).

    ``source``: a run folder, a checkpoint, or weights with their description (``pretrained.load``). The archive holds
    ``features`` float32 (N, D), ``index`` int64 (N,), the positions in the sorted list of all files, and ``skipped``
    int64 (K,), those of the images that were left out, and ``notices`` (L,) says what else of the folder was not read,
    and why, in counts. File names often name patients, so there are none, unless
    ``names`` is ``file``: then ``names`` (N,) are the paths below ``images``. ``note`` is told what is worth knowing.

    ``ValueError``: an image that cannot be read (with ``skip_bad`` it is left out and counted, but one must be left),
    or an ``out`` that must stay (``outputs.require_writable``).
    """
    import numpy as np

    outputs.require_writable([(out, outputs.is_features)], force=force)
    trained = pretrained.load(source, which, part=part)
    if trained.taken is not None:
        note(f"weights: {trained.taken}")
    if trained.unfinished:
        note(f"note: {trained.file.name} is of {trained.unfinished}")
    dataset, skipped = read_images(images, trained.settings, skip_bad, note)
    for line in dataset.notices:
        note(f"note: data: {line}")
    device = build.choose_device(trained.settings)
    views = build.standard_views(trained.settings, dataset).to(device)
    features = extract(trained.encoder.to(device), dataset, torch.arange(len(dataset)), views=views, device=device)
    arrays: dict[str, Any] = {
        outputs.MARK: np.array(outputs.FEATURES),
        "features": features.x.numpy(),
        "index": features.index.numpy(),
        "skipped": np.array(skipped, dtype=np.int64),
        "notices": np.array(dataset.notices, dtype=np.str_),
    }
    if names == "file":
        arrays["names"] = np.array(dataset.files)
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    write_atomically(out, stream.getvalue())
    return Embedded(len(features), len(skipped))


def read_images(
    images: Path, settings: Any, skip_bad: bool, note: Callable[[str], None]
) -> tuple[ImageFiles, list[int]]:
    """The images of a folder as the encoder takes them, and the positions of those that were left out. ``ValueError``
    as ``embed``."""
    if images.is_file():
        raise ValueError(f"{images}: is a file; expected a folder of images")
    channels, size = settings.method["channels"], settings.views["size"]
    listing = list_folder(images, labelled=False)
    bad: dict[int, None] = {}  # in order, and quick to look up
    for position, name in enumerate(listing.names if skip_bad else ()):
        try:
            read_picture(listing.root / name, size, channels)
        except ValueError as error:
            bad[position] = None
            if len(bad) <= SHOWN:
                note(f"left out: {error}")
    if skip_bad and len(bad) == len(listing.names):
        raise ValueError(f"{images}: none of {plural(len(bad), 'image')} can be read")
    # Those left out become a split of their own: the others keep their positions in the list of all files.
    splits = ["train" if position in bad else "test" for position in range(len(listing.names))]
    dataset = ImageFiles(replace(listing, splits=splits), "test", size=size, channels=channels, workers=THREADS)
    return dataset, list(bad)
