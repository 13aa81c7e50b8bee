"""Ways to score one trained segmentation encoder: heads, windows, slices of the support, shifted copies, neighbours.

    python -m tests.benchmarks.oneshot_ablation runs/inner-kidneys runs/inner-liver-spleen --data PATH [--inner 0]

Each run is scored on the test part of its own data by its own organs, with the range of slices known (``dice`` of
``sslmed evaluate``). Choose on an inner split (``data.inner``) alone: the test part of a fold is for the choice that
was made, once. ``--inner J`` refuses runs that were trained without it.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sslmed_dist import registry
from sslmed_dist.downstream.oneshot.protocol import overlap, support_slices, true_range
from sslmed_dist.downstream.oneshot.scans import fetch, scans_of
from sslmed_dist.downstream.oneshot.segmenter import Segmenter, by_part
from sslmed_dist.models import PROTOTYPE_HEADS
from sslmed_dist.training import pretrained
from sslmed_dist.training.build import load_data

SHIFTS = ((0, 0), (4, 0), (0, 4), (4, 4))  # pixels: half of a stride of 8


@dataclass(frozen=True)
class Variant:
    """One way of scoring; all else is the protocol's."""

    head: Mapping[str, Any]
    together: bool = False  # the three support slices of an organ serve every query slice
    shifts: int = 1  # how many of SHIFTS are averaged
    smooth: bool = False  # margins are averaged over neighbouring slices, 1 : 2 : 1


DOT, COSINE = ({"name": "cowpro", "window": 2, "score": score} for score in ("dot", "cosine"))
VARIANTS: dict[str, Variant] = {
    "dot, window 2 (protocol)": Variant(DOT),
    "cosine, window 2": Variant(COSINE),
    "ALPNet, window 2": Variant({"name": "alpnet", "window": 2}),
    "dot, window 1": Variant({**DOT, "window": 1}),
    "dot, window 4": Variant({**DOT, "window": 4}),
    "dot, threshold dynamic": Variant({**DOT, "threshold": "dynamic"}),
    "dot, level 0.8": Variant({**DOT, "level": 0.8}),
    "dot, level 0.5": Variant({**DOT, "level": 0.5}),
    "dot, best 50 %": Variant({**DOT, "top": 50.0}),
    "dot, temperature 0.1": Variant({**DOT, "temperature": 0.1}),
    "dot, three support slices together": Variant(DOT, together=True),
    "dot, four shifted copies": Variant(DOT, shifts=4),
    "dot, neighbouring slices": Variant(DOT, smooth=True),
    "dot, window 1, shifted, neighbours": Variant({**DOT, "window": 1}, shifts=4, smooth=True),
    "dot, shifted, neighbours": Variant(DOT, shifts=4, smooth=True),
}


def moved(images: Tensor, down: int, right: int) -> Tensor:
    """Images (S, C, H, W) moved down and to the right, the edge repeated."""
    padded = functional.pad(images, (max(right, 0), max(-right, 0), max(down, 0), max(-down, 0)), mode="replicate")
    top, left = max(-down, 0), max(-right, 0)
    return padded[..., top : top + images.shape[-2], left : left + images.shape[-1]]


class Scans:
    """The scans of a run's test part: organ values, and maps of as many shifted copies as were asked for."""

    def __init__(self, run: Path, data: str, inner: int | None, shifts: int) -> None:
        start = pretrained.load(run)
        settings = start.settings
        if inner is not None and settings.data.get("inner") != inner:
            raise ValueError(f"{run}: was not trained with data.inner {inner}")
        self.organs = settings.data["exclude"]
        self.dataset = load_data(settings, "test", {"masks": "organs", "root": data})
        self.encoder, self.chosen = start.encoder, scans_of(self.dataset, torch.arange(len(self.dataset)))
        loaded = [fetch(self.dataset, scan, seed=0) for scan in self.chosen]
        self.values = [organs for _, organs in loaded]
        segmenter = Segmenter(self.encoder, None, "cpu")
        self.maps = [[segmenter.maps(moved(images, *shift)) for shift in SHIFTS[:shifts]] for images, _ in loaded]

    def organ(self, organ: str) -> int:
        """Its value in the masks."""
        return self.dataset.classes.index(organ) + 1

    def dice(self, variant: Variant) -> dict[str, float]:
        """Mean Dice in per cent over the queries, by organ; the last scan is the support."""
        head = registry.build(PROTOTYPE_HEADS, variant.head, "head")
        segmenter, size = Segmenter(self.encoder, head, "cpu"), self.values[0].shape[1:]
        result = {}
        for organ in self.organs:
            mask = self.values[-1] == self.organ(organ)
            slices = support_slices(torch.nonzero(mask.flatten(1).any(dim=1))[:, 0].tolist())
            groups = [slices] * 3 if variant.together else [[z] for z in slices]
            prototypes = [segmenter.prototypes(self.maps[-1][0][z], mask[z]) for z in groups]
            each = []
            for maps, values in zip(self.maps[:-1], self.values[:-1], strict=True):
                truth = values == self.organ(organ)
                span = true_range(truth)
                assert span is not None
                margins = self.margins(segmenter, prototypes, maps[: variant.shifts], size)
                chosen = by_part(margins, *span)
                if variant.smooth:
                    chosen = smoothed(chosen)
                score = overlap(chosen > 0, truth[span[0] : span[1] + 1]).dice
                assert score is not None
                each.append(100 * score)
            result[organ] = sum(each) / len(each)
        return result

    @staticmethod
    def margins(segmenter: Segmenter, prototypes: Sequence[Any], maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """The margins (U, S, H, W), the mean over shifted copies that are moved back."""
        back: Callable[[Tensor, tuple[int, int]], Tensor] = lambda m, s: moved(m, -s[0], -s[1])  # noqa: E731
        copies = [segmenter.margins(prototypes, each, size) for each in maps]
        return torch.stack([back(m, shift) for m, shift in zip(copies, SHIFTS, strict=False)]).mean(dim=0)


def smoothed(margins: Tensor) -> Tensor:
    """Margins (S, H, W) averaged with those of the slices below and above, 1 : 2 : 1; the ends are repeated."""
    padded = torch.cat([margins[:1], margins, margins[-1:]])
    return (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("runs", nargs="+", type=Path)
    arguments.add_argument("--data", required=True)
    arguments.add_argument("--inner", type=int)
    arguments.add_argument("--only", help="variants whose name contains this")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    chosen = {name: each for name, each in VARIANTS.items() if options.only is None or options.only in name}
    if not chosen:
        arguments.error(f"--only: no way of scoring has {options.only!r} in its name; allowed: {', '.join(VARIANTS)}")
    shifts = max(each.shifts for each in chosen.values())
    scans = [Scans(run, options.data, options.inner, shifts) for run in options.runs]
    names = [organ for each in scans for organ in each.organs]
    print("| way of scoring, Dice, % |", " | ".join(names), "| mean |")
    print("| --- |", " | ".join("---" for _ in names), "| --- |")
    for name, variant in chosen.items():
        dice = [value for each in scans for value in each.dice(variant).values()]
        figures = " | ".join(f"{value:.1f}" for value in dice)
        print(f"| {name} | {figures} | {sum(dice) / len(dice):.1f} |", flush=True)


if __name__ == "__main__":
    main()
