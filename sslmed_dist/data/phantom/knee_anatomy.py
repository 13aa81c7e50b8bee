"""The anatomy of a knee phantom: one 3-D drawing per exam, read in three planes, each with its weighting.

Lengths are millimetres in a frame whose origin is the middle of the joint: x to the lateral side, y to the back, z up.
Solids are signed distances (nz, ny, nx), negative inside (see ``canvas``). What is painted later covers the earlier.
The drawing is to be learnt from and recognised. It is a phantom: its lesions are caricatures without clinical meaning.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sslmed_dist.data.phantom.canvas import Canvas, Dice, Point, blend, ramp
from sslmed_dist.data.phantom.knee_signals import SIGNALS, SIGNALS_FS, SIGNALS_T1
from sslmed_dist.data.phantom.scanner import axis

FIELD_OF_VIEW = 150.0  # mm
CLOSE_UP = 90.0  # mm: the field of view of a knee that is ``varied``
# Order of a plane's axes (slice, row, column) among the canonical ones (z, y, x).
PLANES = {"axial": (0, 1, 2), "coronal": (1, 0, 2), "sagittal": (2, 0, 1)}
# Share of the field of view that slices cover: the outermost ones of a real exam still cut the joint.
REACH = {"axial": 0.86, "coronal": 0.72, "sagittal": 0.66}
CLOSE_REACH = 0.9  # of the close-up, in every plane
LABELS = ("abnormal", "acl", "meniscus")
Range = tuple[float, float]


@dataclass(frozen=True)
class Nature:
    """How far knees differ in what is no finding: the lowest and the highest value of each property.

    scale: of the whole knee. height, depth: mm by which it lies off the middle of the image, along z and y. signal:
    factor on the signal of each tissue. film, wet: thickness in mm and opacity of the fluid between the bones. recess:
    mm of fluid in the recesses around them. inner, rise: where the meniscus begins between the middle of its ring (0)
    and its outer rim (1), and its height there in mm.
    """

    scale: Range = (0.94, 1.06)
    height: Range = (0.0, 0.0)
    depth: Range = (-3.0, 3.0)
    signal: Range = (0.92, 1.08)
    film: Range = (1.0, 1.0)
    wet: Range = (0.35, 0.35)
    recess: Range = (0.8, 1.8)
    inner: Range = (0.48, 0.48)
    rise: Range = (2.0, 2.0)


ALIKE = Nature()
VARIED = Nature(
    scale=(0.9, 1.1),
    height=(-6.0, 6.0),
    depth=(-6.0, 6.0),
    signal=(0.85, 1.15),
    film=(0.6, 1.6),
    wet=(0.2, 0.6),
    recess=(0.8, 4.0),
    inner=(0.42, 0.54),
    rise=(1.4, 2.6),
)


@dataclass(frozen=True)
class Knee:
    """What one exam holds: its key and its labels. An ACL or meniscus tear implies ``abnormal``. ``small``: findings
    are a few millimetres wide and lie in few slices; none changes the whole joint. ``varied``: small as well, and
    states of structures that vary in every knee (``VARIED``); the image is a close-up of the joint."""

    subject: int
    abnormal: bool
    acl: bool
    meniscus: bool
    small: bool = False
    varied: bool = False

    def __post_init__(self) -> None:
        assert self.small or not self.varied

    @property
    def laterality(self) -> str:
        """ "left" or "right"."""
        return "left" if Dice(self.subject).chance(0.5, "side") else "right"

    @property
    def nature(self) -> Nature:
        """How far this knee may differ from others in what is no finding."""
        return VARIED if self.varied else ALIKE


def bones(c: Canvas) -> dict[str, Tensor]:
    """Signed distances to femur, tibia, fibula and patella."""
    flare = ramp((72.0 - c.z) / 46.0)
    shaft = torch.maximum(c.column(14.0 + 24.0 * flare, 13.0 + 9.0 * flare, -4.0 - 2.0 * flare), 20.0 - c.z)
    condyles = torch.minimum(c.ellipsoid((-22, 6, 21), (17, 29, 21)), c.ellipsoid((22, 5, 21), (17, 28, 20.5)))
    femur = blend(blend(shaft, c.ellipsoid((0, -11, 26), (31, 17, 18)), 6.0), condyles, 4.0)
    notch = c.ellipsoid((0, 23, 4), (8.5, 28, 23))
    femur = torch.maximum(torch.maximum(femur, -notch), -c.ellipsoid((0, -38, 28), (8, 13, 26)))
    taper = ramp((-8.0 - c.z) / 55.0)
    plateau = c.column(40.0 - 23.0 * taper, 27.0 - 11.0 * taper, 6.0 - 5.0 * taper)
    # Intersection with a rounded edge: the union of the complements.
    tibia = -blend(-plateau, -(c.z + 5.0), 4.0)
    spines = torch.minimum(c.ellipsoid((-4, 6, -6), (3.5, 8, 6)), c.ellipsoid((5, 6, -6), (3.5, 8, 6)))
    tibia = blend(blend(tibia, spines, 2.0), c.ellipsoid((0, -19, -36), (11, 9, 15)), 6.0)
    fibula = c.segment((32, 20, -24), (33, 22, -90), 7.0)[0]
    return {"femur": femur, "tibia": tibia, "fibula": fibula, "patella": c.ellipsoid((0, -39, 31), (20, 8.5, 19))}


def leg(c: Canvas) -> None:
    """Paint skin, fat, fascia, muscles and vessels."""
    wide = 1.0 + 0.0012 * (c.z + 10.0)
    outline = c.column(63.0 * wide, 60.0 * wide, 5.0)
    lobules = 0.04 * c.texture("lobules", 34) + 0.03 * c.texture("fat", 8)
    cover = c.dice.between(5.0, 10.0, "fat")
    for inset, tissue in ((0.0, "skin"), (1.8, "fat"), (cover, "tendon"), (cover + 0.7, "deep fat")):
        c.paint(outline + inset, tissue, lobules if "fat" in tissue else 0.0, 0.6 if tissue == "tendon" else 1.0)
    grain = 0.14 * c.texture("fibres", 18) + 0.08 * c.texture("bundles", 40)
    muscles: tuple[tuple[Point, Point], ...] = (
        ((-20, 42, -50), (20, 15, 58)),
        ((21, 42, -50), (18, 14, 56)),
        ((-26, 38, 66), (21, 18, 52)),
        ((28, 36, 66), (17, 17, 52)),
        ((-42, 18, 58), (9, 14, 60)),
        ((-28, -16, 70), (22, 26, 46)),
        ((30, -14, 74), (19, 26, 48)),
        ((0, -29, 92), (26, 9, 26)),
        ((2, 27, -68), (28, 13, 52)),
        ((30, -5, -74), (15, 20, 54)),
    )
    for centre, radii in muscles:
        belly = torch.maximum(c.ellipsoid(centre, radii), outline + cover + 2.0)
        c.paint(belly - 0.7, "tendon", opacity=0.5)
        c.paint(belly, "muscle", grain)
    for start, end, radius in (((1, 42, 90), (3, 37, -90), 3.4), ((8, 46, 90), (9, 42, -90), 3.0)):
        c.paint(c.segment((*start,), (*end,), radius)[0], "vessel")


def fluid(c: Canvas, knee: Knee, bone: dict[str, Tensor]) -> None:
    """Paint the joint fluid: a film in every knee; with an effusion it is thicker and the recesses around it swell."""
    joint = torch.minimum(bone["femur"], bone["tibia"])
    capsule = c.ellipsoid((0, 6, 14), (44, 36, 30))
    swollen = knee.abnormal and effusion(knee)
    film = c.dice.between(*((2.5, 4.0) if swollen else knee.nature.film), "film")
    opacity = 0.9 if swollen else c.dice.between(*knee.nature.wet, "wet")
    c.paint(torch.maximum(joint - film, capsule), "fluid", opacity=opacity)
    thick = c.dice.between(*((5.0, 10.0) if swollen else knee.nature.recess), "recess")
    pouch = c.ellipsoid((0, -27 - thick / 3, 58), (22 + thick, thick, 17 + thick))
    gutters = torch.minimum(c.ellipsoid((-41, -6, 22), (thick, 15, 17)), c.ellipsoid((41, -6, 22), (thick, 15, 17)))
    c.paint(torch.minimum(pouch, gutters), "fluid", 0.04 * c.texture("debris", 20), 1.0 if swollen else 0.6)
    if swollen and c.dice.chance(0.35, "cyst"):
        c.paint(c.ellipsoid((-17, 39, 4), (8, 6, 17)), "fluid")


def effusion(knee: Knee) -> bool:
    """Whether an abnormal exam has an effusion, which is never a small finding. Those without a tear have one or a bone
    bruise."""
    return not knee.small and Dice(knee.subject).chance(0.85 if knee.acl else 0.6, "effusion")


def menisci(c: Canvas, knee: Knee) -> None:
    """Paint the menisci: two wedges, open to the middle; a tear is a bright line through one of them."""
    torn = -1.0 if c.dice.chance(0.65, "torn side") else 1.0
    for side, (width, depth) in ((-1.0, (19.0, 25.0)), (1.0, (18.0, 21.5))):
        across, ahead = side * c.x - 21.0, c.y - 5.0
        # 1 at the outer rim of the elliptic ring; its height grows from the inner rim outwards
        rim = torch.sqrt((across / width) ** 2 + (ahead / depth) ** 2)
        inner = c.dice.between(*knee.nature.inner, f"inner rim {side}")
        rise = c.dice.between(*knee.nature.rise, f"rise {side}")
        height = c.z + 5.0
        wedge = torch.maximum(torch.maximum(rim - 1.0, inner - rim) * width, height - rise - 13.0 * (rim - 0.5))
        wedge = torch.maximum(wedge, -height - 2.0)
        gap = torch.maximum(across + 9.0, ahead.abs() - 8.0)
        wedge = torch.maximum(wedge, -gap)  # the ring is cut open towards the middle of the joint
        c.paint(wedge, "meniscus", 0.15 * c.texture("fibrocartilage", 30))
        if not (knee.meniscus and side == torn):
            continue
        # a tear: an oblique or an upright sheet, within a range of angles around the ring
        slope = c.dice.between(0.2, 0.8, "tear slope")
        oblique = (height - 3.2 - slope * width * (rim - 0.78)).abs()
        upright = ((rim - c.dice.between(0.72, 0.84, "tear rim")) * width).abs()
        line = oblique if c.dice.chance(0.6, "oblique") else upright
        middle = c.dice.between(0.3, 1.5, "tear angle")
        span, half = ((0.6, 0.9), 1.4) if knee.varied else ((0.45, 0.8), 1.0)
        turn = (torch.atan2(ahead, across) - middle).abs() - c.dice.between(*span, "tear span")
        c.paint(torch.maximum(torch.maximum(line - half, wedge), turn * width), "fluid", opacity=0.95)


def ligaments(c: Canvas, knee: Knee) -> None:
    """Paint the cruciates, the collaterals, and the patellar and quadriceps tendons."""
    (varied_cruciate if knee.varied else anterior_cruciate)(c, knee)
    for start, end in (  # the posterior cruciate, in three straight pieces
        ((-6, 3, 15), (-4, 15, 15)),
        ((-4, 15, 15), (-2, 26, 6)),
        ((-2, 26, 6), (0, 32, -14)),
    ):
        c.paint(c.segment((*start,), (*end,), 4.2)[0], "tendon")
    sheets: tuple[tuple[Point, Point], ...] = (
        ((0, -42, -4), (13, 2.6, 34)),
        ((0, -39, 70), (16, 3.0, 24)),
        ((-41.5, 4, -4), (1.8, 9, 42)),
        ((42.0, 12, 2), (1.8, 4, 30)),
    )
    for centre, radii in sheets:
        c.paint(c.ellipsoid(centre, radii), "tendon", opacity=0.95)


def anterior_cruciate(c: Canvas, knee: Knee) -> None:
    """Paint the ACL: a dark oblique band; torn, it is interrupted (0), wavy and swollen (1), or gone (2)."""
    start, end = (5.0, 18.0, 21.0), (-2.0, -10.0, -3.0)
    if not knee.acl:
        band, along = c.segment(start, end, 3.9)
        c.paint(band, "tendon", 1.5 * along * c.texture("strands", 44).clamp(min=0.0))
        return
    kind = 0 if knee.small else c.dice.pick(0, 2, "acl tear")
    haze, along = c.segment(start, end, 7.0 if kind == 1 else 6.0)
    c.paint(haze, "torn", 0.12 * c.texture("haze", 40), 0.85)
    if kind == 0:
        middle, half = c.dice.between(0.4, 0.6, "gap middle"), c.dice.between(0.14, 0.24, "gap half")
        stump = torch.maximum(c.segment(start, end, 3.9)[0], (half - (along - middle).abs()) * 38.0)
        c.paint(stump, "tendon", opacity=0.9)
    elif kind == 1:
        c.paint(c.segment(start, end, 2.6, wave=c.dice.between(2.5, 4.0, "wave"))[0], "tendon", opacity=0.75)
    else:
        c.paint(c.segment(start, end, 2.5)[0], "fluid", 0.2 * c.texture("haze", 40), 0.6)


def varied_cruciate(c: Canvas, knee: Knee) -> None:
    """Paint the ACL of a knee that is ``varied``: a dark band of varied course and width within a synovia of varied
    width and signal. Torn, the band has a gap of 9 to 14 mm, and the synovia is thicker and bright."""
    between = c.dice.between
    start = (5.0, 18.0 + between(-2.0, 2.0, "acl above"), 21.0)
    end = (-2.0, -10.0 + between(-2.0, 2.0, "acl below"), -3.0)
    synovia = c.segment(start, end, between(*((5.0, 6.0) if knee.acl else (4.0, 5.0)), "synovia"))[0]
    opacity = 0.85 if knee.acl else between(0.15, 0.5, "synovia opacity")
    c.paint(synovia, "torn", 0.12 * c.texture("haze", 40), opacity)
    band, along = c.segment(start, end, between(3.4, 4.2, "acl radius"))
    if knee.acl:
        middle, half = between(0.4, 0.6, "gap middle"), between(0.12, 0.18, "gap half")
        band = torch.maximum(band, (half - (along - middle).abs()) * 38.0)
    c.paint(band, "tendon", 1.5 * along * c.texture("strands", 44).clamp(min=0.0))


def skeleton(c: Canvas, knee: Knee, bone: dict[str, Tensor]) -> None:
    """Paint cartilage, cortex and marrow, with growth-plate scars and, in some abnormal knees, bone bruises."""
    # cartilage is the bone made larger, where it faces the joint
    articular = torch.maximum(bone["femur"] - 2.2, torch.maximum(c.z - 36.0, 8.5 - c.x.abs()))
    c.paint(articular, "cartilage")
    c.paint(torch.maximum(bone["tibia"] - 2.0, torch.maximum(-7.0 - c.z, 7.0 - c.x.abs())), "cartilage")
    c.paint(torch.maximum(bone["patella"] - 3.0, -35.0 - c.y), "cartilage")
    trabeculae = 0.09 * c.texture("trabeculae", 48) + 0.06 * c.texture("marrow", 9)
    for name, distance in bone.items():
        c.paint(distance, "cortex")
        c.paint(distance + (2.2 if name == "fibula" else 1.3), "marrow", trabeculae)
    for name, level in (("femur", 32.0), ("tibia", -20.0)):
        scar = (c.z - level - 1.5 * torch.cos(c.x / 9.0)).abs() - 0.2
        c.paint(torch.maximum(scar, bone[name] + 1.5), "cortex", opacity=0.4)
    if knee.abnormal and (c.dice.chance(0.3, "bruise") or not (knee.acl or knee.meniscus or effusion(knee))):
        side, upper = (-1.0 if c.dice.chance(0.4, "bruise side") else 1.0), c.dice.chance(0.6, "bruise upper")
        centre = (side * 21.0, c.dice.between(-8.0, 14.0, "bruise y"), 8.0 if upper else -13.0)
        blob = c.ellipsoid(centre, (6, 6.5, 5) if knee.small else (12, 13, 9)) + 2.5 * c.texture("bruise edge", 14)
        c.paint(torch.maximum(blob, bone["femur" if upper else "tibia"] + 1.3), "oedema", opacity=0.8)


def field_of_view(knee: Knee) -> float:
    """Millimetres along a side of the exam's slices."""
    side = CLOSE_UP if knee.varied else FIELD_OF_VIEW
    return side / Dice(knee.subject).between(*knee.nature.scale, "scale")


