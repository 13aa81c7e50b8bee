"""Pelvic phantoms in the layout of MOGaMBO (Manna et al. 2025, pelvic MR): T2-weighted volumes with masks of bladder,
rectum, sigmoid colon and femoral heads as NIfTI.

Lengths are millimetres from the middle of the pelvis, as in ``abdomen``. It is a phantom: the drawing has no clinical
meaning. The published file names were not at hand; these hold the set's name.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sslmed_dist.data.phantom.canvas import Canvas, Dice
from sslmed_dist.data.phantom.publish import publish, require_counts
from sslmed_dist.data.phantom.scanner import Scanner, acquire, axis, scanner
from sslmed_dist.data.scans.nifti_writing import nifti_bytes
from sslmed_dist.randomness import key

ORGANS = ("urinary bladder", "rectum", "sigmoid colon", "femoral heads")  # values 1 to 4 of a mask
BREADTH, HEIGHT = 320.0, 150.0  # mm covered in plane and along z
# Range of a tissue's signal over patients.
SIGNALS: dict[str, tuple[float, float]] = {
    "skin": (0.22, 0.34),
    "fat": (0.60, 0.85),
    "muscle": (0.12, 0.22),
    "bone": (0.40, 0.60),
    "cavity": (0.45, 0.60),
    "urine": (0.85, 1.00),
    "wall": (0.20, 0.35),
    "stool": (0.25, 0.75),
}


def hollow(c: Canvas, organ: Tensor, content: str, texture: Tensor | float = 0.0) -> None:
    """Paint an ``organ`` (signed distance in mm) as a wall of 3 mm around its ``content``."""
    c.paint(organ, "wall")
    c.paint(organ + 3.0, content, texture)


def draw_pelvis(subject: int, size: int, slices: int) -> tuple[Tensor, Tensor]:
    """One exam before acquisition: image float32 in [0, 1] and mask uint8, both (slices, size, size). The mask holds 1
    to 4 for ``ORGANS``; axes as in ``abdomen.draw_abdomen``."""
    dice = Dice(subject)
    plane = BREADTH * (axis(size) - 0.5)
    lines = (HEIGHT * (axis(slices) - 0.5) + dice.between(-6, 6, "table"), plane, plane + dice.between(-5, 5, "shift"))
    signals = {name: dice.between(low, high, f"signal {name}") for name, (low, high) in SIGNALS.items()}
    c = Canvas(dice, lines, reach=165.0, signals=signals, bend=3.0, near=16.0, edge=max(1.5, BREADTH / size))
    body = c.column(torch.full_like(c.z, dice.between(138, 150, "width")), torch.full_like(c.z, 98.0), 0.0)
    c.paint(body, "skin")
    c.paint(body + 2.5, "fat", 0.15 * c.texture("lobules", 22))
    c.paint(body + dice.between(18, 28, "fat"), "muscle", 0.12 * c.texture("fibres", 30))
    c.paint(
        c.column(torch.full_like(c.z, 58.0), torch.full_like(c.z, 62.0), -2.0), "cavity", 0.2 * c.texture("fat", 20)
    )
    # bladder in front, rectum behind it up to the sigmoid colon, which bends to the left
    grow = dice.between(0.7, 1.2, "bladder")
    bladder = c.ellipsoid((0, 26, dice.between(-20, -8, "bladder z")), (36 * grow, 28 * grow, 32 * grow))
    wide = dice.between(12, 16, "rectum")
    rectum = c.segment((0, -44, -90), (0, -40, 12), wide)[0]
    bend = (dice.between(16, 28, "bend x"), -14.0, 44.0)
    colon = torch.minimum(c.segment((0, -40, 12), bend, 13.0)[0], c.segment(bend, (44, 4, 90), 12.0)[0])
    heads = torch.minimum(*(c.ellipsoid((side * 88, 8, -4), (24, 24, 24)) for side in (-1.0, 1.0)))
    for side in (-1.0, 1.0):
        c.paint(c.segment((side * 92, 6, -10), (side * 122, 0, -60), 16.0)[0], "bone", 0.1 * c.texture("marrow", 30))
    c.paint(heads, "bone", 0.08 * c.texture("head", 34))
    organs = (bladder, torch.maximum(rectum, -bladder), torch.maximum(torch.maximum(colon, -rectum), -bladder), heads)
    for organ, content in zip(organs[:3], ("urine", "stool", "stool"), strict=True):
        hollow(c, organ, content, 0.3 * c.texture("content", 20) if content == "stool" else 0.0)
    mask = torch.zeros(c.image.shape, dtype=torch.uint8)
    for value, organ in enumerate(organs, start=1):
        mask[organ < 0.0] = value
    return c.image.clamp(0.0, 1.0), mask


def pelvis_volume(subject: int, machine: Scanner, *, size: int, slices: int) -> tuple[np.ndarray, np.ndarray]:
    """The recorded exam: image int16 and mask uint8, (size, size, slices) with axes to the left, the front and up."""
    image, mask = draw_pelvis(subject, size, slices)
    recorded = acquire(image[None], machine, torch.tensor([key(subject, "acquire")]))[0]
    voxels = (1000.0 * recorded).round().to(torch.int16).permute(2, 1, 0).contiguous()
    return voxels.numpy(), mask.permute(2, 1, 0).contiguous().numpy()


def write_mogambo(root: str | Path, *, exams: int = 4, size: int = 128, slices: int = 24, seed: int = 0) -> Path:
    """Write phantoms in the layout of MOGaMBO into ``root`` and return it: images/MOGaMBO_001.nii.gz int16,
    masks/MOGaMBO_001.nii.gz uint8, ..., axes left, anterior, superior.

    ``ValueError`` for fewer than 32 pixels or 8 slices, or for a folder that holds something else.
    """
    require_counts(exams=exams)
    if size < 32 or slices < 8:
        raise ValueError(f"size, slices: expected at least 32 pixels and 8 slices, got {size} and {slices}")
    spec = {"kind": "mogambo", "version": 1, "exams": exams, "size": size, "slices": slices}
    spec |= {"seed": seed, "scanner": asdict(scanner(0, seed))}
    affine = np.diag([-BREADTH / size, BREADTH / size, HEIGHT / slices, 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array((size, size, slices)) - 1) / 2)

    def fill(folder: Path) -> None:
        for subfolder in ("images", "masks"):
            (folder / subfolder).mkdir()
        for exam in range(1, exams + 1):
            drawn = pelvis_volume(key(seed, "pelvis", exam), scanner(0, seed), size=size, slices=slices)
            for subfolder, voxels in zip(("images", "masks"), drawn, strict=True):
                (folder / subfolder / f"MOGaMBO_{exam:03d}.nii.gz").write_bytes(nifti_bytes(voxels, affine))

    return publish(root, spec, fill)
