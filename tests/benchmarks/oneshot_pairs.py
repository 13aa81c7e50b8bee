"""Pairs of patients, segmented as ``sslmed segment`` does: without any knowledge of the query.

    python -m tests.benchmarks.oneshot_pairs RUN RUN --data PATH [--keep FOLDER] [--part train]

prints Dice with and without the query's range of slices and HD95 of whole volumes, as they come and tidied, with the
last patient as the support as in the protocol. ``oneshot_reliability`` beside takes pairs from here.

Each run has its own organs (those whose slices it was trained without). The maps of a scan are computed once and kept
in a folder where one is given, for they take longer than all that is done with them.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from sslmed_dist import randomness, registry
from sslmed_dist.downstream.oneshot import protocol, reliability
from sslmed_dist.downstream.oneshot.quadrants import body_centre
from sslmed_dist.downstream.oneshot.scans import fetch, scans_of
from sslmed_dist.downstream.oneshot.segmenter import Found, Segmenter, Shown
from sslmed_dist.downstream.oneshot.tidy import Centre, Spacing
from sslmed_dist.models import PROTOTYPE_HEADS
from sslmed_dist.training import pretrained
from sslmed_dist.training.build import load_data

HEAD = {"name": "cowpro", "window": 2, "score": "dot"}


@dataclass(frozen=True)
class Patient:
    """One scan: its exam number, spacing, the middle of its body, organ values (S, H, W), and for each organ the maps
    (S, D, h, w) of the run that was trained without it."""

    number: int
    spacing: Spacing
    centre: Centre
    organs: Tensor
    maps: dict[str, Tensor]


@dataclass(frozen=True)
class Pair:
    """An organ of one patient, found on another: ``dice`` without and ``oracle`` with the query's range of slices."""

    support: int
    query: int
    organ: str
    dice: float
    oracle: float
    hd95: float | None
    signs: reliability.Signs | None


class Patients:
    """The patients of a part (``train``, ``test``, or ``both``) of the runs' data, and a segmenter of their maps.
    ``held_out``: the numbers of those that the runs were not trained on."""

    def __init__(self, runs: Sequence[Path], data: str, part: str, keep: Path | None, *, tidy: bool = True) -> None:
        torch.set_num_threads(1)
        self.values: dict[str, int] = {}
        self.held_out: set[int] = set()
        found: dict[int, Patient] = {}
        for run in runs:
            start = pretrained.load(run)
            for each in ("train", "test") if part == "both" else (part,):
                self.read(start, each, data, found, lambda number, maps: kept(keep, f"{run.name}-{number}", maps))  # noqa: B023
        self.all = list(found.values())
        self.segmenter = reader(tidy)
        self.learnt: dict[tuple[int, str], Shown] = {}

    def read(
        self,
        start: pretrained.Pretrained,
        part: str,
        data: str,
        found: dict[int, Patient],
        keep: Callable[[int, Callable[[], Tensor]], Tensor],
    ) -> None:
        """Add the patients of one part of a run's data to those ``found``."""
        dataset = load_data(start.settings, part, {"masks": "organs", "root": data})
        organs = [str(organ) for organ in start.settings.data["exclude"]]
        self.values |= {organ: dataset.classes.index(organ) + 1 for organ in organs}
        segmenter = Segmenter(start.encoder, None, "cpu")
        for scan in scans_of(dataset, torch.arange(len(dataset))):
            images, values = fetch(dataset, scan, seed=0)
            maps = keep(scan.number, lambda: segmenter.maps(images))  # noqa: B023
            new = Patient(scan.number, scan.spacing, body_centre(images), values, {})
            found.setdefault(scan.number, new).maps.update(dict.fromkeys(organs, maps))
            self.held_out |= {scan.number} if part == "test" else set()

    def mask(self, patient: Patient, organ: str) -> Tensor:
        """Bool (S, H, W)."""
        return patient.organs == self.values[organ]

    def learn(self, patient: Patient, organ: str) -> Shown:
        """What a patient shows of an organ, computed once."""
        key = (patient.number, organ)
        if key not in self.learnt:
            self.learnt[key] = self.segmenter.learn(
                patient.maps[organ], self.mask(patient, organ), patient.spacing, patient.centre
            )
        return self.learnt[key]

    def find(self, support: Patient, query: Patient, organ: str) -> Found:
        """The organ on the query."""
        size = (query.organs.shape[1], query.organs.shape[2])
        shown = self.learn(support, organ)
        return self.segmenter.find(shown, query.maps[organ], size, query.spacing, query.centre)

    def pairs(self, supports: int | None = None, *, surface: bool = False) -> Iterator[Pair]:
        """Every ordered pair of patients with every organ, or of each query ``supports`` keyed supports. Where any
        patients are held out, these alone are queries."""
        for query in [one for one in self.all if not self.held_out or one.number in self.held_out]:
            others = [patient for patient in self.all if patient is not query]
            keys = randomness.uniform(query.number, torch.arange(len(others)))
            for support in [others[i] for i in keys.argsort().tolist()[:supports]]:
                for organ in self.values:
                    yield self.pair(support, query, organ, surface)

    def last(self) -> Iterator[Pair]:
        """The last patient as the support of all others, with HD95."""
        for query in self.all[:-1]:
            for organ in self.values:
                yield self.pair(self.all[-1], query, organ, surface=True)

    def pair(self, support: Patient, query: Patient, organ: str, surface: bool) -> Pair:
        """Measures and signs of one organ."""
        from sslmed_dist.downstream.oneshot.surfaces import hausdorff95

        found, truth = self.find(support, query, organ), self.mask(query, organ)
        span = protocol.true_range(truth)
        assert span is not None
        prediction, maps = found.prediction(), query.maps[organ]
        shown = self.learn(support, organ)
        signs = reliability.signs(self.segmenter, shown, found, maps, query.spacing, query.centre)
        oracle = protocol.overlap(found.mask(*span), truth).dice or 0.0
        distance = hausdorff95(prediction, truth, query.spacing) if surface else None
        dice = protocol.overlap(prediction, truth).dice or 0.0
        return Pair(support.number, query.number, organ, dice, oracle, distance, signs)


