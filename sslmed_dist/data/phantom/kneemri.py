"""Knee phantoms in the layout of KneeMRI: pickled sagittal volumes in ten folders and one table."""

import pickle
from pathlib import Path

import torch

from sslmed_dist.data.phantom.canvas import Dice
from sslmed_dist.data.phantom.knee_anatomy import Knee, draw_knee
from sslmed_dist.data.phantom.publish import publish, require_counts, write_rows
from sslmed_dist.data.phantom.scanner import acquire, scanner
from sslmed_dist.randomness import key

COLUMNS = ("examId", "seriesNo", "aclDiagnosis", "kneeLR", "roiX", "roiY", "roiZ", "roiHeight", "roiWidth", "roiDepth")
WHITE = 4095.0  # 12 bit


def write_kneemri(
    root: str | Path,
    *,
    exams: int = 40,
    size: int = 128,
    slices: tuple[int, int] = (21, 45),
    ruptured: float = 0.1,
    injured: float = 0.2,
    seed: int = 0,
) -> Path:
    """Write knee phantoms into the folder ``root``: ``volNN/ID-4.pck``, uint16 (S, size, size) pickled, dealt to the
    folders in turn, and ``metadata.csv``. Shares ``ruptured`` and ``injured`` of the exams have the diagnoses 2 and 1:
    a torn ligament, and an abnormal knee without a tear. ``ValueError`` for impossible requests or a used folder.
    """
    require_counts(exams=exams)
    if min(ruptured, injured) < 0 or ruptured + injured > 1:
        raise ValueError(f"ruptured, injured: expected shares of at most 1 in all, got {ruptured} and {injured}")
    if exams < 1 or size < 16 or not 1 <= slices[0] <= slices[1]:
        raise ValueError(f"exams, size, slices: expected at least 1, 16 and 1, got {exams}, {size}, {tuple(slices)}")
    spec = {"kind": "kneemri", "version": 1, "exams": exams, "size": size, "slices": list(slices), "seed": seed}
    spec |= {"ruptured": ruptured, "injured": injured}

    def fill(folder: Path) -> None:
        rows: list[tuple[object, ...]] = [(*COLUMNS, "volumeFilename")]
        for exam in range(exams):
            # spread over the exams, and so over the folders: 7 has no factor in common with 10
            place = (exam * 7 % exams + 0.5) / exams if exams % 7 else (exam + 0.5) / exams
            diagnosis = 2 if place < ruptured else 1 if place < ruptured + injured else 0
            subject = key(seed, "kneemri", exam)
            knee = Knee(subject, abnormal=diagnosis > 0, acl=diagnosis == 2, meniscus=False, small=diagnosis == 1)
            count = Dice(subject).pick(slices[0], slices[1], "slices sagittal")
            clean = draw_knee(knee, "sagittal", count, size)
            recorded = acquire(clean[None], scanner(0, seed), torch.tensor([key(subject, "acquire")]))[0]
            name = f"{500000 + exam}-4.pck"
            target = folder / f"vol{exam % 10 + 1:02d}"
            target.mkdir(exist_ok=True)
            content = pickle.dumps((WHITE * recorded).round().numpy().astype("<u2"), protocol=2)
            (target / name).write_bytes(content)
            rows.append((500000 + exam, 4, diagnosis, int(knee.laterality == "left"), 0, 0, 0, size, size, count, name))
        write_rows(folder / "metadata.csv", rows)

    return publish(root, spec, fill)
