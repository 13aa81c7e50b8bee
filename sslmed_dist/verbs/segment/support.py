"""The annotated scans: read with their masks, and made into the labels to look for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslmed_dist.atomic_files import sha256
from sslmed_dist.data.exams.mask_files import read_masks
from sslmed_dist.data.exams.one_series import OPTION, read_image
from sslmed_dist.data.exams.studies import Source
from sslmed_dist.data.scans.grid import place, same_grid
from sslmed_dist.data.scans.masks import chosen, name_of
from sslmed_dist.data.scans.scan import StoredScan
from sslmed_dist.downstream.oneshot.reliability import calibrated
from sslmed_dist.printable import note
from sslmed_dist.verbs.segment.facts import uncalibrated
from sslmed_dist.verbs.segment.model import Model, placed, standardised
from sslmed_dist.verbs.segment.search import Example, Kind, Organ, example, kind_of, learn
from sslmed_dist.verbs.segment.settings import Settings

SUPPORT_OPTION = "--support-series"  # as ``OPTION`` says it of queries


@dataclass(frozen=True)
class Annotated:
    """A scan as it was read, its path, lines about reading it, and the path of its masks."""

    image: Path
    mask: Path
    scan: StoredScan
    notices: Sequence[str]


def read_annotated(pairs: Sequence[tuple[Path, Path]], series: str) -> list[Annotated]:
    """The images of (image, mask) pairs, read; what reading them left aside is said."""
    return [Annotated(image, mask, *read_said(image, series, SUPPORT_OPTION)) for image, mask in pairs]


def read_support(
    model: Model, supports: Sequence[Annotated], labels: Sequence[int], settings: Settings
) -> tuple[list[Organ], Kind, dict[str, Any]]:
    """The organs to look for, the kind of scan of the last support, and what ``run.json`` says of it; the others stand
    there under ``more``. ``ValueError`` names the mask's file: see ``annotated``; or the support does not hold a label
    that is asked for."""
    read = [annotated(model, each, settings) for each in supports]
    organs, left_out = learn(model, [each for each, _ in read], chosen(read[-1][0].masks, labels))
    support, record = supports[-1], read[-1][1]
    for reason in left_out.values():
        note(f"{support.mask}: {reason}: left out")
    masks = read[-1][0].masks
    hidden = settings.naming.anonymous and masks.by_files
    record |= {
        "labels": {str(organ.label): name_of(organ.label) if hidden else masks.names[organ.label] for organ in organs},
        "calibrated": [organ.label for organ in organs if calibrated(masks.names[organ.label])],
        "left_out": {str(label): reason for label, reason in left_out.items()},
        "slices": {str(organ.label): [int(z) for z in organ.shown.slices] for organ in organs},
    }
    if len(read) > 1:
        record["more"] = [facts for _, facts in read[:-1]]
    for line in uncalibrated(record):
        note(line)
    return organs, kind_of(support.scan, read[-1][0].stack), record


def annotated(model: Model, support: Annotated, settings: Settings) -> tuple[Example, dict[str, Any]]:
    """A support as the model sees it, and what ``run.json`` says of its files. ``ValueError`` names the mask's file: it
    is unreadable, lies in another grid than its image, has values that are no integer ids, or is empty."""
    scan, naming = support.scan, settings.naming
    placement, masks = placed(model, scan), read_masks(support.mask, scan)
    of_mask = list(masks.notices)
    for line in of_mask:
        note(f"{support.mask}: {line}")
    if not same_grid(placement, place(masks.shape, masks.affine, pixel=model.pixel, size=model.size)):
        raise ValueError(
            f"{support.mask}: shape {masks.shape} or position differs from its image {support.image} of shape "
            f"{scan.voxels.shape}; a mask has to lie in the image's grid"
        )
    chosen(masks, ())  # an empty mask is refused before anything is computed
    if settings.quadrants:
        require_oriented(scan)
    stack, clipping = standardised(scan, placement, settings.intensity, settings.window)
    facts = {
        "image": naming.shown(support.image, "support"),
        "mask": naming.shown(support.mask, "support mask"),
        "mask_sha256": sha256(support.mask) if support.mask.is_file() else None,
        "notices": [
            *(naming.clean(support.image, line) for line in support.notices),
            *(naming.clean(support.mask, line) for line in of_mask),
        ],
        "intensity": clipping,
    }
    return example(model, masks, stack), facts


def require_oriented(scan: StoredScan) -> None:
    """``ValueError`` naming a scan that does not say where the patient's left is."""
    if not scan.oriented:
        raise ValueError(f"{scan.path}: {scan.doubt}, so left and right are unknown and --quadrants is refused")


def read_said(source: Path | Source, series: str = "", option: str = OPTION) -> tuple[StoredScan, list[str]]:
    """The image of a source, and a line for everything that reading it left aside, changed or had to guess. They are
    also said on standard error. ``ValueError`` as ``read_image``."""
    scan, notices = read_image(source, series, option)
    for notice in notices:
        note(f"{source.path if isinstance(source, Source) else source}: {notice}")
    return scan, notices
