"""How a phantom's subjects are shared out over sites and labels, and how its folder reaches the disk: whole or not."""

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslmed_dist.atomic_files import appearing
from sslmed_dist.randomness import order


def assign_sites(ids: Tensor, sites: int, seed: int) -> Tensor:
    """Site of each subject, (N,) int64 in [0, sites): equal shares in random order."""
    if sites < 1:
        raise ValueError(f"sites: expected at least 1, got {sites}")
    shares = torch.empty(len(ids), dtype=torch.int64)
    shares[order(ids, seed, "sites")] = torch.arange(len(ids)) % sites
    return shares


def exactly(share: float, ids: Tensor, *parts: int | str) -> Tensor:
    """A random boolean (N,) with exactly ``round(share * N)`` true."""
    chosen = torch.zeros(len(ids), dtype=torch.bool)
    chosen[order(ids, *parts)[: round(share * len(ids))]] = True
    return chosen


def draw_labels(ids: Tensor, prevalence: dict[str, float], *parts: int | str) -> dict[str, Tensor]:
    """Boolean labels (N,) by name with the wanted shares to the nearest subject; the first label is implied by any."""
    parent, *findings = prevalence
    labels = {parent: exactly(prevalence[parent], ids, *parts, parent)}
    candidates = ids[labels[parent]]
    for name in findings:
        wanted = min(round(prevalence[name] * len(ids)), len(candidates))
        chosen = exactly(wanted / max(1, len(candidates)), candidates, *parts, name)
        labels[name] = torch.isin(ids, candidates[chosen])
    return labels


def require_counts(**values: int) -> None:
    """Refuse negative numbers of subjects by name."""
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
    target, fingerprint = Path(root).resolve(), json.dumps(spec, indent=1, sort_keys=True) + "\n"
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target}: exists and is not a folder")
    if target.is_dir() and any(target.iterdir()):
        written = target / "phantom.json"
        if written.is_file() and written.read_text(encoding="utf-8") == fingerprint:
            return target
        raise ValueError(f"{target}: not empty and not this phantom; give an empty or a new folder")
    with appearing(target) as unfinished:
        fill(unfinished)
        (unfinished / "phantom.json").write_text(fingerprint, encoding="utf-8")
    return target