def draw_knee(knee: Knee, plane: str, slices: int, size: int, contrast: str = "pd") -> Tensor:
    """The exam in one plane and one of ``CONTRASTS`` before acquisition, (slices, size, size) float32 in [0, 1].

    Rows run from front to back (axial) or from top to bottom, columns from the patient's right to the left or from
    front to back (sagittal). Slices cover the middle of the field of view, from top to bottom (axial), from front to
    back (coronal) or from right to left.
    """
    order, dice, nature = PLANES[plane], Dice(knee.subject), knee.nature
    reach = CLOSE_REACH if knee.varied else REACH[plane]
    lines = [torch.empty(0)] * 3  # coordinates in mm along z, y, x
    for dimension, count, share in zip(order, (slices, size, size), (reach, 1.0, 1.0), strict=True):
        lines[dimension] = field_of_view(knee) * share * (axis(count) - 0.5)
    side = 1.0 if knee.laterality == "left" else -1.0  # the mirror image
    weighting = list(PLANES).index(plane)
    tables = {"t1": SIGNALS_T1, "fs": SIGNALS_FS, "pd": {name: value[weighting] for name, value in SIGNALS.items()}}
    signals = {name: value * dice.between(*nature.signal, f"signal {name}") for name, value in tables[contrast].items()}
    # z runs up and the rows of an image run down, hence the minus
    height, depth = dice.between(*nature.height, "height"), dice.between(*nature.depth, "shift")
    coordinates = (height - lines[0], lines[1] + depth, side * lines[2])
    canvas = Canvas(dice, coordinates, reach=85.0, signals=signals, bend=1.6, near=9.0, edge=1.0)
    bone = bones(canvas)
    leg(canvas)
    fluid(canvas, knee, bone)
    menisci(canvas, knee)
    ligaments(canvas, knee)
    skeleton(canvas, knee, bone)
    return canvas.image.permute(*order).clamp(0.0, 1.0)
