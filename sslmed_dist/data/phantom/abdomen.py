"""Abdominal phantoms: T2-weighted, fat-suppressed volumes with masks of liver, kidneys and spleen as NIfTI.

Lengths are millimetres from the middle of the body: x to the patient's left, y to the front, z up. The body fills the
field of view whatever the size in voxels. Signals differ from patient to patient and overlap between organs, bowel and
stomach, so where a voxel lies and what surrounds it say more than how bright it is. It is a phantom: the drawing has
no clinical meaning.

Organs are signed distances in mm, (nz, ny, nx), negative inside (``canvas`` explains the arithmetic). The numbers in
the functions are positions and half-axes in mm.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sslmed_dist.data.phantom.canvas import Canvas, Dice, blend
from sslmed_dist.data.phantom.publish import assign_sites, publish, require_counts, write_rows
from sslmed_dist.data.phantom.scanner import Scanner, acquire, axis, scanner
from sslmed_dist.data.scans.nifti_writing import nifti_bytes
from sslmed_dist.randomness import key

ORGANS = ("liver", "right kidney", "left kidney", "spleen")  # values 1 to 4 of a mask
BREADTH, HEIGHT = 320.0, 250.0  # mm covered in plane and along z
SPACING = (1.25, 1.25, 7.7)  # mm, as the header says at any size: what prepared volumes of the real set have
# Range of a tissue's signal over patients.
SIGNALS: dict[str, tuple[float, float]] = {
    "skin": (0.22, 0.34),
    "fat": (0.08, 0.17),
    "muscle": (0.15, 0.25),
    "cavity": (0.06, 0.13),
    "lung": (0.02, 0.05),
    "heart": (0.15, 0.45),
    "vertebra": (0.24, 0.38),
    "cord": (0.40, 0.55),
    "fluid": (0.85, 1.00),
    "aorta": (0.06, 0.75),
    "vein": (0.20, 0.70),
    "pancreas": (0.35, 0.55),
    "gut": (0.35, 0.60),
    "stomach": (0.25, 0.90),
    "spleen": (0.45, 0.85),
    "kidney": (0.55, 0.95),
    "liver": (0.28, 0.48),
}


def trunk(c: Canvas) -> Tensor:
    """Paint skin, fat, wall, cavity and lungs; return the signed distance to the cavity."""
    dice = c.dice
    waist = 1.0 - 0.07 * torch.exp(-(((c.z + 70.0) / 50.0) ** 2))
    outline = c.column(dice.between(134, 150, "width") * waist, dice.between(90, 108, "depth") * waist, 0.0)
    fat = dice.between(4.0, 16.0, "fat")
    lobules = 0.2 * c.texture("lobules", 22) + 0.15 * c.texture("depot", 6)
    # Fat lies thicker at the back than in front.
    layer = outline + fat * (1.0 - 0.2 * torch.tanh(c.y / 60.0))
    # each layer is the outline made smaller; painted from the outside in, the next covers the middle of the last
    cavity = layer + dice.between(7.0, 11.0, "wall")
    c.paint(outline, "skin")
    c.paint(outline + 2.5, "fat", lobules)
    c.paint(layer, "muscle", 0.12 * c.texture("fibres", 30))
    c.paint(cavity, "cavity", 0.35 * c.texture("mesentery", 18))
    # the lungs are what lies in the cavity above the diaphragm's dome
    dome = c.ellipsoid((0, 5, -30), (175, 135, dice.between(128, 140, "dome")))
    c.paint(torch.maximum(cavity, -dome), "lung", 0.5 * c.texture("lung", 24))
    heart = torch.maximum(c.ellipsoid((24, 38, 122), (52, 44, 34)), 6.0 - dome)
    c.paint(torch.maximum(heart, cavity), "heart", 0.35 * c.texture("heart", 12))
    return cavity


def spine(c: Canvas) -> Tensor:
    """Paint vertebrae, canal and the muscles beside them; return the signed distance to the vertebral bodies."""
    grain = 0.14 * c.texture("fibres", 30)
    for side in (-1.0, 1.0):
        c.paint(c.ellipsoid((side * 30, -74, -10), (25, 19, 190)), "muscle", grain)
        c.paint(c.ellipsoid((side * 34, -42, -95), (15, 18, 90)), "muscle", grain)
    bodies = c.column(torch.full_like(c.z, 22.0), torch.full_like(c.z, 18.0), -42.0)
    arch = c.column(torch.full_like(c.z, 17.0), torch.full_like(c.z, 13.0), -68.0)
    # vertebrae and discs alternate every 34 mm
    discs = 0.35 * torch.cos(c.z * (2 * torch.pi / 34.0)).clamp(min=-0.3)
    c.paint(torch.minimum(bodies, arch) - 1.5, "cavity")
    c.paint(arch, "vertebra", -0.35)
    c.paint(bodies, "vertebra", discs + 0.08 * c.texture("trabeculae", 36))
    c.paint(c.column(torch.full_like(c.z, 9.0), torch.full_like(c.z, 7.0), -67.0), "fluid")
    c.paint(c.column(torch.full_like(c.z, 4.5), torch.full_like(c.z, 3.5), -67.0), "cord")
    return bodies


def bowel(c: Canvas, cavity: Tensor) -> None:
    """Paint loops of gut whose content runs from dark to as bright as a kidney, and the colon."""
    content = torch.sigmoid(2.0 * c.texture("content", 13))
    folds = c.texture("loops", 15)
    chyme = 1.5 * content - 0.55 + 0.15 * c.texture("chyme", 34)
    # three regions of small bowel, each filled with loops
    for centre, radii in (((6, 34, -88), (104, 60, 82)), ((-20, 40, -40), (60, 40, 40)), ((70, 30, -30), (45, 45, 45))):
        region = torch.maximum(c.ellipsoid((*centre,), (*radii,)), cavity + 5.0)
        # Loops are the bands around the folds' zero: a wall, and inside it a content.
        loop = torch.maximum(region, (folds.abs() - 0.75) * 12.0)
        c.paint(loop, "gut", -0.25)
        c.paint(loop + 2.5, "gut", chyme)
    # ascending, two halves of transverse, and descending colon: (start, end, radius)
    tubes = (
        ((-94, 8, -130), (-90, 18, -38), 20.0),
        ((-88, 40, -30), (0, 66, -38), 15.0),
        ((0, 66, -38), (86, 44, -12), 15.0),
        ((104, 0, -5), (98, -14, -130), 16.0),
    )
    for tube_index, (start, end, radius) in enumerate(tubes):
        wide = radius * c.dice.between(0.75, 1.2, f"colon {tube_index}")
        tube = torch.maximum(c.segment((*start,), (*end,), wide)[0] + 3.0 * c.texture("haustra", 20), cavity + 3.0)
        filled = c.dice.between(-0.8, 0.7, f"colon content {tube_index}")
        c.paint(tube, "gut")
        c.paint(tube + 3.0, "gut", filled + 0.3 * c.texture("stool", 26))


def viscera(c: Canvas, cavity: Tensor) -> None:
    """Paint great vessels, pancreas and stomach."""
    c.paint(c.segment((9, -14, -140), (6, -16, 140), 9.5)[0], "aorta")
    c.paint(c.segment((-19, -14, -140), (-17, -6, 95), 10.0)[0], "vein")
    head, tail = c.ellipsoid((-14, 16, -4), (22, 15, 24)), c.segment((-8, 18, 2), (62, -8, 22), 9.0)[0]
    c.paint(blend(head, tail, 8.0) + 2.5 * c.texture("lobes", 30), "pancreas", 0.15 * c.texture("gland", 40))
    c.paint(c.segment((-70, -24, -14), (-18, -12, 4), 4.0)[0], "vein")
    c.paint(c.segment((64, -28, 2), (9, -10, 8), 4.0)[0], "vein")
    stomach = blend(c.ellipsoid((54, 26, 55), (40, 44, 46)), c.segment((48, 46, 26), (-4, 50, 4), 17.0)[0], 14.0)
    stomach = torch.maximum(stomach + 4.0 * c.texture("stomach", 7), cavity + 3.0)
    c.paint(stomach, "gut")
    # above this level (towards the front, for the patient lies on the back) the stomach holds gas
    level = c.dice.between(20.0, 75.0, "gas level")
    c.paint(stomach + 4.5, "stomach", 0.25 * c.texture("meal", 14))
    c.paint(torch.maximum(stomach + 4.5, level - c.y), "lung")


def kidney(c: Canvas, side: float) -> Tensor:
    """Signed distance to the kidney of one ``side`` (-1 right, 1 left): two poles and a hilum towards the spine."""
    name = "left" if side > 0 else "right"
    size = c.dice.between(0.88, 1.12, f"{name} size")
    x, y = side * c.dice.between(62, 74, f"{name} x"), c.dice.between(-32, -22, f"{name} y")
    z = c.dice.between(-30, -8, f"{name} z") + 6.0 * side
    # four ellipsoids in a row from the upper pole, which is nearer the spine, to the lower one
    parts = [
        c.ellipsoid((x + side * dx, y + dy, z + dz), (22 * size, 22 * size, 32 * size))
        for dx, dy, dz in ((-8, -6, 24), (5, -7, 6), (1, 7, -8), (7, 1, -26))
    ]
    outline = blend(blend(parts[0], parts[1], 12.0), blend(parts[2], parts[3], 12.0), 10.0)
    hilum = c.ellipsoid((x - side * 29 * size, y + 8, z), (12, 8, 18))
    return torch.maximum(outline + 1.5 * c.texture(f"{name} surface", 11), -hilum)


def organs(c: Canvas, cavity: Tensor, bodies: Tensor) -> dict[str, Tensor]:
    """Signed distances to the four organs. They never overlap: kidneys come first, the spleen gives way to the left
    one, the liver to all and to the spine (``bodies``)."""
    inside, dice = cavity + 2.0, c.dice
    right, left = (torch.maximum(kidney(c, side), inside) for side in (-1.0, 1.0))
    # spleen: an ellipsoid, hollowed towards the stomach, at least 3 mm from the left kidney
    grow = dice.between(0.85, 1.15, "spleen size")
    x, y, z = (dice.between(92, 102, "spleen x"), dice.between(-46, -28, "spleen y"), dice.between(30, 54, "spleen z"))
    spleen = c.ellipsoid((x, y, z), (38 * grow, 50 * grow, 48 * grow)) + 2.5 * c.texture("spleen surface", 7)
    spleen = torch.maximum(spleen, -c.ellipsoid((x - 42, y + 34, z), (40, 50, 70)))
    spleen = torch.maximum(torch.maximum(spleen, inside), 3.0 - left)
    # liver: a right and a left lobe, with a gap to every neighbour
    grow = dice.between(0.92, 1.08, "liver size")
    right_lobe = c.ellipsoid((-66, 2, dice.between(28, 42, "liver z")), (80 * grow, 86 * grow, 88 * grow))
    reach = dice.between(40, 78, "left lobe")
    left_lobe = c.ellipsoid((-8, 42, 66), (reach, 40 * grow, 40))
    liver = blend(right_lobe, left_lobe, 18.0) + 3.0 * c.texture("liver surface", 6)
    for neighbour, gap in ((right, 3.0), (bodies, 12.0), (spleen, 3.0), (left, 3.0)):
        liver = torch.maximum(liver, gap - neighbour)
    return {"liver": torch.maximum(liver, inside), "right kidney": right, "left kidney": left, "spleen": spleen}


def fill_organs(c: Canvas, organ: dict[str, Tensor]) -> None:
    """Paint the organs: vessels in the liver, cortex, pyramids and pelvis in the kidneys."""
    c.paint(organ["spleen"], "spleen", 0.06 * c.texture("pulp", 24))
    for name in ("right kidney", "left kidney"):
        outline, side = organ[name], -1.0 if name.startswith("right") else 1.0
        c.paint(outline, "kidney", 0.06 * c.texture("cortex", 30))
        lobes = 7.0 * c.texture(f"{name} pyramids", 24)
        c.paint((outline + 12.0).abs() - 4.0 + lobes, "kidney", -c.dice.between(0.2, 0.4, "medulla"))
        # The sinus opens towards the spine: fat, with the pelvis as bright streaks in it.
        sinus = torch.maximum(outline + 15.0, side * c.x - c.dice.between(66.0, 74.0, f"{name} sinus"))
        c.paint(sinus + 0.4 * lobes, "cavity", 3.0 * c.texture(f"{name} pelvis", 30).clamp(min=0.0), 0.9)
    liver = organ["liver"]
    c.paint(liver, "liver", 0.06 * c.texture("parenchyma", 30) + 0.05 * c.texture("segments", 5))
    # Where two fields vanish together there is a curve: a tree of vessels seen as spots and streaks.
    first, second = c.texture("portal a", 12), c.texture("portal b", 12)
    bright = 0.9 if c.dice.chance(0.7, "bright vessels") else -0.6
    tree = (torch.hypot(first, second) - 0.22) * 12.0
    c.paint(torch.maximum(tree, liver + 6.0), "liver", bright, 0.8)


def draw_abdomen(subject: int, size: int, slices: int) -> tuple[Tensor, Tensor]:
    """One exam before acquisition: image float32 in [0, 1] and mask uint8, both (slices, size, size).

    The mask holds 1 to 4 for ``ORGANS`` and 0 elsewhere. Slices run upwards, rows from back to front, columns from the
    patient's right to the left.
    """
    dice = Dice(subject)
    plane = BREADTH * (axis(size) - 0.5)
    # coordinates in mm along z, y and x; the patient lies a little differently in every exam
    lines = (HEIGHT * (axis(slices) - 0.5) + dice.between(-8, 8, "table"), plane, plane + dice.between(-5, 5, "shift"))
    signals = {name: dice.between(low, high, f"signal {name}") for name, (low, high) in SIGNALS.items()}
    c = Canvas(dice, lines, reach=165.0, signals=signals, bend=4.0, near=16.0, edge=max(1.5, BREADTH / size))
    cavity = trunk(c)
    bodies = spine(c)
    bowel(c, cavity)
    viscera(c, cavity)
    organ = organs(c, cavity, bodies)
    fill_organs(c, organ)
    if dice.chance(0.8, "gallbladder"):
        bladder = c.ellipsoid((-44, 50, dice.between(-20, 0, "gallbladder z")), (13, 18, 24))
        c.paint(torch.maximum(bladder, cavity + 3.0), "fluid")
        organ["liver"] = torch.maximum(organ["liver"], -bladder)
    mask = torch.zeros(c.image.shape, dtype=torch.uint8)
    for value, name in enumerate(ORGANS, start=1):
        mask[organ[name] < 0.0] = value
    return c.image.clamp(0.0, 1.0), mask


def abdomen_volume(subject: int, machine: Scanner, *, size: int, slices: int) -> tuple[np.ndarray, np.ndarray]:
    """The recorded exam: image int16 and mask uint8, (size, size, slices) with axes to the left, the front and up."""
    image, mask = draw_abdomen(subject, size, slices)
    recorded = acquire(image[None], machine, torch.tensor([key(subject, "acquire")]))[0]
    counts = Dice(subject).between(700.0, 1400.0, "receiver")  # MR units are arbitrary and differ between exams
    voxels = (counts * recorded).round().to(torch.int16).permute(2, 1, 0).contiguous()
    return voxels.numpy(), mask.permute(2, 1, 0).contiguous().numpy()


def nifti(volume: np.ndarray) -> bytes:
    """A NIfTI file with axes left, anterior, superior, centred."""
    affine = np.diag([-SPACING[0], SPACING[1], SPACING[2], 1.0])
    # NIfTI's x runs to the right and the first axis to the left, hence the minus; the middle lies at the origin
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(volume.shape) - 1) / 2)
    return nifti_bytes(volume, affine, level=4)


def write_abdomen(
    root: str | Path, *, exams: int = 20, sites: int = 4, size: int = 128, slices: int = 24, seed: int = 0
) -> Path:
    """Write abdominal phantoms into the folder ``root`` and return the folder.

    ``image_PP.nii.gz`` int16 and ``label_PP.nii.gz`` uint8 (size, size, slices), PP from 01, and ``sites.csv`` (header
    id,site). The header says 1.25 x 1.25 x 7.7 mm at any size; life size is 256. ``ValueError`` for fewer than 32
    pixels or 8 slices, or for a folder that holds something else.
    """
    require_counts(exams=exams)
    if size < 32 or slices < 8:
        raise ValueError(f"size, slices: expected at least 32 pixels and 8 slices, got {size} and {slices}")
    spec = {"kind": "abdomen", "version": 1, "exams": exams, "sites": sites, "size": size, "slices": slices}
    spec |= {"seed": seed, "scanners": [asdict(scanner(site, seed)) for site in range(sites)]}

    def fill(folder: Path) -> None:
        exam_sites = assign_sites(torch.arange(exams), sites, seed).tolist()
        for exam, site in enumerate(exam_sites, start=1):
            image, mask = abdomen_volume(key(seed, "abdomen", exam), scanner(site, seed), size=size, slices=slices)
            (folder / f"image_{exam:02d}.nii.gz").write_bytes(nifti(image))
            (folder / f"label_{exam:02d}.nii.gz").write_bytes(nifti(mask))
        write_rows(
            folder / "sites.csv", [("id", "site"), *((f"{i:02d}", s) for i, s in enumerate(exam_sites, start=1))]
        )

    return publish(root, spec, fill)
