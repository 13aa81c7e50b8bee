"""How a phantom's subjects are dealt to sites and labels, and how its folder is written: completely or not at all."""

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslmed_dist.atomic_files import appearing
from sslmed_dist.randomness import order

# Exams of MRNet's training part by (abnormal, ACL, meniscus).
JOINT = {(1, 0, 0): 433, (1, 0, 1): 272, (0, 0, 0): 217, (1, 1, 1): 125, (1, 1, 0): 83}


def assign_sites(ids: Tensor, sites: int, seed: int) -> Tensor:
    """Site of each subject, (N,) int64 in [0, sites): equal shares in random order. ``ValueError`` for no site."""
    if sites < 1:
        raise ValueError(f"sites: expected at least 1, got {sites}")
    site_of_subject = torch.empty(len(ids), dtype=torch.int64)
    # deal the shuffled subjects to sites 0, 1, ..., 0, 1, ...
    site_of_subject[order(ids, seed, "sites")] = torch.arange(len(ids)) % sites
    return site_of_subject


def exactly(share: float, ids: Tensor, *parts: int | str) -> Tensor:
    """A random boolean (N,) with exactly ``round(share * N)`` true, for ``ids`` int64 (N,)."""
    chosen = torch.zeros(len(ids), dtype=torch.bool)
    chosen[order(ids, *parts)[: round(share * len(ids))]] = True
    return chosen


def draw_labels(ids: Tensor, prevalence: dict[str, float], *parts: int | str) -> dict[str, Tensor]:
    """Boolean labels (N,) by name, with shares ``prevalence`` of the subjects, to the nearest subject.

    Every other label implies the first one (a torn ligament makes a knee abnormal), so the others are drawn among the
    subjects that have it.
    """
    implied, *implying = prevalence
    # the first label is drawn among all subjects, every other among those that have the first
    labels = {implied: exactly(prevalence[implied], ids, *parts, implied)}
    candidates = ids[labels[implied]]
    for name in implying:
        positives = min(round(prevalence[name] * len(ids)), len(candidates))
        chosen = exactly(positives / max(1, len(candidates)), candidates, *parts, name)
        labels[name] = torch.isin(ids, candidates[chosen])
    return labels


def draw_joint(ids: Tensor, prevalence: dict[str, float], *parts: int | str) -> dict[str, Tensor]:
    """Boolean labels (N,) by the three names of ``prevalence``, which go together as in ``JOINT``, to the nearest
    subject; the shares in ``prevalence`` play no part."""
    remaining, left, total = ids, len(ids), sum(JOINT.values())
    labels = {name: torch.zeros(len(ids), dtype=torch.bool) for name in prevalence}
    for positives, share in JOINT.items():
        # of those that are left, the share that makes it the right one of all
        chosen = exactly(min(1.0, share / total * len(ids) / max(left, 1)), remaining, *parts, *map(str, positives))
        for name, positive in zip(prevalence, positives, strict=True):
            labels[name] |= torch.isin(ids, remaining[chosen]) & bool(positive)
        remaining, left = remaining[~chosen], left - int(chosen.sum())
    return labels


def require_counts(**values: int) -> None:
    """``ValueError`` for a negative number of subjects, by the name of the argument."""
    for name, value in values.items():
        if value < 0:
            raise ValueError(f"{name}: expected a number from 0, got {value}")


def write_rows(path: Path, rows: Iterable[tuple[object, ...]]) -> None:
    """Comma-separated rows with Unix line ends."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def publish(root: str | Path, spec: Mapping[str, Any], fill: Callable[[Path], None]) -> Path:
    """Write a phantom folder once: ``fill`` writes into a temporary sibling, which is then renamed to ``root``.

    ``spec`` goes to ``phantom.json``. If ``root`` already holds the same spec nothing is done; if it holds anything
    else a ``ValueError`` says so and nothing is touched. A killed run leaves only the hidden temporary folder.
    """
    target, spec_text = Path(root).resolve(), json.dumps(spec, indent=1, sort_keys=True) + "\n"
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target}: exists and is not a folder")
    if target.is_dir() and any(target.iterdir()):
        written = target / "phantom.json"
        if written.is_file() and written.read_text(encoding="utf-8") == spec_text:
            return target
        raise ValueError(f"{target}: not empty and not this phantom; give an empty or a new folder")
    with appearing(target) as unfinished:
        fill(unfinished)
        (unfinished / "phantom.json").write_text(spec_text, encoding="utf-8")
    return target
