"""What a dataset is: labelled images with stable sample ids, fetched a batch at a time as a pure function of its keys.

A sample's id is its position in the sorted full set (all splits one after another); subsets, folds and federated
partitions keep it, so the random order and the views of a sample are the same wherever it ends up.
"""

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from sslmed_dist.data.compact import Made, Picked, Words

Split = Literal["train", "val", "test", "all"]
Task = Literal["single", "multi"]
Item = dict[str, Tensor]
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Stored:
    """What a sample is kept in. ``digest`` computes a hash of its content, hexadecimal, the same on every machine.
    ``file`` is a path below the data's root and ``size`` its bytes; None and 0 where the content is in memory. Samples
    that are kept in one file share one object."""

    digest: Callable[[], str]
    file: str | None = None
    size: int = 0


class Dataset(ABC):
    """N samples. Everything but the images lies in memory on the CPU.

    name      of the set, for reports
    classes   names of the label values (task "single") or of the label columns ("multi"); empty when unlabelled
    task      "single": ``labels`` int64 (N,), -1 = unlabelled; "multi": float32 (N, L) of 0 and 1, and NaN
              where a label is missing
    channels  number of channels of an image; bits 8 or 16 is the depth the images were stored with
    ids       int64 (N,), unique; groups int64 (N,), patient or exam (the sample's id where neither is known)
    sites     int64 (N,) site or scanner, None where the data does not say
    records   one dict per sample of what must not leave the site (file name, geometry), or an empty list; never in a
              batch; those of large sets are made when they are asked for (``compact``)
    dropped   number of samples left out as duplicates, per split
    notices   what was left aside, guessed or replaced while reading, a line each, without a name of a file
    repeats   int64 (N,), how often a pass of training visits each sample; None is once each
    device    where ``fetch`` puts its tensors
    in_memory whether ``fetch`` only looks up images that lie in memory: nothing is decoded
    """

    in_memory = False

    def __init__(
        self,
        *,
        name: str,
        ids: Tensor,
        labels: Tensor,
        classes: Sequence[str],
        channels: int,
        bits: int = 8,
        groups: Tensor | None = None,
        sites: Tensor | None = None,
        records: Sequence[dict[str, Any]] = (),
        dropped: Mapping[str, int] | None = None,
        notices: Sequence[str] = (),
    ) -> None:
        """Raises ``ValueError`` when the set is empty; mismatched lengths are a programming error."""
        if len(ids) == 0:
            raise ValueError(f"{name}: holds no sample")
        self.name, self.ids, self.labels, self.classes = name, ids, labels, tuple(classes)
        self.channels, self.bits = channels, bits
        self.task: Task = "multi" if labels.ndim == 2 else "single"
        self.groups = ids if groups is None else groups
        self.sites = sites
        self.records: Sequence[dict[str, Any]] = records if isinstance(records, Made) else list(records)
        self.dropped: dict[str, int] = dict(dropped or {})
        self.notices = tuple(notices)
        self.repeats: Tensor | None = None
        self.device = torch.device("cpu")
        assert len(labels) == len(self.groups) == len(ids) and len(self.records) in (0, len(ids))
        assert sites is None or len(sites) == len(ids)
        ascending = bool((ids[1:] > ids[:-1]).all())  # as almost always; the other way takes memory
        assert ascending or len(torch.unique(ids)) == len(ids), "sample ids repeat"

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def fetch(self, positions: Tensor, *, seed: int, epoch: int, draw: Tensor) -> Item:
        """The batch at ``positions`` (int64 (B,), CPU) for the draw numbers ``draw`` (int64 (B,)): "images"
        (B, C, H, W), "labels" (B,) or (B, L), "index" = sample ids (B,), "draw" (B,), all on ``self.device``.
        A pure function of its arguments. ``ValueError`` for an image that cannot be read."""

    @abstractmethod
    def value_range(self) -> tuple[float, float]:
        """The image values that black and white (0 and 1 after scaling) stand for: (0, 255) for uint8."""

    def among(self, positions: Tensor) -> Self:
        """The same samples for who may see those at ``positions`` (int64 (n,)) alone, such as a site of a federation.
        It is this dataset, unless a sample shows something of another one."""
        return self

    def stored(self, position: int) -> Stored:
        """What the sample at ``position`` is kept in, to know it again. ``ValueError`` for a file that is gone."""
        at = torch.tensor([position])
        image = self.fetch(at, seed=0, epoch=0, draw=torch.zeros_like(at))["images"][0]
        return Stored(content_hash(image).hex)

    def to(self, device: str | torch.device) -> Self:
        """The same dataset whose ``fetch`` answers on ``device``. A dataset that holds images in memory copies them
        there as well."""
        moved = copy.copy(self)
        moved.device = torch.device(device)
        return moved

    def item(self, images: Tensor, positions: Tensor, draw: Tensor) -> Item:
        """The batch that ``fetch`` returns, on ``self.device``: ``images`` (B, C, H, W) of the samples at ``positions``
        (int64 (B,)) with their labels, ids and draw numbers."""
        sample_tensors = {"labels": self.labels[positions], "index": self.ids[positions], "draw": draw}
        return {name: value.to(self.device) for name, value in ({"images": images} | sample_tensors).items()}


