"""Slices with masks to train one-shot segmentation on, and complete scans with organ masks to evaluate it on."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from sslmed_dist import randomness
from sslmed_dist.arguments import located
from sslmed_dist.data.dataset import Dataset, Item, Split, Stored, content_hash, select_split
from sslmed_dist.data.exams.abdominal import ORGANS, SLICE_LIMIT
from sslmed_dist.data.exams.episode_slices import organ_maps, presence, pseudo_masks, standardise, usable
from sslmed_dist.data.exams.exam_archive import ExamArchive, is_archive
from sslmed_dist.data.exams.exam_folder import ExamFolder, UprightExam
from sslmed_dist.data.exams.exam_masks import OrganTable
from sslmed_dist.data.exams.exam_set import split_exams
from sslmed_dist.data.exams.folds import fold_exams
from sslmed_dist.data.exams.partners import Partners
from sslmed_dist.data.exams.superpixels import Recipe
from sslmed_dist.data.scans.padding import padding_notices

Masks = Literal["superpixels", "labelled", "organs"]


class Episodes(Dataset):
    """Exams ``image_PP.nii[.gz]`` in one folder as ``Abdominal`` reads them (orientation, ``label_PP``, ``sites.csv``),
    or a set in another of the layouts of ``exam_layouts``, whose own names of organs count; or the file that
    ``sslmed data pack episodes`` made of either: the same, bit for bit, read with numpy alone.

    masks "superpixels", for training without labels: a sample is a slice that has a superpixel (``superpixels.py``,
    computed on the raw intensities; label files need not exist). Slices with a voxel of an organ in ``exclude`` are
    left out ("setting 2" of Ouyang et al. 2020); this alone needs masks. ``fetch`` gives "images" (B, 1, H, W) and
    "mask" (B, H, W), uint8 0 or 1: one superpixel of the slice, drawn uniformly, keyed by (seed, "superpixel", epoch,
    id, draw). Labels are int64 -1.

    masks "labelled", for training with labels: a sample is a slice that shows an organ which is not in ``exclude``, and
    which another exam shows too. Slices with a voxel of an organ in ``exclude`` are left out as above. ``fetch`` gives
    "images" and "mask" of one of these organs, drawn uniformly, and "support_images" (B, 1, H, W) and "support_mask"
    (B, H, W) of another exam: one of all its and other exams' slices with that organ, drawn uniformly (``Partners``).
    The draws are keyed as above. Labels are int64 -1.

    masks "organs", for evaluation: every slice is a sample, exam by exam, from the lowest slice upwards; ``exclude``
    has no effect. ``fetch`` gives "images" and "organs" (B, H, W) uint8, values 0 to L. Labels are float32 (N, L): 1
    where the organ has a pixel in "organs".

    Sample ids are 4096 x exam number + slice number, groups are exam numbers. Images are float32 (x - mean) / sd over
    all voxels of the volume. With ``size`` they are padded to a square (with the volume's least value) and resized
    (bilinear, antialiased). Masks are padded with 0 and resized by the nearest neighbour; superpixels that become too
    small by it are not drawn. ``records``: "file", "slice" (number along the superior axis), "spacing_mm" (row, column,
    slice) of the fetched grid, and "oriented", False when the NIfTI header has neither an sform nor a qform code, so
    that left is a guess.
    ``fold`` k of the five of ``folds.py``: "test" is the fold's queries and then, last, its support; "train" is all
    other exams. ``inner`` j: of these other exams, the fold j of theirs, to choose by what no test exam has a part in.
    Without ``fold``: by patient, ``val_fraction`` and ``test_fraction``, keyed by ``seed``.
    ``scale``, ``sigma``, ``min_size``, ``body_threshold``: see ``Recipe``; ``cache``: the folder of the superpixel maps
    (None: "superpixels" in the user's cache folder, never beside the data; "": none); ``workers``: processes that
    compute them.
    """

    def __init__(
        self,
        root: str | Path,
        split: Split = "all",
        masks: Masks = "superpixels",
        fold: int | None = None,
        exclude: tuple[str, ...] = (),
        size: int | None = None,
        organs: tuple[str, ...] = ORGANS,
        scale: float = 1.0,
        sigma: float = 1.0,
        min_size: int = 400,
        body_threshold: float = 50.0,
        cache: str | None = None,
        workers: int = 2,
        val_fraction: float = 0.0,
        test_fraction: float = 0.0,
        seed: int = 0,
        inner: int | None = None,
    ) -> None:
        """``ValueError``: a file as for ``Abdominal``, missing masks where they are needed, an organ or fold that does
        not exist, a volume without superpixels, no slice left, a cache folder that cannot be written."""
        recipe = Recipe(scale, sigma, min_size, body_threshold)
        root_path, fractions = Path(root), (val_fraction, test_fraction)
        source, table = opened(root_path, masks, exclude, organs)
        organs = table.names
        require_choices(masks, exclude, organs, size)
        numbers = choose_exams(source.numbers, split, (fold, inner), fractions, seed, str(root_path))
        scans = [source.read(exam_number, table) for exam_number in numbers]
        require_one_size(scans, size, root_path)
        # of the intensities as stored: equal for a folder and the file made of it
        self.hashes = {scan.number: content_hash(torch.from_numpy(scan.slices)).hex() for scan in scans}
        self.masks: Masks = masks
        # per scan: the label maps (S, H, W), and the numbers of the slices that become samples
        if masks == "superpixels":
            maps = pseudo_masks(source.superpixels(scans, recipe, cache, workers), recipe, size)
        else:
            maps = organ_maps(scans, size)
        used = sampled(masks, scans, maps, organs, exclude)
        require_slices(used, masks, exclude, root_path)
        self.images = torch.cat([standardise(scan, size)[use] for scan, use in zip(scans, used, strict=True)])
        self.maps = torch.cat([scan_maps[use] for scan_maps, use in zip(maps, used, strict=True)])  # (N, H, W)
        self.maps = self.maps.to(torch.uint8) if self.maps.amax() <= 255 else self.maps
        self.counts = self.maps.flatten(1).amax(1).to(torch.int64)  # (N,) superpixels of each slice: 1 ... count
        counts = torch.tensor([len(chosen) for chosen in used])  # samples per exam, (E,)
        groups = torch.tensor(numbers).repeat_interleave(counts)
        self.partners = Partners(presence(self.maps, len(organs)) > 0, groups) if masks == "labelled" else None
        sites = source.sites(numbers)
        super().__init__(
            name=source.name,
            ids=groups * SLICE_LIMIT + torch.cat(used),
            labels=presence(self.maps, len(organs)) if masks == "organs" else torch.full((len(groups),), -1),
            classes=organs if masks == "organs" else (),
            channels=1,
            bits=16,
            groups=groups,
            sites=None if sites is None else sites.repeat_interleave(counts),
            records=[fact for scan, chosen in zip(scans, used, strict=True) for fact in facts(scan, chosen, size)],
            notices=padding_notices([scan.padded for scan in scans]),
        )

    def fetch(self, positions: Tensor, *, seed: int, epoch: int, draw: Tensor) -> Item:
        rows = positions.to(self.device)
        item = self.item(self.images.index_select(0, rows), positions, draw)
        maps = self.maps.index_select(0, rows)
        if self.masks == "organs":
            return item | {"organs": maps.to(torch.uint8)}
        if self.partners is not None:
            return item | self.pair(maps, *self.partners.draw(positions, seed, epoch, self.ids, draw.cpu()))
        # one superpixel per sample, 1 ... its count; its mask is where the map has that value
        chosen = 1 + randomness.integers(
            self.counts[positions], seed, "superpixel", epoch, self.ids[positions], draw.cpu()
        )
        return item | {"mask": (maps == chosen.to(self.device)[:, None, None]).to(torch.uint8)}

    def pair(self, maps: Tensor, organ: Tensor, support: Tensor) -> Item:
        """What a labelled sample has beside its image: the mask of its ``organ``, and the slice at ``support``."""
        value, rows = (1 + organ).to(self.device)[:, None, None], support.to(self.device)
        return {
            "mask": (maps == value).to(torch.uint8),
            "support_images": self.images.index_select(0, rows),
            "support_mask": (self.maps.index_select(0, rows) == value).to(torch.uint8),
        }

    def among(self, positions: Tensor) -> Self:
        """Supports come from the slices at ``positions`` alone."""
        if self.partners is None:
            return self
        clone = copy.copy(self)
        clone.partners = self.partners.among(positions)
        return clone

    def value_range(self) -> tuple[float, float]:
        """(0, 1): standardised images have no black and white. Nothing that clamps to this range may be used on them
        (``EpisodeViews`` does not)."""
        return (0.0, 1.0)

    def stored(self, position: int) -> Stored:
        return Stored(lambda: self.hashes[int(self.groups[position])])

    def to(self, device: str | torch.device) -> Self:
        clone = super().to(device)
        clone.images, clone.maps = self.images.to(clone.device), self.maps.to(clone.device)
        return clone

    def exams(self) -> dict[int, Tensor]:
        """Positions (int64) of the samples of each exam, by exam number."""
        return {
            int(exam_number): torch.nonzero(self.groups == exam_number)[:, 0]
            for exam_number in torch.unique(self.groups)
        }


def require_choices(masks: str, exclude: Sequence[str], organs: Sequence[str], size: int | None) -> None:
    """``ValueError`` naming the argument of ``Episodes`` that is not one of its choices."""
    if masks not in ("superpixels", "labelled", "organs"):
        raise ValueError(f"masks: expected one of superpixels, labelled, organs, got {masks!r}")
    for organ in exclude:
        if organ not in organs:
            raise ValueError(f"exclude: no organ {organ!r}; allowed: {', '.join(organs)}")
    if size is not None and size < 1:
        raise ValueError(f"size: expected at least 1 pixel, got {size}")


def opened(
    root: Path, masks: str, exclude: Sequence[str], organs: Sequence[str]
) -> tuple[ExamArchive | ExamFolder, OrganTable]:
    """The exams of a folder, or of the file made of it, and the ``organs`` of a recipe in it. ``ValueError`` as both,
    and where masks are needed and missing."""
    labelled = masks != "superpixels" or bool(exclude)
    why = f"masks: {masks}" if masks != "superpixels" else f"exclude: {', '.join(exclude)}"
    source: ExamArchive | ExamFolder = (ExamArchive if is_archive(root) else ExamFolder)(root, labelled, why)
    return source, source.table(organs)


def choose_exams(
    numbers: Sequence[int],
    split: str,
    folds: tuple[int | None, int | None],
    fractions: tuple[float, float],
    seed: int,
    where: str,
) -> list[int]:
    """The exam numbers of a split, in the order of its samples; ``folds`` are ``fold`` and ``inner`` (see
    ``Episodes``). ``ValueError`` for fractions beside a fold, an inner fold without one, and for a split that does not
    exist."""
    fold, inner = folds
    if inner is not None and fold is None:
        raise ValueError("inner: is a fold of the training exams of a fold; set fold, or leave inner out")
    if fold is None:
        part = split_exams(numbers, fractions, seed, where)
        return [numbers[i] for i in select_split(part, split, where).tolist()]
    if any(fractions):
        raise ValueError(f"fold: gives the split already; val_fraction {fractions[0]} and test_fraction {fractions[1]}")
    queries, support = fold_exams(numbers, fold)
    if inner is not None:
        numbers = [n for n in numbers if n not in (*queries, support)]
        with located("inner"):
            queries, support = fold_exams(numbers, inner)
    test = [*queries, support]
    chosen = {"all": list(numbers), "train": [n for n in numbers if n not in test], "test": test}
    if split not in chosen:
        raise ValueError(f"{where}: no split {split!r} in a fold; allowed: train, test, all")
    return chosen[split]


def require_one_size(scans: Sequence[UprightExam], size: int | None, folder: Path) -> None:
    """``ValueError`` when slices differ in size and ``size`` is None."""
    shapes = {scan.slices.shape[1:] for scan in scans}
    if size is None and len(shapes) > 1:
        raise ValueError(f"{folder}: slices of {len(shapes)} sizes {sorted(shapes)}; set size to bring them to one")


def sampled(
    masks: str, scans: Sequence[UprightExam], maps: Sequence[Tensor], organs: Sequence[str], exclude: Sequence[str]
) -> list[Tensor]:
    """The numbers of the slices of each scan that become samples, int64; see ``Episodes``."""
    if masks == "organs":
        return [torch.arange(len(scan.slices)) for scan in scans]
    values = [organs.index(organ) + 1 for organ in exclude]
    used = [usable(scan_maps, scan, values) for scan_maps, scan in zip(maps, scans, strict=True)]
    return with_partner(maps, used, len(organs)) if masks == "labelled" else used


def with_partner(maps: Sequence[Tensor], used: Sequence[Tensor], organs: int) -> list[Tensor]:
    """Of the slices ``used`` of each scan those with an organ that another scan shows on its ``used`` slices."""
    shown = torch.cat([presence(of[chosen], organs) for of, chosen in zip(maps, used, strict=True)]) > 0
    scans = torch.arange(len(used)).repeat_interleave(torch.tensor([len(chosen) for chosen in used]))
    kept = Partners(shown, scans).having()
    return [chosen[kept[scans == scan]] for scan, chosen in enumerate(used)]


def require_slices(used: Sequence[Tensor], masks: str, exclude: Sequence[str], folder: Path) -> None:
    """``ValueError`` when no scan has a slice that becomes a sample."""
    if not any(len(chosen) for chosen in used):
        lacks = "no organ that another exam shows too" if masks == "labelled" else "no superpixel"
        left = f"has {lacks}" + (f" or holds one of exclude: {', '.join(exclude)}" if exclude else "")
        raise ValueError(f"{folder}: no slice is left: every one {left}")


def facts(scan: UprightExam, slice_numbers: Tensor, size: int | None) -> list[dict[str, Any]]:
    """One record per slice in ``slice_numbers``; the spacing is that of the grid after resizing."""
    # old pixels per new pixel: padding to a square does not change the pixel size, resizing does
    zoom = 1.0 if size is None else max(scan.slices.shape[1:]) / size
    spacing = (scan.spacing[0] * zoom, scan.spacing[1] * zoom, scan.spacing[2])
    shared = {"file": scan.file, "spacing_mm": spacing, "oriented": scan.oriented}
    return [shared | {"slice": slice_number} for slice_number in slice_numbers.tolist()]
