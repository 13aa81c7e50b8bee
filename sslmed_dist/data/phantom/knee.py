"""Knee phantoms in the MRNet layout: one 3-D anatomy per exam, read in three planes with three weightings.

Findings that are ``varied`` are small, and states of structures that differ from knee to knee without being a finding
(``knee_anatomy.VARIED``): how much fluid is there, how wide menisci and ligaments are and where they run. A bright line
through a meniscus, a gap in the ACL and a bright spot in the bone are the findings. Such an exam is a close-up of the
joint (90 mm), T2-weighted with the fat suppressed in every plane, with a gain and a gamma of its own (``adjusted``).
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sslmed_dist.data.phantom.canvas import Dice
from sslmed_dist.data.phantom.knee_anatomy import LABELS, PLANES, Knee, draw_knee
from sslmed_dist.data.phantom.publish import assign_sites, draw_joint, draw_labels, publish, require_counts, write_rows
from sslmed_dist.data.phantom.scanner import Scanner, acquire, scanner
from sslmed_dist.data.workers import in_processes
from sslmed_dist.randomness import key, uniform


@dataclass(frozen=True)
class Job:
    """One exam to be drawn and recorded into ``folder/PLANE/NAME.npy``."""

    folder: Path
    name: str
    knee: Knee
    machine: Scanner
    planes: tuple[str, ...]
    size: int
    slices: tuple[int, int]


def adjusted(machine: Scanner, dice: Dice) -> Scanner:
    """The scanner as it was set for one exam: its gain 0.4-1, which scales the noise as well, and its gamma times
    0.75-1.33."""
    gain, gamma = dice.between(0.4, 1.0, "gain"), machine.gamma * dice.between(0.75, 1.33, "gamma")
    return replace(machine, gain=gain, noise=machine.noise * gain, gamma=gamma)


def write_exam(job: Job) -> None:
    """Record one exam, uint8 (S, size, size) for each plane; S is drawn per plane from ``slices``."""
    folder, name, knee, machine = job.folder, job.name, job.knee, job.machine
    size, slices = job.size, job.slices
    for plane in job.planes:
        count = Dice(knee.subject).pick(slices[0], slices[1], f"slices {plane}")
        clean = draw_knee(knee, plane, count, size, "fs" if knee.varied else "pd")
        used = adjusted(machine, Dice(knee.subject)) if knee.varied else machine
        recorded = acquire(clean[None], used, torch.tensor([key(knee.subject, "acquire", plane)]))[0]
        (folder / plane).mkdir(parents=True, exist_ok=True)
        np.save(folder / plane / f"{name}.npy", (255.0 * recorded).round().to(torch.uint8).contiguous().numpy())


def check_knee(
    counts: dict[str, int],
    prevalence: dict[str, float],
    size: int,
    slices: tuple[int, int],
    planes: tuple[str, ...],
    joint: bool,
) -> None:
    """``ValueError`` naming an argument of ``write_knee`` that is out of range."""
    require_counts(**counts)
    if not planes or len(set(planes)) < len(planes) or not set(planes) <= set(PLANES):
        raise ValueError(f"planes: expected some of {', '.join(PLANES)}, each once, got {', '.join(planes) or 'none'}")
    for name, share in prevalence.items():
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"{name}: expected a share in 0-1, got {share}")
        if share > prevalence["abnormal"]:
            raise ValueError(f"{name}: {share} exceeds abnormal {prevalence['abnormal']}, which every tear implies")
    if joint and tuple(prevalence.values()) != (0.81, 0.18, 0.35):
        raise ValueError("joint: labels go together as in MRNet, so abnormal, acl and meniscus are not to be given")
    if size < 16:
        raise ValueError(f"size: expected at least 16 pixels, got {size}")
    if not 1 <= slices[0] <= slices[1]:
        raise ValueError(f"slices: expected lowest and highest count, 1 <= lowest <= highest, got {slices}")


def unequal_sites(ids: Tensor, torn: Tensor, sites: int, seed: int) -> Tensor:
    """Site of each exam, int64 (N,) in [0, sites): sizes as 1 to 2 from the first site to the last, evenly between.
    Exams are dealt in the order of a keyed random number in [0, 1), to which 1/4 is added for a torn meniscus
    (``torn``, bool (N,)), so that the first sites have few of them and the last one many."""
    if sites < 1:
        raise ValueError(f"sites: expected at least 1, got {sites}")
    weights = 1.0 + torch.arange(sites, dtype=torch.float64) / max(sites - 1, 1)
    ends = (weights.cumsum(0) / weights.sum() * len(ids)).round().long()
    rank = (uniform(seed, "unequal sites", ids) + 0.25 * torn).argsort(stable=True).argsort()
    return torch.searchsorted(ends, rank, right=True)


def write_knee(
    root: str | Path,
    *,
    train: int = 40,
    valid: int = 20,
    sites: int = 3,
    size: int = 256,
    slices: tuple[int, int] = (17, 40),
    abnormal: float = 0.81,
    acl: float = 0.18,
    meniscus: float = 0.35,
    findings: Literal["full", "small", "varied"] = "full",
    joint: bool = False,
    unequal: bool = False,
    planes: tuple[str, ...] = tuple(PLANES),
    workers: int = 1,
    seed: int = 0,
) -> Path:
    """Write knee phantoms into the folder ``root`` in the MRNet layout and return the folder.

    ``{train,valid}/{axial,coronal,sagittal}/0000.npy`` uint8 (S, size, size; the dataset ``mrnet`` is told another side
    than 256), ``{train,valid}-{abnormal,acl,meniscus}.csv`` (id,label; no header) and, beyond MRNet, ``sites.csv``
    (header id,site). Numbers of ``valid`` follow those of ``train``.
    ``findings`` small: a few millimetres wide, in few slices (``Knee.small``); varied: see this module. ``joint``:
    labels go together as in MRNet's training part (``publish.JOINT``), and the three shares have to stay at their
    defaults. ``unequal``: sites differ in size and in torn menisci (``unequal_sites``). ``workers`` processes draw side
    by side. ``ValueError`` for impossible requests or a used folder.
    """
    prevalence = dict(zip(LABELS, (abnormal, acl, meniscus), strict=True))
    counts = {"train": train, "valid": valid}
    check_knee(counts, prevalence, size, slices, tuple(planes), joint)
    spec: dict[str, Any] = {"kind": "knee", "version": 1, **counts, "sites": sites, "size": size}
    spec |= {"slices": list(slices), "seed": seed}
    # only what is not as it always was: a set written before is still this set
    usual: dict[str, Any] = {"findings": "full", "joint": False, "unequal": False, "planes": list(PLANES)}
    asked = {"findings": findings, "joint": joint, "unequal": unequal, "planes": list(planes)}
    spec |= {name: value for name, value in asked.items() if value != usual[name]}
    spec |= {**prevalence, "scanners": [asdict(scanner(site, seed)) for site in range(sites)]}

    def fill(folder: Path) -> None:
        exam_sites: list[int] = []
        jobs: list[Job] = []
        for split, count in counts.items():
            ids = torch.arange(count) + len(exam_sites)
            names = [f"{exam:04d}" for exam in ids.tolist()]
            labels = (draw_joint if joint else draw_labels)(ids, prevalence, seed, "knee", split)
            dealt = unequal_sites(ids, labels["meniscus"], sites, seed) if unequal else assign_sites(ids, sites, seed)
            exam_sites += dealt.tolist()
            for label, values in labels.items():
                write_rows(folder / f"{split}-{label}.csv", zip(names, values.int().tolist(), strict=True))
            for row, exam in enumerate(ids.tolist()):
                found = {name: bool(values[row]) for name, values in labels.items()}
                knee = Knee(key(seed, "knee", exam), **found, small=findings != "full", varied=findings == "varied")
                machine = scanner(exam_sites[exam], seed)
                jobs.append(Job(folder / split, names[row], knee, machine, tuple(planes), size, slices))
        for _ in in_processes(write_exam, jobs, workers):
            pass
        write_rows(folder / "sites.csv", [("id", "site"), *((f"{i:04d}", s) for i, s in enumerate(exam_sites))])

    return publish(root, spec, fill)
