"""The one reader of examinations of several series: which series there are, which plane each shows, and its slices.

Files may lie at any depth and in any order: the tags say which series a file belongs to, and the positions say where a
slice lies. Only headers are read to find out; ``series_stack`` then reads the pixels of one series. NIfTI files are
series as well, one each. What is no stack of slices of one contrast is left aside, with the reason.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sslmed_dist.data.exams.planes import nearest_plane, plane_spacing, slices_last, upright
from sslmed_dist.data.exams.series_tags import Tags, read_tags
from sslmed_dist.data.scans.completeness import ends_missing, ends_unknown, stride_of
from sslmed_dist.data.scans.dicom import SAME_PLACE, affine_of, differ, unlike, usual_gap
from sslmed_dist.data.scans.dicom_header import pixels_lost, read_header, shape_of_name
from sslmed_dist.data.scans.frames import BELONGS, Frame, frames_of
from sslmed_dist.data.scans.grid import IMPLAUSIBLE, check_grid
from sslmed_dist.data.scans.nifti import SUFFIXES as NIFTI_SUFFIXES
from sslmed_dist.data.scans.nifti import affine_mm, notices_of, open_volume
from sslmed_dist.data.scans.scan import stem
from sslmed_dist.printable import plural

MOST_OBLIQUE = 45.0  # degrees between the normal of the slices and the nearest axis of the patient
MIXED = 0.98  # cosine of 11 degrees: images turned more than this against each other lie in several planes
LOCALIZER = re.compile(
    r"(?:^|[^a-z])(?:loc|locali[sz]ers?|scouts?|survey|topogram|3[ -]?plane)(?:[^a-z]|$)", re.IGNORECASE
)
MAPS = {"ADC", "EADC", "FA", "TTP", "CBV", "CBF", "MTT", "T1 MAP", "T2 MAP", "SUBTRACTION", "MPR", "PROJECTION IMAGE"}
MAP_WORDS = re.compile(
    r"(?:^|[^a-z])(?:e?adc|calc_?bval|calc|computed|synthetic|mip|mpr|subtraction)(?:[^a-z]|$)|CALC_BVAL", re.IGNORECASE
)
DAMAGED = "a damaged file"
Image = tuple[Frame, Tags, str]  # its place, its tags, and in words what is lost of its pixels


@dataclass(frozen=True)
class Series:
    """One stack of slices of an examination; its pixels are not read. Paths, description and numbers are the site's.

    plane        of PLANES; oblique: degrees between it and the slices
    shape        (slices, rows, columns), spacing_mm (slices, rows, columns), of the upright stack
    missing      slices that are missing by the gaps between the others, or by counts in the files; holes names the
                 files around each gap, or says which count
    ends_known   whether the files say how many slices there are
    damaged      a line for each file of it whose pixels are not all there: such a series is not read
    notices      what was guessed or replaced, without a name of a file
    """

    files: tuple[Path, ...]
    nifti: bool
    plane: str
    oblique: float
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    missing: int
    tags: Tags
    holes: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    ends_known: bool = True
    damaged: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """What rules are matched against, in one line: the description, then the facts as ``name=value``."""
        tags, (slices, rows, columns) = self.tags, self.shape
        facts = {
            "plane": self.plane,
            "oblique": f"{self.oblique:.0f}",
            "slices": str(slices),
            "size": f"{rows}x{columns}",
            "pixel": f"{self.spacing_mm[1]:.3f}",
            "step": f"{self.spacing_mm[0]:.2f}",
            "te": "" if tags.echo_ms is None else f"{tags.echo_ms:g}",
            "tr": "" if tags.repetition_ms is None else f"{tags.repetition_ms:g}",
            "number": str(tags.number),
        }
        return " ".join([tags.description, *(f"{name}={value}" for name, value in facts.items() if value)])


@dataclass(frozen=True)
class LeftAside:
    """Images of an examination that are not used. ``reason`` names no file; ``detail`` is for the site's own eyes."""

    description: str
    images: int
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Examination:
    """The series of one examination by their numbers, what was left aside, and the number of files without an image.

    ``studies`` and ``patients`` are the identifiers that its files name.
    """

    series: tuple[Series, ...]
    aside: tuple[LeftAside, ...]
    other_files: int
    studies: tuple[str, ...]
    patients: tuple[str, ...]


