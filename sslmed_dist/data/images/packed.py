"""A packed set (``sslmed data pack``), read through memory maps; an image is decoded when it is fetched."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sslmed_dist.data.compact import Chained, FileRecords, Made, Picked, Words
from sslmed_dist.data.dataset import SPLITS, Dataset, Item, Split, Stored, content_hash, select_split
from sslmed_dist.data.images.decode import crop_centre
from sslmed_dist.data.images.files import in_threads
from sslmed_dist.data.images.jpeg import decode_jpeg
from sslmed_dist.data.images.shard_cache import at_hand
from sslmed_dist.data.images.shards import image_bytes, open_pack, read_index, read_names
from sslmed_dist.strips import middle_of_strip

CHUNK = 256  # raw images moved to a device at a time

PHANTOMS = "phantoms: generated images, no patients; the numbers show that the software works"


class Packed(Dataset):
    """What ``sslmed data pack`` wrote into ``root``: ids, labels, groups, classes and splits are those of the source.

    Images come as uint8 (channels, size, size). ``size`` None is the pack's short side, where nothing is resized. JPEG
    files are decoded in ``workers`` threads, resized to the shorter side ``size`` and cut to the middle square. Raw
    images are copied out of the memory map. ``to`` a GPU (``plan.resident``, the default) moves all raw images there,
    so they have to fit. JPEG files, and everything on a CPU, stay in the memory map, and the device gets the batch.
    ``decode`` "cuda" decodes JPEG on the GPU (torchvision's nvJPEG, whose bits differ from the CPU's by rounding);
    without ``plan.resident`` the batch goes back to the CPU.
    ``root`` may be an address of an object store (``s3://bucket/folder``). With ``cache``, a folder on a disk of the
    node, the first process there copies the pack of an address or a shared disk, and all read the copy (``at_hand``).
    """

    reads_addresses = True

    def __init__(
        self,
        root: str | Path,
        split: Split = "train",
        size: int | None = None,
        decode: Literal["cpu", "cuda"] = "cpu",
        workers: int = 2,
        cache: str | None = None,
        cache_gib: float | None = None,
    ) -> None:
        """``ValueError``: what ``at_hand`` refuses; no such split; the name of a shard that is cut off, missing or of
        another pack; ``decode`` "cuda" where torch or torchvision cannot; a first image that cannot be decoded (it is
        read as a test)."""
        pack = open_pack(at_hand(root, cache, cache_gib))
        self.blobs, self.form, self.short = pack.blobs, str(pack.summary["format"]), int(pack.summary["short"])
        self.size, self.workers, self.decode_on = self.short if size is None else size, workers, torch.device(decode)
        if self.size < 1 or workers < 0:
            raise ValueError(f"{root}: size must be at least 1 and workers at least 0, got {self.size} and {workers}")
        splits = pack.columns["splits"]
        split_order: tuple[Split, ...] = ("train", "val", "test")
        self.splits = [name for code, name in enumerate(split_order) if bool((splits == code).any())]
        chosen = select_split(Words(splits.numpy(), SPLITS), split, str(root))  # (n,) rows of the pack
        columns = pack.columns
        if len(chosen) < len(splits):  # otherwise the columns are taken as they are
            columns = {key: values[chosen] for key, values in pack.columns.items()}
        same = torch.equal(columns["groups"], columns["ids"])  # as of every set without patients
        # where the bytes of each image lie: number of the shard, first byte in it, bytes; each (n,)
        self.shard, self.starts, self.sizes = (columns[key] for key in ("shard", "starts", "sizes"))
        self.images: Tensor | None = None
        self.maps: dict[int, np.memmap[Any, np.dtype[np.uint8]]] = {}
        super().__init__(
            name=pack.summary["name"],
            ids=columns["ids"],
            labels=columns["labels"],
            classes=pack.summary["classes"],
            channels=int(pack.summary["channels"]),
            groups=None if same else columns["groups"],
            records=FileRecords(
                Picked(PackNames([blob.with_suffix(".npz") for blob in pack.blobs], len(splits)), chosen)
            ),
            notices=[PHANTOMS] if pack.summary.get("phantom") is True else [],
        )
        if decode == "cuda":
            require_nvjpeg(self.form)
        self.read(torch.tensor([0]))

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the memory maps out: one would be pickled as all of its bytes. The copy opens its own."""
        return {**self.__dict__, "maps": {}}

    def fetch(self, positions: Tensor, *, seed: int, epoch: int, draw: Tensor) -> Item:
        if self.images is not None:
            return self.item(self.images.index_select(0, positions.to(self.device)), positions, draw)
        return self.item(self.read(positions), positions, draw)

    def value_range(self) -> tuple[float, float]:
        return (0.0, 255.0)

    def stored(self, position: int) -> Stored:
        start, size, shard = (int(values[position]) for values in (self.starts, self.sizes, self.shard))

        def digest() -> str:
            return content_hash(image_bytes(self.blob(shard), start, start + size)).hex()

        return Stored(digest, self.records[position]["file"], size)

    def to(self, device: str | torch.device) -> Self:
        moved = super().to(device)
        in_memory = self.form == "raw" and moved.device.type != "cpu"
        moved.images = self.load(moved.device) if in_memory else None
        return moved

    def load(self, device: torch.device) -> Tensor:
        """All images of the split, uint8 (N, channels, size, size) on ``device``, read ``CHUNK`` at a time."""
        images = torch.empty(len(self), self.channels, self.size, self.size, dtype=torch.uint8, device=device)
        # in parts, so that the CPU never holds all images beside the device
        for start in range(0, len(self), CHUNK):
            rows = torch.arange(start, min(start + CHUNK, len(self)))
            images[start : start + CHUNK] = self.read(rows).to(device)
        return images

    def blob(self, shard_number: int) -> "np.memmap[Any, np.dtype[np.uint8]]":
        """The bytes of a shard's images, mapped when they are asked for the first time."""
        if shard_number not in self.maps:
            self.maps[shard_number] = np.memmap(self.blobs[shard_number], np.uint8, "r")
        return self.maps[shard_number]

    def read(self, positions: Tensor) -> Tensor:
        """The images at ``positions`` (int64 (B,)) from the disk, uint8 (B, channels, size, size). ``ValueError`` names
        the shard and the image that cannot be decoded."""
        # (position, shard, (first byte, end)) of each image of the batch
        starts = self.starts[positions]
        spans = zip(starts.tolist(), (starts + self.sizes[positions]).tolist(), strict=True)
        rows = list(zip(positions.tolist(), self.shard[positions].tolist(), spans, strict=True))
        if self.form == "raw":
            stored = torch.empty(len(rows), self.channels, self.short, self.short, dtype=torch.uint8)  # (B, C, H, W)
            for image, (_, shard, (start, end)) in zip(stored, rows, strict=True):
                image.view(-1).numpy()[...] = self.blob(shard)[start:end]
            return fit(stored, self.size)
        # what an error calls each image, and its JPEG file, uint8 (bytes,)
        where = [f"{self.blobs[shard]}: image {int(self.ids[position])}" for position, shard, _ in rows]
        jpeg_files = [image_bytes(self.blob(shard), *span) for _, shard, span in rows]
        if self.decode_on.type == "cuda":
            return torch.stack([fit(image, self.size) for image in decode_on_gpu(jpeg_files, self.channels, where[0])])

        def decode(row: int) -> Tensor:
            return fit(decode_jpeg(jpeg_files[row], self.channels, where[row]), self.size)

        return torch.stack(in_threads(self.workers, decode, range(len(rows))))


class PackNames(Made[str]):
    """The names of the source's files of a pack's images, in the pack's order. They are read when the first one is
    asked for: a worker that only trains never holds them."""

    def __init__(self, indices: Sequence[Path], length: int) -> None:
        self.indices, self.length = list(indices), length

    @cached_property
    def names(self) -> Sequence[str]:
        """All of them."""
        return Chained([read_names(read_index(index)) for index in self.indices])

    def __len__(self) -> int:
        return self.length

    def make(self, position: int) -> str:
        return self.names[position]


def fit(images: Tensor, size: int) -> Tensor:
    """uint8 (..., C, size, size) from (..., C, H, W): shorter side resized (bilinear, antialiased), cut to the
    middle square."""
    part = middle_of_strip(images.shape[-2], images.shape[-1], size)
    if part is not None:
        top, bottom, left, right = part
        images = images[..., top:bottom, left:right].contiguous()
    height, width = images.shape[-2:]
    if min(height, width) != size:
        scale = size / min(height, width)
        shape = (max(size, round(height * scale)), max(size, round(width * scale)))
        # resize in float32 with all leading dimensions as one, then round back to uint8
        batch = images.view(-1, *images.shape[-3:]).to(torch.float32)
        resized = F.interpolate(batch, shape, mode="bilinear", antialias=True, align_corners=False)
        images = resized.round().clamp(0.0, 255.0).to(torch.uint8).view(*images.shape[:-2], *shape)
    return crop_centre(images, size)


def require_nvjpeg(form: str) -> None:
    """``ValueError`` where JPEG cannot be decoded on a GPU: raw shards, no GPU, a torchvision without nvJPEG."""
    if form != "jpeg":
        raise ValueError("data.decode: cuda is for jpeg shards, these are raw; allowed here: cpu")
    if not torch.cuda.is_available():
        raise ValueError("data.decode: cuda asked for, but torch sees no CUDA device; allowed here: cpu")
    from torchvision.io import encode_jpeg

    try:
        decode_on_gpu([encode_jpeg(torch.zeros(3, 16, 16, dtype=torch.uint8))], 3, "probe")
    except ValueError as error:
        raise ValueError(
            f"data.decode: this torchvision cannot decode JPEG on a GPU ({error}); allowed: cpu"
        ) from error


def decode_on_gpu(files: list[Tensor], channels: int, where: str) -> list[Tensor]:
    """JPEG files (uint8 (bytes,) each, on the CPU) as uint8 (channels, H, W) on the current GPU.

    ``ValueError`` begins with ``where``, the first of the batch: the decoder does not say which file it failed on.
    """
    from torchvision.io import ImageReadMode
    from torchvision.io import decode_jpeg as decode

    mode: Any = ImageReadMode.RGB if channels == 3 else ImageReadMode.GRAY
    try:
        images: list[Tensor] = decode(files, mode, device="cuda")
    except RuntimeError as error:
        raise ValueError(f"{where} or one after it in the batch: {str(error).splitlines()[0]}") from error
    return images
