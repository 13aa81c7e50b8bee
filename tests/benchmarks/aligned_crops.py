"""Where copying the support's mask wins: crops of one organ that lie on each other, and where it must not: whole scans.

    python -m tests.benchmarks.aligned_crops RUN [RUN ...] --data PATH [--part train] [--coarse 3.75]

prints for every organ, and in the mean, the Dice of the support's copied mask, of the network alone, and of the network
with the copied mask beside it by its weight (``copying: auto``), with and without the query's true range of slices, in
four kinds of data: crops of CHAOS (an organ's box and 16 px around it, moved by up to 4 px, the slices of its range),
the same in coarse pixels, so that an organ is as small in them as the hippocampus is in crops of its own, whole scans
of CHAOS, and abdomen phantoms. Every ordered pair of patients; brackets: 5-95 % over patients as queries.

``--coarse``: mm of a coarse pixel; those that the networks were trained on have 1.25. Each run has its own organs,
those whose slices it was trained without.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from sslmed_dist import randomness, registry
from sslmed_dist.data.phantom.abdomen import ORGANS, write_abdomen
from sslmed_dist.data.scans.grid import Placement, place, to_model
from sslmed_dist.data.scans.scan import StoredScan, Voxels, read_scan
from sslmed_dist.downstream.oneshot import protocol
from sslmed_dist.downstream.oneshot.quadrants import body_centre
from sslmed_dist.downstream.oneshot.scans import fetch, scans_of
from sslmed_dist.downstream.oneshot.segmenter import Segmenter, Shown
from sslmed_dist.downstream.oneshot.tidy import Centre, Spacing
from sslmed_dist.downstream.oneshot.weighing import weighed
from sslmed_dist.models import PROTOTYPE_HEADS
from sslmed_dist.training import pretrained
from sslmed_dist.training.build import load_data
from sslmed_dist.verbs.segment.model import spacing as spacing_of
from sslmed_dist.verbs.segment.model import standardised
from tests.benchmarks.oneshot_pairs import HEAD, Ready

PIXEL, SIZE = 1.25, 256  # of what the network sees: mm, pixels
MARGIN, JITTER = 16, 4  # pixels around the organ's box, and how far the box is moved at most
PHANTOMS, DRAWS = 5, 2000


@dataclass(frozen=True)
class Scan:
    """What is needed of one scan and one organ: the patient's number, maps (S, D, h, w), mask bool (S, H, W)."""

    number: int
    maps: Tensor
    mask: Tensor
    spacing: Spacing
    centre: Centre


@dataclass(frozen=True)
class Row:
    """Dice of one organ of one pair: copied mask, network, combination; each by the true range and by the estimated."""

    query: int
    organ: str
    true: tuple[float, float, float]
    estimated: tuple[float, float, float]
    weight: float


def stored(stack: Tensor, spacing: Spacing) -> StoredScan:
    """Upright slices (S, H, W) as a volume with an affine: columns run to the patient's left, rows to the back."""
    affine = np.diag([-spacing[1], -spacing[0], spacing[2], 1.0])
    voxels = np.ascontiguousarray(stack.permute(2, 1, 0).numpy(), dtype=np.float32)
    return StoredScan(Path("crop"), voxels, affine, oriented=True)


def box(mask: Tensor, number: int, value: int) -> tuple[slice, slice, slice]:
    """The slices of the organ's range, and its box with ``MARGIN`` around it, moved by the keyed jitter."""
    z, *inside = torch.nonzero(mask, as_tuple=True)
    moves = (randomness.uniform(number * 8 + value, torch.arange(2)) * (2 * JITTER + 1)).long() - JITTER
    sides = []
    for side, move, count in zip(inside, moves.tolist(), mask.shape[1:], strict=True):
        low, high = int(side.min()) - MARGIN + move, int(side.max()) + MARGIN + 1 + move
        sides.append(slice(max(low, 0), min(high, count)))
    return slice(int(z.min()), int(z.max()) + 1), sides[0], sides[1]


def crops(run: Path, data: str, part: str, pixel: float) -> Iterator[tuple[str, Scan]]:
    """Organ and crop of every scan of a part."""
    start = pretrained.load(run)
    segmenter = Segmenter(start.encoder, None, "cpu")
    dataset = load_data(start.settings, part, {"masks": "organs", "root": data})
    for scan in scans_of(dataset, torch.arange(len(dataset))):
        images, values = fetch(dataset, scan, seed=0)
        for organ in map(str, start.settings.data["exclude"]):
            value = dataset.classes.index(organ) + 1
            where = box(values == value, scan.number, value)
            crop = stored(images[:, 0][where], scan.spacing)
            placement = place(crop.voxels.shape, crop.affine, pixel=pixel, size=SIZE)
            seen, _ = standardised(crop, placement, "keep")
            mask = in_model(stored((values == value)[where].float(), scan.spacing).voxels, placement)
            yield organ, Scan(scan.number, segmenter.maps(seen), mask, spacing_of(placement), body_centre(seen))


def in_model(voxels: Voxels, placement: Placement) -> Tensor:
    """A mask (I, J, K) of 0 and 1 as the network sees it, bool (S, H, W)."""
    return to_model(voxels, placement, outside=0.0)[:, 0] >= 0.5