@dataclass
class Gathered:
    """What stands in the files of an examination, before it is known which images make a stack."""

    images: dict[tuple[str, str], list[Image]]  # by study and series
    series: list[Series]  # NIfTI
    aside: list[LeftAside]
    others: list[Path]  # files without an image
    copies: int = 0


def read_examination(files: Sequence[Path], *, derived: bool = False) -> Examination:
    """The series in ``files``, of one examination. A damaged file is left aside, and so are localizers, maps that were
    computed from other series, images that do not lie in one stack, and single images. With ``derived`` those are kept
    that are a stack, and would be left aside only for what their tags call them.

    A file that is no image counts as damaged where it is called like an image beside it, but for the numbers."""
    found = gathered(files)
    names = {(path.parent, shape_of_name(path.name)) for path in (i[0].path for g in found.images.values() for i in g)}
    like = [path for path in found.others if (path.parent, shape_of_name(path.name)) in names]
    found.aside += [
        LeftAside("", 1, DAMAGED, f"{path}: no image, but called like the images beside it") for path in like
    ]
    for images in found.images.values():
        lost = tuple(dict.fromkeys(loss for _, _, loss in images if loss))
        entry = dicom_series([frame for frame, _, _ in images], images[0][1], lost, derived)
        (found.aside if isinstance(entry, LeftAside) else found.series).append(entry)  # type: ignore[arg-type]
    if found.copies:
        found.aside.append(LeftAside("", found.copies, "a second copy of an image"))
    tags_of_all = [tags for images in found.images.values() for _, tags, _ in images]
    return Examination(
        tuple(sorted(found.series, key=lambda item: (item.tags.number, item.tags.description, item.files[0].name))),
        tuple(found.aside),
        len(found.others) - len(like),
        tuple(sorted({tags.study for tags in tags_of_all} - {""})),
        tuple(sorted({tags.patient for tags in tags_of_all} - {""})),
    )


def gathered(files: Sequence[Path]) -> Gathered:
    """The headers of all ``files``, read one by one."""
    found = Gathered({}, [], [], [])
    seen: set[str] = set()
    for path in files:
        nifti = path.name.lower().endswith(NIFTI_SUFFIXES)
        reason = "a NIfTI file that is no volume of slices" if nifti else DAMAGED
        try:
            if nifti:
                found.series.append(nifti_series(path))
                continue
            header = read_header(path, pixels=False)
            if header is None:
                found.others.append(path)
                continue
            tags = read_tags(path, header)
            loss = pixels_lost(path, header)
            reason = "an image that does not say where it lies"
            frames = frames_of(path, header)
        except ValueError as error:
            reason = IMPLAUSIBLE if IMPLAUSIBLE in str(error) else reason
            found.aside.append(LeftAside("", 1, reason, str(error)))
            continue
        if tags.instance and tags.instance in seen:
            found.copies += 1
            continue
        seen.add(tags.instance)
        found.images.setdefault((tags.study, tags.series), []).extend((frame, tags, loss) for frame in frames)
    return found


