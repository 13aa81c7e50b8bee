"""Abdominal volumes with organ masks as NIfTI; a sample of the dataset is one exam, or one slice."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sslmed_dist.data.dataset import Item, Split, Stored, select_split
from sslmed_dist.data.exams.exam_dataset import ExamDataset
from sslmed_dist.data.exams.exam_layouts import NAME as NAME
from sslmed_dist.data.exams.exam_layouts import find_layout
from sslmed_dist.data.exams.exam_masks import ORGANS as ORGANS
from sslmed_dist.data.exams.exam_masks import (
    OrganTable,
    file_name,
    organ_table,
    pairs_of,
    read_mask,
    read_volume,
    stored_scan,
)
from sslmed_dist.data.exams.exam_set import draw_slices, parts_of, read_sites
from sslmed_dist.data.scans.nifti import axial_slices
from sslmed_dist.data.scans.padding import fill_padding, padding_notices
from sslmed_dist.strips import MOST_ASPECT

PERCENTILES = (0.5, 99.5)  # of a volume's voxels: intensities that become 0 and 1
SLICE_LIMIT = 4096  # slice s of exam n has the sample id 4096 n + s
BAR = 1 / 16  # standard deviation of the bar that shows a position, as a share of the side
Unit = Literal["exam", "slice", "stack"]
Show = Literal["pixels", "position"]


@dataclass(frozen=True)
class Exam:
    """The non-empty slices of one volume."""

    number: int
    slices: Tensor  # (S, 1, H, W) float32 in [0, 1]; rows run anterior to posterior, columns patient right to left
    kept: list[int]  # the slices' numbers along the superior axis of the canonical volume, (S,)
    present: Tensor | None  # (S, L) float32: 1 where the organ is in the slice; None without a label file
    facts: dict[str, Any]  # the exam's part of ``records``


class Abdominal(ExamDataset):
    """Exams ``image_PP.nii[.gz]`` with organ masks ``label_PP.nii[.gz]`` (all or none) in one folder, as CHAOS T2-SPIR
    is packed (Kavur et al. 2021), or a set in another of the layouts of ``exam_layouts``, whose own names of organs
    count (``exam_masks.organ_table``). ``sites.csv`` (id,site) gives the sites, where there is one.

    unit "exam": a sample is an exam, its id is PP. ``fetch`` draws one of its non-empty slices (those with more than
    one value), uniformly, keyed by (seed, "slice", epoch, id, draw), or with ``clip`` so many of them. unit "slice": a
    sample is a non-empty slice, its id is 4096 PP + slice number. unit "stack": a sample is ``stack`` non-empty slices
    that follow each other (the last of an exam may have fewer), of which ``fetch`` draws as of an exam; its id is that
    of its first slice. Labels are float32 (N, L): 1 where organ ``organs[k]`` (mask value k + 1) has ``min_voxels``
    voxels or more in some slice of the sample; without masks int64 -1. groups are exam numbers.
    Intensities: each volume is clipped to its 0.5 and 99.5 percentiles and scaled to [0, 1], float32. The volume is
    turned to right-anterior-superior and cut along its third axis. With ``size`` slices are zero-padded to a square and
    resized (bilinear, antialiased). They stay in memory.
    show "position": in place of each slice stands a drawing of where in its volume it lies (``position_bars``) and
    nothing of what it shows. Whatever is told from those drawings, an encoder need not see an organ to tell.
    split: by patient, ``val_fraction`` and ``test_fraction`` of the exams, keyed by ``seed``; or with ``fold`` the
    exams of cross-validation in ``folds`` parts (``fold_splits``).
    """

    def __init__(
        self,
        root: str | Path,
        split: Split = "all",
        unit: Unit = "exam",
        size: int | None = None,
        organs: tuple[str, ...] = ORGANS,
        min_voxels: int = 1,
        val_fraction: float = 0.0,
        test_fraction: float = 0.0,
        seed: int = 0,
        clip: int | None = None,
        stack: int = 5,
        show: Show = "pixels",
        fold: int | None = None,
        folds: int = 5,
    ) -> None:
        """``ValueError`` naming the file: a missing or mismatched mask, not 3-D, NaN, constant, truncated; and for a
        clip of slices, a stack of none, or a fold that is not there or stands beside fractions."""
        if clip is not None and unit == "slice":
            raise ValueError("data.clip: a sample of unit slice is one slice; allowed: unit exam or stack, or no clip")
        if stack < 1:
            raise ValueError(f"data.stack: expected a number of slices, 1 or more, got {stack}")
        folder = Path(root)
        layout = find_layout(folder)
        files, table = pairs_of(layout), organ_table(layout, organs, folder)
        part = parts_of(list(files), (val_fraction, test_fraction), fold, folds, seed, str(folder))
        numbers = [list(files)[i] for i in select_split(part, split, str(folder)).tolist()]
        exams = [
            read_exam(exam_number, *files[exam_number], folder=folder, organs=table, min_voxels=min_voxels)
            for exam_number in numbers
        ]
        self.kept = {exam.facts["file"]: stored_scan(folder, files[exam.number][0]) for exam in exams}
        # the slices of all exams in one tensor; those of sample n are rows starts[n] ... starts[n] + counts[n] - 1
        self.images = stack_slices(exams, size, folder)  # (S, 1, H, W)
        if show == "position":
            self.images = position_bars(torch.cat([relative_places(exam) for exam in exams]), *self.images.shape[2:])
        cuts = [pieces(len(exam.kept), {"exam": len(exam.kept), "slice": 1, "stack": stack}[unit]) for exam in exams]
        counts = torch.tensor([len(piece) for cut in cuts for piece in cut])  # (N,)
        self.starts = torch.cumsum(counts, 0) - counts
        sites = read_sites(folder / "sites.csv", numbers)
        # samples per exam: what is known of an exam is repeated for each of its samples
        repeat = torch.tensor([len(cut) for cut in cuts])  # (E,)
        exam_numbers = torch.tensor(numbers).repeat_interleave(repeat)
        firsts = torch.tensor([exam.kept[piece[0]] for exam, cut in zip(exams, cuts, strict=True) for piece in cut])
        super().__init__(
            counts=counts,
            clip=clip,
            name=folder.name,
            ids=exam_numbers if unit == "exam" else exam_numbers * SLICE_LIMIT + firsts,
            labels=sample_labels(exams, cuts),
            classes=() if exams[0].present is None else table.names,
            channels=1,
            bits=16,
            groups=exam_numbers.clone(),
            sites=None if sites is None else sites.repeat_interleave(repeat),
            records=sample_records(exams, cuts, unit),
            notices=padding_notices([bool(exam.facts.get("replaced")) for exam in exams]),
        )

    def fetch(self, positions: Tensor, *, seed: int, epoch: int, draw: Tensor) -> Item:
        if self.clip is not None:
            return super().fetch(positions, seed=seed, epoch=epoch, draw=draw)
        drawn = draw_slices(self.counts[positions], self.ids[positions], seed=seed, epoch=epoch, draw=draw)
        rows = self.starts[positions] + drawn
        return self.item(self.images.index_select(0, rows.to(self.device)), positions, draw)

    def slices(self, position: int, numbers: Tensor) -> Tensor:
        return self.images.index_select(0, (self.starts[position] + numbers).to(self.device)).cpu()

    def value_range(self) -> tuple[float, float]:
        return (0.0, 1.0)

    def stored(self, position: int) -> Stored:
        return self.kept[self.records[position]["file"]]

    def to(self, device: str | torch.device) -> Self:
        clone = super().to(device)
        clone.images = self.images.to(clone.device)
        return clone

    def exams(self) -> dict[int, Tensor]:
        """Positions (int64) of the samples of each exam, by exam number."""
        return {
            int(exam_number): torch.nonzero(self.groups == exam_number)[:, 0]
            for exam_number in torch.unique(self.groups)
        }


def read_exam(
    number: int, image: Path, mask: Path | None, *, folder: Path, organs: OrganTable, min_voxels: int
) -> Exam:
    """Read, scale and cut one exam of the set in ``folder``. ``ValueError`` as ``read_volume`` and ``read_mask``, also
    for too many slices and for a constant volume."""
    volume = read_volume(image)
    voxels = volume.voxels
    padded = fill_padding(voxels)
    require_slices(voxels.shape, str(image))
    # numbers of the slices in which not all voxels are equal
    filled_slices = np.nonzero(np.ptp(voxels, axis=(0, 1)) > 0)[0]
    low, high = (float(value) for value in np.percentile(voxels, PERCENTILES))
    if not low < high:
        raise ValueError(f"{image}: the volume is constant ({low}) between its 0.5 and 99.5 percentiles")
    scaled = (np.clip(voxels, low, high) - np.float32(low)) / np.float32(high - low)
    present = None
    if mask is not None:
        labels = read_mask(mask, voxels.shape, volume.affine, organs)
        # (K, L) voxels of each organ in each slice; then only the slices that are kept
        voxel_counts = np.stack([(labels == k + 1).sum(axis=(0, 1)) for k in range(len(organs.names))], 1)
        present = torch.from_numpy((voxel_counts >= max(min_voxels, 1)).astype(np.float32))[filled_slices]
    record = {"file": file_name(folder, image), "spacing_mm": volume.spacing, "shape": voxels.shape}
    record |= {"replaced": list(padded)} if padded else {}
    return Exam(
        number,
        torch.from_numpy(axial_slices(scaled[:, :, filled_slices]))[:, None],
        filled_slices.tolist(),
        present,
        record,
    )


def require_slices(shape: tuple[int, ...], where: str) -> None:
    """``ValueError`` for a volume (I, J, K) of more slices than can be numbered, or of slices so narrow that padding
    them to a square would take far more memory than they do."""
    if shape[2] > SLICE_LIMIT:
        raise ValueError(f"{where}: {shape[2]} slices, allowed at most {SLICE_LIMIT}")
    if max(shape[:2]) > MOST_ASPECT * min(shape[:2]):
        sides = f"slices of {shape[0]} x {shape[1]} pixels"
        raise ValueError(f"{where}: {sides}; allowed: at most {MOST_ASPECT} times as long as wide")


def stack_slices(exams: Sequence[Exam], size: int | None, folder: Path) -> Tensor:
    """The slices of all exams (S, 1, H, W), resized to ``size``. ``ValueError`` when they differ in size and ``size``
    is None."""
    if size is not None and size < 1:
        raise ValueError(f"{folder}: size must be at least 1, got {size}")
    shapes = {tuple(exam.slices.shape[2:]) for exam in exams}
    if size is None and len(shapes) > 1:
        raise ValueError(f"{folder}: slices of {len(shapes)} sizes {sorted(shapes)}; set size to bring them to one")
    return torch.cat([exam.slices if size is None else resize_square(exam.slices, size) for exam in exams])


def resize_square(slices: Tensor, size: int) -> Tensor:
    """Zero-pad (S, 1, H, W) to a square about its centre, then bilinear with antialiasing to (S, 1, size, size)."""
    height, width = slices.shape[2:]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = F.pad(slices, (left, side - width - left, top, side - height - top))
    if side == size:
        return square
    return F.interpolate(square, (size, size), mode="bilinear", antialias=True, align_corners=False).clamp(0.0, 1.0)


def relative_places(exam: Exam) -> Tensor:
    """Where each slice of an exam lies in its volume, float32 (S,): 0 the lowest, 1 the highest slice."""
    last: int = max(exam.facts["shape"][2] - 1, 1)
    return torch.tensor(exam.kept, dtype=torch.float32) / last


def position_bars(places: Tensor, height: int, width: int) -> Tensor:
    """A soft bar across an image, the lower in it the higher the place: float32 (S,) in [0, 1] -> (S, 1, H, W), a
    normal curve over the rows with the standard deviation ``BAR`` of the height, 1 in its middle."""
    rows = torch.linspace(0, 1, height)
    bars = torch.exp(-((rows - places[:, None]) ** 2) / (2 * BAR**2))  # (S, H)
    return bars[:, None, :, None].expand(-1, 1, height, width).contiguous()


def pieces(count: int, length: int) -> list[range]:
    """The numbers 0 to ``count`` - 1 cut into ranges of ``length``, the last perhaps shorter."""
    return [range(start, min(start + length, count)) for start in range(0, count, length)]


def sample_labels(exams: Sequence[Exam], cuts: Sequence[Sequence[range]]) -> Tensor:
    """(N, L) float32 organ presence per sample; int64 -1 (N,) without masks. ``cuts``: the slices of the samples of
    each exam."""
    # a sample has an organ when one of its slices has it: the maximum over slices
    present = [
        exam.present[list(piece)].amax(0)
        for exam, cut in zip(exams, cuts, strict=True)
        for piece in cut
        if exam.present is not None
    ]
    return torch.stack(present) if present else torch.full((sum(map(len, cuts)),), -1)


def sample_records(exams: Sequence[Exam], cuts: Sequence[Sequence[range]], unit: str) -> list[dict[str, Any]]:
    """File, geometry and slice number (of exams and stacks all slice numbers) of every sample."""
    records = []
    for exam, cut in zip(exams, cuts, strict=True):
        for piece in cut:
            numbers = exam.kept[piece.start : piece.stop]
            records.append(exam.facts | ({"slice": numbers[0]} if unit == "slice" else {"slices": numbers}))
    return records