def wholes(run: Path, data: str, part: str) -> Iterator[tuple[str, Scan]]:
    """Organ and whole scan, of every scan of a part; maps are computed once for all organs."""
    start = pretrained.load(run)
    dataset = load_data(start.settings, part, {"masks": "organs", "root": data})
    segmenter = Segmenter(start.encoder, None, "cpu")
    for scan in scans_of(dataset, torch.arange(len(dataset))):
        images, values = fetch(dataset, scan, seed=0)
        maps, centre = segmenter.maps(images), body_centre(images)
        for organ in map(str, start.settings.data["exclude"]):
            mask = values == dataset.classes.index(organ) + 1
            yield organ, Scan(scan.number, maps, mask, scan.spacing, centre)


def phantoms(run: Path) -> Iterator[tuple[str, Scan]]:
    """Organ and phantom."""
    start = pretrained.load(run)
    segmenter = Segmenter(start.encoder, None, "cpu")
    with TemporaryDirectory() as name:
        write_abdomen(Path(name), exams=PHANTOMS, size=SIZE, slices=32, seed=1)
        for number in range(1, PHANTOMS + 1):
            scan, masks = (read_scan(Path(name) / f"{kind}_{number:02d}.nii.gz") for kind in ("image", "label"))
            placement = place(scan.voxels.shape, scan.affine, pixel=PIXEL, size=SIZE)
            images, _ = standardised(scan, placement)
            maps, centre = segmenter.maps(images), body_centre(images)
            for organ in map(str, start.settings.data["exclude"]):
                mask = in_model((masks.voxels == ORGANS.index(organ) + 1).astype(np.float32), placement)
                yield organ, Scan(number, maps, mask, spacing_of(placement), centre)


def pairs(found: Sequence[tuple[str, Scan]]) -> Iterator[Row]:
    """Every ordered pair of scans with the same organ."""
    segmenter = Segmenter(Ready(), registry.build(PROTOTYPE_HEADS, HEAD, "head"), "cpu", tidy=True, copying="auto")
    for organ in dict.fromkeys(organ for organ, _ in found):
        scans = [scan for of, scan in found if of == organ]
        for support in scans:
            shown = segmenter.learn(support.maps, support.mask, support.spacing, support.centre)
            for query in scans:
                if query is not support:
                    yield row(segmenter, shown, support, query, organ)


def row(segmenter: Segmenter, shown: Shown, support: Scan, query: Scan, organ: str) -> Row:
    """The six Dice of one pair."""
    size = (query.mask.shape[1], query.mask.shape[2])
    alone = segmenter.find(shown, query.maps, size, query.spacing, query.centre)
    both = weighed(segmenter, shown, alone, query.maps, query.spacing, query.centre)
    true = protocol.true_range(query.mask)
    assert true is not None and both.weighing is not None
    told = []
    for first, last in (true, (alone.estimate.first, alone.estimate.last)):
        copied = torch.zeros_like(query.mask)
        for z in range(first, last + 1):
            copied[z] = support.mask[shown.slices[protocol.part_of(z, first, last)]]
        masks = (copied, alone.mask(first, last), both.mask(first, last))
        told.append(tuple(protocol.overlap(mask, query.mask).dice or 0.0 for mask in masks))
    return Row(query.number, organ, told[0], told[1], both.weighing.weight)  # type: ignore[arg-type]  # three each


def interval(rows: Sequence[tuple[int, float]]) -> str:
    """Mean of (query, value), % and its 5-95 % interval over queries."""
    by_query = [mean(value for query, value in rows if query == one) for one in dict.fromkeys(q for q, _ in rows)]
    drawn = (randomness.uniform(0, torch.arange(DRAWS * len(by_query))) * len(by_query)).long().view(DRAWS, -1)
    low, high = torch.tensor(by_query)[drawn].mean(1).quantile(torch.tensor([0.05, 0.95])).tolist()
    return f"{100 * mean(by_query):.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def show(kind: str, rows: Sequence[Row]) -> None:
    """The table's rows of one kind of data."""
    for organ in [*dict.fromkeys(it.organ for it in rows), "all"]:
        own = [it for it in rows if organ in (it.organ, "all")]
        for name in ("true", "estimated"):
            values = [[(it.query, getattr(it, name)[way]) for it in own] for way in range(3)]
            better = [(it.query, getattr(it, name)[2] - getattr(it, name)[0]) for it in own]
            cells = [*map(interval, values), interval(better), f"{mean(it.weight for it in own):.2f}"]
            print(f"| {kind} | {organ} | {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("runs", nargs="+", type=Path)
    arguments.add_argument("--data", required=True)
    arguments.add_argument("--part", choices=("train", "test"), default="test")
    arguments.add_argument("--coarse", type=float, default=3.75)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    print(
        "| data | organ | range | copied mask | network | with the copied mask | that less the copied mask | weight |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for kind in ("crops", "crops, coarse", "whole scans", "phantoms"):
        found: list[tuple[str, Scan]] = []
        for run in options.runs:
            if kind == "phantoms":
                found += phantoms(run)
            elif kind == "whole scans":
                found += wholes(run, options.data, options.part)
            else:
                found += crops(run, options.data, options.part, options.coarse if "coarse" in kind else PIXEL)
        show(kind, list(pairs(found)))


if __name__ == "__main__":
    main()
