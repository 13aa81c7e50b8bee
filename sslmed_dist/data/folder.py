"""Folders of image files, one folder per class or none, decoded when fetched."""

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sslmed_dist import randomness
from sslmed_dist.data.dataset import SPLITS, Dataset, Item, Split, select_split

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


class ImageFolder(Dataset):
    """``root/{train,val,test}/CLASS/*``, or ``root/CLASS/*``, or images without a class (labels -1) in place of CLASS.
    Files: png, jpg, jpeg, bmp, tif, tiff, at any depth below the class folder.

    Without split folders a file goes to test, val or train by a hash of (seed, its path below ``root``), in expected
    shares ``test_fraction``, ``val_fraction`` and the rest; adding a file moves no other. ids: positions in the list of
    all files sorted by path (of train, then val, then test).
    Images are decoded at ``fetch``, in ``workers`` threads: short side to ``size`` (bilinear, antialiased), centre crop
    to ``size`` x ``size``, to ``channels`` 1 (luminance) or 3. ``bits`` 8: uint8. ``bits`` 16: float32 in [0, 1], value
    / 65535 of a 16-bit grey file and value / 255 of an 8-bit one.
    """

    def __init__(
        self,
        root: str | Path,
        split: Split = "train",
        size: int = 224,
        channels: Literal[1, 3] = 3,
        bits: Literal[8, 16] = 8,
        val_fraction: float = 0.0,
        test_fraction: float = 0.0,
        seed: int = 0,
        workers: int = 2,
    ) -> None:
        """``ValueError``: no image, a class without one, a bad fraction; the first image is decoded as a probe."""
        self.root, self.size, self.workers = Path(root), size, workers
        if size < 1 or val_fraction < 0 or test_fraction < 0 or val_fraction + test_fraction >= 1:
            raise ValueError(f"{root}: size must be at least 1, val_fraction + test_fraction at least 0 and below 1")
        places = split_folders(self.root)
        if places and (val_fraction or test_fraction):
            raise ValueError(f"{root}: has folders {', '.join(places)}; val_fraction and test_fraction must be 0")
        files, classes = list_files(self.root, places)
        names = [path.relative_to(self.root).as_posix() for _, _, path in files]
        part = [name for name, _, _ in files] if places else keyed_parts(names, val_fraction, test_fraction, seed)
        chosen = select_split(part, split, str(root))
        self.files = [files[i][2] for i in chosen.tolist()]
        codes = {kind: code for code, kind in enumerate(classes)} | {"": -1}
        super().__init__(
            name=self.root.name,
            ids=chosen,
            labels=torch.tensor([codes[files[i][1]] for i in chosen.tolist()], dtype=torch.int64),
            classes=classes,
            channels=channels,
            bits=bits,
            records=[{"file": names[i]} for i in chosen.tolist()],
        )
        self.decode(0)

    def fetch(self, positions: Tensor, *, seed: int, epoch: int, draw: Tensor) -> Item:
        if self.workers > 0:
            with ThreadPoolExecutor(self.workers) as pool:
                images = list(pool.map(self.decode, positions.tolist()))
        else:
            images = [self.decode(position) for position in positions.tolist()]
        return self.item(torch.stack(images), positions, draw)

    def value_range(self) -> tuple[float, float]:
        return (0.0, 255.0) if self.bits == 8 else (0.0, 1.0)

    def to(self, device: str | torch.device) -> "ImageFolder":
        moved = copy.copy(self)
        moved.device = torch.device(device)
        return moved

    def decode(self, position: int) -> Tensor:
        """The image at ``position``: (channels, size, size). ``ValueError`` names its file when it cannot be read."""
        path = self.files[position]
        try:
            picture, deep = open_picture(path)
        except ValueError as error:
            raise ValueError(f"image {int(self.ids[position])} of {self.name}: {error}") from error
        if deep and self.bits == 8:
            raise ValueError(f"{path}: a 16-bit image in a set of 8-bit ones; set bits to 16")
        image = resize_picture(picture, self.size, self.channels, self.bits)
        top, left = ((side - self.size) // 2 for side in image.shape[1:])
        return image[:, top : top + self.size, left : left + self.size].contiguous()


def split_folders(root: Path) -> list[str]:
    """Those of train, val, test that are folders in ``root``. ``ValueError`` when ``root`` is no folder."""
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    return [name for name in SPLITS if (root / name).is_dir()]


def list_files(root: Path, places: Sequence[str]) -> tuple[list[tuple[str, str, Path]], tuple[str, ...]]:
    """((split folder or "all", class or "", path) of every image in order, class names). ``ValueError`` as the
    constructor of ``ImageFolder``."""
    trees = {name: read_tree(root / name) for name in places} or {"all": read_tree(root)}
    classes = tuple(sorted({name for tree in trees.values() for name in tree} - {""}))
    if classes and any("" in tree for tree in trees.values()):
        raise ValueError(f"{root}: some images lie in class folders and some outside of any")
    files = [(name, kind, path) for name, tree in trees.items() for kind in sorted(tree) for path in tree[kind]]
    empty = sorted(set(classes) - {kind for _, kind, _ in files})
    if empty or not files:
        found = f"class {empty[0]!r} has no image" if empty else "no image in it"
        raise ValueError(f"{root}: {found}; allowed: {', '.join(SUFFIXES)}")
    return files, classes


def read_tree(folder: Path) -> dict[str, list[Path]]:
    """Image files by class folder, sorted by path; those directly in ``folder`` under the name ""."""
    tree: dict[str, list[Path]] = {}
    flat = find_images(folder, "*")
    if flat:
        tree[""] = flat
    for place in sorted(folder.iterdir()):
        if place.is_dir() and not place.name.startswith("."):
            tree[place.name] = find_images(place, "**/*")
    return tree


def find_images(folder: Path, pattern: str) -> list[Path]:
    """The image files in ``folder``, hidden ones left out."""
    found = folder.glob(pattern)
    return sorted(p for p in found if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file())


def keyed_parts(names: Sequence[str], val_fraction: float, test_fraction: float, seed: int) -> list[str]:
    """The split of each file by a hash of (seed, path)."""
    u = randomness.uniform(seed, "split", torch.tensor([randomness.word(name) for name in names])).tolist()
    limits = (test_fraction, test_fraction + val_fraction)
    return ["test" if value < limits[0] else "val" if value < limits[1] else "train" for value in u]


def open_picture(path: Path) -> tuple[Any, bool]:
    """(a loaded PIL image, turned upright; whether it is 16-bit grey). ``ValueError`` naming a corrupt file, or one
    of a depth that is not supported (16-bit colour, 32-bit)."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            # Pillow reads 16-bit colour as 8-bit without a word; only the raw mode of the tiles tells
            raw = str(opened.tile[0][3]) if opened.tile else ""
            picture = ImageOps.exif_transpose(opened)
            picture.load()
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is corrupt or no image: {error}") from error
    deep = picture.mode.startswith("I;16") or (picture.mode == "I" and ";16" in raw)
    if not deep and (picture.mode in ("I", "F") or ";16" in raw):
        kind = "16-bit colour" if ";16" in raw else f"kind {picture.mode}"
        raise ValueError(f"{path}: pixels of {kind}; allowed: 8-bit grey or colour, 16-bit grey")
    return picture, deep


def resize_picture(picture: Any, size: int, channels: int, bits: int) -> Tensor:
    """Short side to ``size``, aspect kept: uint8 (C, H, W) for 8 bits, float32 in [0, 1] for 16."""
    from PIL import Image

    scale = size / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    deep = picture.mode.startswith("I")
    if not deep:
        picture = picture.convert("L" if channels == 1 else "RGB")
    if bits == 8:
        resized = np.array(picture.resize((width, height), Image.Resampling.BILINEAR))
        return torch.from_numpy(resized).reshape(height, width, channels).permute(2, 0, 1)
    values = np.asarray(picture).astype(np.float32) / np.float32(65535 if deep else 255)
    image = torch.from_numpy(values).reshape(*values.shape[:2], -1).permute(2, 0, 1)
    image = F.interpolate(image[None], (height, width), mode="bilinear", antialias=True, align_corners=False)[0]
    return image.clamp(0.0, 1.0).expand(channels, -1, -1)