def kept(folder: Path | None, name: str, compute: Callable[[], Tensor]) -> Tensor:
    """What ``compute`` gives, from ``folder`` where it lies there already."""
    if folder is None:
        return compute()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.pt"
    if not file.exists():
        torch.save(compute(), file)
    maps: Tensor = torch.load(file, weights_only=True)
    return maps


class Ready(torch.nn.Module):
    """Stands in an encoder's place where all maps are there already."""

    def maps(self, images: Tensor) -> Tensor:
        """As they are."""
        return images


def reader(tidy: bool) -> Segmenter:
    """The segmenter of maps that are there already."""
    head: Any = registry.build(PROTOTYPE_HEADS, HEAD, "head")
    return Segmenter(Ready(), head, "cpu", tidy=tidy)


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("runs", nargs="+", type=Path)
    arguments.add_argument("--data", required=True)
    arguments.add_argument("--keep", type=Path, help="a folder for feature maps, computed once")
    arguments.add_argument("--part", choices=("train", "test"), default="test")
    options = arguments.parse_args()
    print("| masks | organ | Dice, true range | Dice, range estimated | HD95, range estimated, mm |")
    print("| --- | --- | --- | --- | --- |")
    for name, tidy in (("as they come", False), ("tidied", True)):
        pairs = list(Patients(options.runs, options.data, options.part, options.keep, tidy=tidy).last())
        for organ in [*dict.fromkeys(pair.organ for pair in pairs), "all"]:
            own = [pair for pair in pairs if organ in (pair.organ, "all")]
            found = [pair.hd95 for pair in own if pair.hd95 is not None]
            empty = f" ({len(own) - len(found)} empty)" if len(found) < len(own) else ""
            figures = (100 * mean([pair.oracle for pair in own]), 100 * mean([pair.dice for pair in own]), mean(found))
            print(f"| {name} | {organ} | {' | '.join(f'{figure:.1f}' for figure in figures)}{empty} |", flush=True)


if __name__ == "__main__":
    main()