def dicom_series(
    frames: list[Frame], tags: Tags, damaged: tuple[str, ...] = (), derived: bool = False
) -> Series | LeftAside:
    """The stack that the ``frames`` of one SeriesInstanceUID are, or why they are none. ``damaged``: see ``Series``;
    ``derived``: see ``read_examination``."""
    reason, detail = why_no_stack(frames, tags, derived)
    if reason:
        return LeftAside(tags.description, len(frames), reason, detail)
    normal = frames[0].normal
    ordered = sorted(frames, key=lambda frame: float(frame.position @ normal))
    gaps = np.diff([float(frame.position @ normal) for frame in ordered])  # (S - 1,) mm
    step = usual_gap(gaps)
    affine = affine_of(ordered[0], normal * step)
    try:
        check_grid((*frames[0].shape[::-1], len(frames)), affine, str(ordered[0].path))
    except ValueError as error:
        return LeftAside(tags.description, len(frames), IMPLAUSIBLE, str(error))
    plane, oblique = nearest_plane(affine)
    if oblique > MOST_OBLIQUE:
        return LeftAside(tags.description, len(frames), f"of no plane (oblique by {oblique:.0f} degrees)")
    missing = int(np.maximum(np.rint(gaps / step) - 1, 0).sum())
    pairs = zip(ordered[:-1], ordered[1:], gaps, strict=True)
    holes = [f"between {before.name} and {after.name}" for before, after, gap in pairs if gap > 1.5 * step]
    stated, stride = [frame.stated for frame in ordered], stride_of(step, ordered)
    at_ends, why = ends_missing([frame.instance for frame in ordered], stated, missing)
    in_turn = (stride.every - 1) * (len(frames) - 1)
    one_file = len({frame.path for frame in frames}) == 1
    holes += [f"at an end ({why})"] if at_ends else []
    holes += [f"in turn ({stride.why})"] if in_turn else []
    return Series(
        files=tuple(dict.fromkeys(frame.path for frame in ordered)),
        nifti=False,
        plane=plane,
        oblique=oblique,
        shape=upright(np.empty((frames[0].shape[1], frames[0].shape[0], len(frames)), bool), affine, plane).shape,
        spacing_mm=(step, *plane_spacing(affine, plane)),
        missing=missing + at_ends + in_turn,
        holes=tuple(holes),
        notices=(stride.doubt,) if stride.doubt and not one_file else (),
        tags=tags,
        ends_known=not ends_unknown(stated) or one_file,
        damaged=damaged,
    )


def why_no_stack(frames: Sequence[Frame], tags: Tags, derived: bool) -> tuple[str, str]:
    """(reason, detail for the site) why the images of a series are no stack of one contrast; two empty texts where they
    are one."""
    cosines = [abs(float(frame.normal @ frames[0].normal)) for frame in frames]
    if min(cosines) < MIXED:
        planes = {int(np.abs(frame.normal).argmax()) for frame in frames}
        return f"a localizer (its images lie in {max(len(planes), 2)} planes)", ""
    if not derived and ("LOCALIZER" in tags.image_type or LOCALIZER.search(tags.description)):
        return "a localizer by its name", ""
    places = Counter(round(float(frame.position @ frames[0].normal) / SAME_PLACE / 10) for frame in frames)
    if len(places) < len(frames):
        return f"several volumes and not one ({plural(len(frames), 'image')} in {plural(len(places), 'place')})", ""
    if not derived and (MAPS & set(tags.image_type) or MAP_WORDS.search(tags.description)):
        return "a map computed from other series", ""
    made = "SECONDARY" in tags.image_type[1:2] or ("DERIVED" in tags.image_type[:1] and not tags.lossy)
    if made and not derived:
        return "derived from other images", ""
    if len(frames) < 2:
        return "a single image", ""
    for frame in frames[1:]:
        difference = unlike(frame, frames[0])
        if difference:
            kind = "images of differing sizes" if frame.shape != frames[0].shape else "images of differing geometry"
            others = [word for word, *two in zip(BELONGS.values(), frame.of, frames[0].of, strict=True) if differ(*two)]
            kind = f"images of several {others[0]}" if others else kind
            return kind, f"{frame.path}: {difference}"
    return "", ""


def nifti_series(path: Path) -> Series:
    """The volume of a NIfTI file. Its slices follow each other along the axis of the largest voxel side, along the last
    one where the sides are equal. ``ValueError`` as ``open_volume``, also for a single slice."""
    image = open_volume(path)
    affine, order = slices_last(affine_mm(image))
    plane, oblique = nearest_plane(affine)
    if oblique > MOST_OBLIQUE:
        raise ValueError(f"{path}: oblique by {oblique:.0f} degrees, so of no plane")
    turned = upright(np.empty([image.shape[axis] for axis in order], bool), affine, plane)
    if turned.shape[0] < 2:
        raise ValueError(f"{path}: a single slice; a volume has at least 2")
    return Series(
        files=(path,),
        nifti=True,
        plane=plane,
        oblique=oblique,
        shape=turned.shape,
        spacing_mm=(float(np.linalg.norm(affine[:3, 2])), *plane_spacing(affine, plane)),
        missing=0,
        tags=Tags(description=stem(path)),
        notices=tuple(notices_of(image.header)),
    )
