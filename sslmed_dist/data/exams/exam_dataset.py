"""A set of examinations: a sample is one series of slices, fetched as one keyed slice or as a clip of several."""

import copy
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from sslmed_dist import randomness
from sslmed_dist.data.dataset import Dataset, Item, Subset
from sslmed_dist.data.exams.exam_set import draw_slices


class NoSeries(ValueError):
    """No exam has the series that was asked for."""


class ExamDataset(Dataset):
    """N examinations, each with one series of slices in anatomical order; all slices of the set have one size.

    counts  int64 (N,), the number of slices of each exam, at least 1
    clip    None: ``fetch`` gives one slice of each exam. S: it gives S slices
    scanners  int64 (N,), a number for each scanner, None where the data does not say it

    ``labels`` of task "multi" are float32 (N, L): 1, 0, or NaN where a label is missing. Without any label they are
    int64 -1.
    """

    def __init__(
        self, *, counts: Tensor, clip: int | None = None, scanners: Tensor | None = None, **facts: Any
    ) -> None:
        """``facts`` are the arguments of ``Dataset``. ``ValueError`` for a clip of less than one slice."""
        if clip is not None and clip < 1:
            raise ValueError(f"data.clip: expected a number of slices, 1 or more, or null for one slice, got {clip}")
        super().__init__(**facts)
        assert len(counts) == len(self.ids) and int(counts.min()) > 0
        self.counts, self.clip, self.scanners = counts, clip, scanners

    @abstractmethod
    def slices(self, position: int, numbers: Tensor) -> Tensor:
        """The slices ``numbers`` (int64 (S,), in any order, repeats allowed) of the exam at ``position``: (S, C, H, W),
        on the CPU. ``ValueError`` for a file that cannot be read."""

    def reading(self) -> dict[str, Any]:
        """Arguments by which the dataset of this kind reads other exams as these were read; none by default."""
        return {}

    def fetch(self, positions: Tensor, *, seed: int, epoch: int, draw: Tensor) -> Item:
        """One slice: "images" (B, C, H, W), drawn uniformly, keyed by (seed, "slice", epoch, id, draw). A clip:
        "images" (B, S, C, H, W) and "length" int64 (B,): ``draw_clip`` of each exam; what follows its last slice is
        zero."""
        ids = self.ids[positions]
        if self.clip is None:
            drawn = draw_slices(self.counts[positions], ids, seed=seed, epoch=epoch, draw=draw)
            exams = zip(positions.tolist(), drawn, strict=True)
            return self.item(torch.cat([self.slices(p, number[None]) for p, number in exams]), positions, draw)
        clips = []
        for position, sample_id, number in zip(positions.tolist(), ids.tolist(), draw.tolist(), strict=True):
            count = int(self.counts[position])
            numbers = draw_clip(count, self.clip, seed=seed, epoch=epoch, sample_id=sample_id, draw=number)
            clips.append(self.slices(position, numbers))
        images = torch.stack([padded(clip, self.clip) for clip in clips])
        length = torch.tensor([len(clip) for clip in clips]).to(self.device)
        return self.item(images, positions, draw) | {"length": length}


def draw_clip(count: int, clip: int, *, seed: int, epoch: int, sample_id: int, draw: int) -> Tensor:
    """``clip`` different slice numbers of ``count``, ascending, int64; all of them where there are no more. They are
    drawn uniformly, keyed by (seed, "clip", epoch, id, draw)."""
    order = randomness.order(torch.arange(count), seed, "clip", epoch, sample_id, draw)
    return order[:clip].sort().values


def padded(slices: Tensor, length: int) -> Tensor:
    """``slices`` (S, C, H, W) followed by zeros, (length, C, H, W)."""
    out = slices.new_zeros((length, *slices.shape[1:]))
    out[: len(slices)] = slices
    return out


def exams_of(dataset: Dataset) -> tuple[ExamDataset, Tensor]:
    """The set of examinations that ``dataset`` is, or is a subset of, and the positions in it, int64 (N,).
    ``ValueError`` for another kind of dataset."""
    whole = dataset.dataset if isinstance(dataset, Subset) else dataset
    if not isinstance(whole, ExamDataset):
        raise ValueError(f"{dataset.name}: expected a set of examinations (mrnet, kneemri, exams, ...)")
    return whole, dataset.positions if isinstance(dataset, Subset) else torch.arange(len(dataset))


def whole_exam(dataset: Dataset, position: int) -> Tensor:
    """All slices (S, C, H, W) of the exam at ``position`` of ``dataset``. ``ValueError`` as ``exams_of``."""
    exams, places = exams_of(dataset)
    place = int(places[position])
    return exams.slices(place, torch.arange(int(exams.counts[place])))


def of_slices(dataset: Dataset) -> Dataset:
    """``dataset``, of examinations with a clip the same ones without it: a sample is one keyed slice."""
    whole = dataset.dataset if isinstance(dataset, Subset) else dataset
    if not isinstance(whole, ExamDataset) or whole.clip is None:
        return dataset
    single = copy.copy(whole)
    single.clip = None
    return Subset(single, dataset.positions) if isinstance(dataset, Subset) else single


def middle(images: Tensor, length: Tensor | None) -> Tensor:
    """(B, C, H, W): of clips (B, S, C, H, W) with ``length`` (B,) slices the middle one of each; images as they are."""
    if images.ndim != 5:
        return images
    place = torch.full((len(images),), images.shape[1]) if length is None else length
    return images[torch.arange(len(images), device=images.device), (place // 2).to(images.device)]