class Subset(Dataset):
    """The samples of ``dataset`` at ``positions`` (int64 (n,), no repeats), with their ids, groups and sites."""

    def __init__(self, dataset: Dataset, positions: Tensor) -> None:
        """Raises ``ValueError`` when ``positions`` is empty."""
        positions = torch.as_tensor(positions, dtype=torch.int64).cpu()
        # a subset of a subset points straight into the full set, so a fetch is one look-up however often it was cut
        repeats = None if dataset.repeats is None else dataset.repeats[positions]
        if isinstance(dataset, Subset):
            positions = dataset.positions[positions]
            dataset = dataset.whole
        # ``whole`` is the full set, which others are subsets of too; ``dataset`` shows nothing beyond ``positions``
        self.whole: Dataset = dataset
        self.dataset: Dataset = dataset.among(positions)
        self.positions: Tensor = positions
        super().__init__(
            name=dataset.name,
            ids=dataset.ids[positions],
            labels=dataset.labels[positions],
            classes=dataset.classes,
            channels=dataset.channels,
            bits=dataset.bits,
            groups=dataset.groups[positions],
            sites=None if dataset.sites is None else dataset.sites[positions],
            records=Picked(dataset.records, positions) if dataset.records else (),
            dropped=dataset.dropped,
            notices=dataset.notices,
        )
        self.repeats = repeats
        self.device, self.in_memory = dataset.device, dataset.in_memory

    def fetch(self, positions: Tensor, *, seed: int, epoch: int, draw: Tensor) -> Item:
        return self.dataset.fetch(self.positions[positions], seed=seed, epoch=epoch, draw=draw)

    def value_range(self) -> tuple[float, float]:
        return self.dataset.value_range()

    def stored(self, position: int) -> Stored:
        return self.dataset.stored(int(self.positions[position]))

    def to(self, device: str | torch.device) -> "Subset":
        moved = Subset(self.whole.to(device), self.positions)
        moved.repeats = self.repeats
        return moved


class ArrayDataset(Dataset):
    """All images in one tensor (N, C, H, W): uint8, or float32 in [0, 1]."""

    in_memory = True

    def __init__(
        self,
        *,
        name: str,
        images: Tensor,
        labels: Tensor,
        classes: Sequence[str],
        ids: Tensor | None = None,
        groups: Tensor | None = None,
        sites: Tensor | None = None,
        records: Sequence[dict[str, Any]] = (),
        dropped: Mapping[str, int] | None = None,
    ) -> None:
        """``ids`` are 0, 1, ... when not given. ``ValueError`` for images of another shape or type."""
        if images.ndim != 4 or images.dtype not in (torch.uint8, torch.float32):
            shape_and_type = f"{tuple(images.shape)} {images.dtype}"
            raise ValueError(f"{name}: images must be uint8 or float32 (N, C, H, W), got {shape_and_type}")
        self.images = images
        super().__init__(
            name=name,
            ids=torch.arange(len(images)) if ids is None else ids,
            labels=labels,
            classes=classes,
            channels=images.shape[1],
            groups=groups,
            sites=sites,
            records=records,
            dropped=dropped,
        )
        assert len(images) == len(self.ids)

    def fetch(self, positions: Tensor, *, seed: int, epoch: int, draw: Tensor) -> Item:
        return self.item(self.images.index_select(0, positions.to(self.device)), positions, draw)

    def value_range(self) -> tuple[float, float]:
        return (0.0, 255.0) if self.images.dtype == torch.uint8 else (0.0, 1.0)

    def stored(self, position: int) -> Stored:
        return Stored(lambda: content_hash(self.images[position]).hex())

    def to(self, device: str | torch.device) -> Self:
        moved = super().to(device)
        moved.images = self.images.to(moved.device)
        return moved


def content_hash(image: Tensor) -> bytes:
    """128-bit BLAKE2b of an image's shape, type and bytes: equal for equal pictures on every machine."""
    array = image.contiguous().cpu().numpy()
    # the header tells images apart whose bytes agree but whose shapes or types do not
    header = f"{array.shape}{array.dtype.str}".encode()
    return hashlib.blake2b(header + array.tobytes(), digest_size=16).digest()


def duplicates(images: Tensor) -> Tensor:
    """Positions (int64, ascending) of the images (N, ...) that are equal to an earlier one.

    Dropping them keeps the first occurrence of every picture. In a set whose splits lie one after another (train, val,
    test) this also removes leaks between splits: of a picture in two splits the copy in the later one goes.
    """
    seen: set[bytes] = set()
    repeated = []
    for position, image in enumerate(images):
        digest = content_hash(image)
        if digest in seen:
            repeated.append(position)
        seen.add(digest)
    return torch.tensor(repeated, dtype=torch.int64)


def unlabelled(labels: Tensor) -> Tensor:
    """Bool (N,): the samples without a label (-1), of ``labels`` (N, L) those of which one is missing (NaN)."""
    known = labels >= 0  # false for NaN as well
    return ~(known if labels.ndim == 1 else known.all(1))


def select_split(splits: Sequence[str], split: str, where: str, hint: str = "") -> Tensor:
    """Positions (int64 (n,), ascending) of the samples of one ``split``, or of all samples for "all".

    ``splits`` has the split name of every sample. ``ValueError`` names the splits there are when ``split`` is none of
    them, and ends with ``hint``.
    """
    words = splits if isinstance(splits, Words) else Words.of(splits, tuple(dict.fromkeys(splits)))
    present = [name for code, name in enumerate(words.words) if bool((words.codes == code).any())]
    known = [name for name in SPLITS if name in present]
    if split != "all" and split not in known:
        raise ValueError(f"{where}: no split {split!r}; allowed: {', '.join([*known, 'all'])}{hint}")
    if split == "all":
        return torch.arange(len(words))
    return torch.from_numpy(np.flatnonzero(words.codes == words.words.index(split)))
