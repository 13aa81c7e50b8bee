"""One-shot segmentation of organs, scored by the protocol of Ouyang et al. (2020), and beside it without its oracle."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sslmed_dist import registry
from sslmed_dist.data.dataset import Dataset
from sslmed_dist.downstream.oneshot import protocol, surfaces
from sslmed_dist.downstream.oneshot.measures import Columns, measures
from sslmed_dist.downstream.oneshot.scans import ScanSlices, Volume, fetch, load, scans_of
from sslmed_dist.downstream.oneshot.segmenter import COPY_MASK, Found, Segmenter, Shown, predicted
from sslmed_dist.downstream.predictions import Predictions
from sslmed_dist.models import PROTOTYPE_HEADS

Case = dict[str, Any]
NUMBERS = 10**9  # exam numbers have at most nine digits


@dataclass(frozen=True)
class Picture:
    """A support slice and the middle one of the query slices that it serves, on the CPU: images float32 (H, W), masks
    bool (H, W). Exams and slices by number, slices from 0."""

    organ: str
    part: int
    support: int
    support_slice: int
    query: int
    query_slice: int
    support_image: Tensor
    support_mask: Tensor
    query_image: Tensor
    truth: Tensor
    prediction: Tensor


class OneShot:
    """Dice of organs found on query scans by what one annotated support scan shows of them (``protocol``).

    One organ at a time. The support scan gives a slice for each third of the organ; a query slice is decided by that of
    its own third, and the query's true first and last slices define the thirds and are the only ones scored: an oracle,
    as published. ``dice``: TP, FP and FN summed over a volume, mean over queries, then over organs. ``dice_whole``: of
    all slices, the range being estimated without the query's truth (``slice_range``). ``surface``: the 95th percentile
    Hausdorff distance (mm) and surface Dice at ``tolerance_mm`` of what ``dice`` scores, in the whole volume.
    ``quadrants``: predictions outside the quadrants of the body that the organ occupies in the support are removed
    before all that.

    The test part's last exam is the support and the others are queries; ``supports`` ``all``: each in turn, every
    measure is then a mean over all pairs, ``dice_last_support`` is the protocol's and ``dice_sd_supports`` the standard
    deviation (n - 1) over supports. ``shots`` K: the last K exams are the support together. ``head``: a leaf of
    ``PROTOTYPE_HEADS`` (a run lays it over its own head; else CoWPro's); ``window`` is that of the test, in place of
    the head's, where the head has one.
    """

    floor = COPY_MASK

    def __init__(
        self,
        organs: tuple[str, ...],
        head: Mapping[str, Any] | None = None,
        window: int = 2,
        supports: Literal["last", "all"] = "last",
        shots: int = 1,
        quadrants: bool = False,
        whole: bool = True,
        surface: bool = False,
        tolerance_mm: float = 3.0,
    ) -> None:
        """``ValueError``: no organ or one twice, a head that there is none of, a negative tolerance."""
        self.organs = tuple(organs)
        if not self.organs or len(set(self.organs)) < len(self.organs):
            raise ValueError(f"one_shot.organs: expected organs, none of them twice, got {list(organs)}")
        if supports not in ("last", "all"):
            raise ValueError(f"one_shot.supports: expected one of last, all, got {supports!r}")
        if shots < 1 or (shots > 1 and supports == "all"):
            raise ValueError(f"one_shot.shots: expected at least 1, and 1 with supports all, got {shots}")
        if not 0 <= tolerance_mm < float("inf"):
            raise ValueError(f"one_shot.tolerance_mm: expected a number >= 0, got {tolerance_mm}")
        self.head = at_test({"name": "cowpro", **(head or {})}, window, "one_shot.head")
        registry.check(PROTOTYPE_HEADS, self.head, "one_shot.head")
        self.supports, self.shots, self.quadrants, self.whole = supports, shots, quadrants, whole
        self.surface, self.tolerance_mm = surface, float(tolerance_mm)

    def segment(
        self, encoder: nn.Module, dataset: Dataset, positions: Tensor, *, device: torch.device | str, seed: int
    ) -> Predictions:
        """One row for each pair of a support and a query scan of the test part at ``positions`` (int64); no randomness
        but the dataset's. Rows hold numbers measured of each pair alone; ``cases`` one entry a pair and organ.

        ``ValueError``: fewer than two exams, an organ that the dataset does not know or the support does not hold, no
        masks, quadrants of a scan whose orientation is unknown.
        """
        scans, segmenter = self.prepare(encoder, dataset, positions, device)
        groups = [[scan] for scan in scans] if self.supports == "all" else [scans[-self.shots :]]
        volumes = {scan.number: self.load(segmenter, dataset, scan, seed) for scan in scans}
        cases: list[Case] = []
        for group in groups:
            supports = [volumes[scan.number] for scan in group]
            shown = {organ: self.show(segmenter, dataset, supports, organ) for organ in self.organs}
            for query in (scan for scan in scans if scan not in group):
                for organ in self.organs:
                    case = self.case(segmenter, dataset, shown[organ], volumes[query.number], organ)
                    cases.append({"support": group[-1].number, "query": query.number, "organ": organ, **case})
        return self.predictions(cases, scans[-1].number)

    def pictures(
        self, encoder: nn.Module, dataset: Dataset, positions: Tensor, *, device: torch.device | str, seed: int
    ) -> list[Picture]:
        """For every organ of the first query, and every third of it there: what the last exam, the support, shows, and
        what ``dice`` scores on the middle slice. Arguments and errors as ``segment``."""
        scans, segmenter = self.prepare(encoder, dataset, positions, device)
        support, query = (self.load(segmenter, dataset, scan, seed) for scan in (scans[-1], scans[0]))
        images = [fetch(dataset, scan, seed=seed)[0].float().cpu() for scan in (scans[-1], scans[0])]
        found = []
        for organ in self.organs:
            shown = self.show(segmenter, dataset, [support], organ)
            value = dataset.classes.index(organ) + 1
            truth = query.organs == value
            held = protocol.true_range(truth)
            if held is None:
                continue
            guess = predicted(self.find(segmenter, shown, query).margins, *held).cpu()
            for part, z in enumerate(shown.slices):
                served = [s for s in range(held[0], held[1] + 1) if protocol.part_of(s, *held) == part]
                if not served:
                    continue
                middle = served[len(served) // 2]
                mask = (support.organs[z] == value).cpu()
                numbers = (organ, part, support.scan.number, z, query.scan.number, middle)
                views = (images[0][z, 0], mask, images[1][middle, 0], truth[middle].cpu(), guess[middle])
                found.append(Picture(*numbers, *views))
        return found

    def prepare(
        self, encoder: nn.Module, dataset: Dataset, positions: Tensor, device: torch.device | str
    ) -> tuple[list[ScanSlices], Segmenter]:
        """The test part's scans, checked, and the segmenter."""
        for organ in self.organs:
            if organ not in dataset.classes:
                raise ValueError(
                    f"one_shot.organs: no organ {organ!r}; allowed: {', '.join(dataset.classes) or 'none'}"
                )
        scans = scans_of(dataset, positions)
        if len(scans) <= self.shots:
            raise ValueError(
                f"one_shot: the test part holds {len(scans)} exam(s); it needs a query and a support, at least "
                f"{self.shots + 1}"
            )
        for scan in scans:
            if self.quadrants and not scan.oriented:
                raise ValueError(
                    f"exam {scan.number}: its file does not say where left is, so quadrants cannot be masked; "
                    "allowed: quadrants: false"
                )
        return scans, Segmenter(encoder, registry.build(PROTOTYPE_HEADS, self.head, "one_shot.head"), device)

    def load(self, segmenter: Segmenter, dataset: Dataset, scan: ScanSlices, seed: int) -> Volume:
        """The scan, encoded once for all its roles."""
        return load(segmenter, dataset, scan, seed=seed, centred=self.quadrants)

    def show(self, segmenter: Segmenter, dataset: Dataset, supports: Sequence[Volume], organ: str) -> Shown:
        """What the supports show of the organ. ``ValueError`` naming it and one that holds none of it."""
        masks = [support.organs == dataset.classes.index(organ) + 1 for support in supports]
        for support, mask in zip(supports, masks, strict=True):
            if not mask.any():
                raise ValueError(f"exam {support.scan.number}: the support holds no voxel of {organ}")
        pairs = zip(supports, masks, strict=True)
        each = [segmenter.learn(one.maps, mask, one.scan.spacing, one.centre) for one, mask in pairs]
        if len(each) == 1:
            return each[0]
        return segmenter.together(each, [support.maps for support in supports], masks)

    def find(self, segmenter: Segmenter, shown: Shown, query: Volume) -> Found:
        """The organ on the query."""
        return segmenter.find(shown, query.maps, query.size, query.scan.spacing, query.centre)

    def case(self, segmenter: Segmenter, dataset: Dataset, shown: Shown, query: Volume, organ: str) -> Case:
        """Everything measured of one organ of one pair; a query without the organ has no measures (None)."""
        truth = query.organs == dataset.classes.index(organ) + 1
        held = protocol.true_range(truth)
        if held is None:
            return {"slices": 0, "reference_ml": 0.0}
        first, last = held
        spacing = query.scan.spacing
        voxel = spacing[0] * spacing[1] * spacing[2] / 1000
        found = self.find(segmenter, shown, query)
        guess = predicted(found.margins, first, last)
        reference = int(truth.sum()) * voxel
        case: Case = {
            "slices": last - first + 1,
            "true_first": first,
            "true_last": last,
            "dice": protocol.overlap(guess[first : last + 1], truth[first : last + 1]).dice,
            "reference_ml": reference,
            **volume("", guess, voxel, reference),
        }
        if self.whole:
            everywhere = found.prediction()
            case |= {
                "estimated_first": found.estimate.first,
                "estimated_last": found.estimate.last,
                "range_seen": found.estimate.seen,
                "dice_whole": protocol.overlap(everywhere, truth).dice,
                **volume("_whole", everywhere, voxel, reference),
            }
        if self.surface:
            case["hd95_mm"] = surfaces.hausdorff95(guess, truth, spacing)
            case["surface_dice"] = surfaces.surface_dice(guess, truth, spacing, self.tolerance_mm)
        return case

    def predictions(self, cases: Sequence[Case], last: int) -> Predictions:
        """The rows of all pairs out of the cases, which come pair by pair, the organs of each in their order."""
        columns = Columns(self.organs, self.whole, self.surface, self.supports == "all")
        pairs = [cases[i : i + len(self.organs)] for i in range(0, len(cases), len(self.organs))]
        rows = [columns.row(pair, pair[0]["support"] == last) for pair in pairs]
        supports, queries = (torch.tensor([pair[0][name] for pair in pairs]) for name in ("support", "query"))
        absent = sorted({f"{case['organ']} of exam {case['query']}" for case in cases if not case["slices"]})
        return Predictions(
            scores=torch.tensor(rows, dtype=torch.float64),
            labels=supports,
            groups=queries,
            index=queries * NUMBERS + supports,
            task="single",
            classes=self.organs,
            note=f"not there, so not scored: {', '.join(absent)}" if absent else "",
            measures=partial(measures, columns=columns),
            by_sample=True,
            cases=tuple(cases),
        )


def head_over(own: Any, said: Any) -> dict[str, Any]:
    """The head that ``said`` (a leaf, perhaps without a name, or None) means for a run whose own head is ``own``: laid
    over it (over CoWPro's where ``own`` is none of prototypes); one of another name starts from its own defaults."""
    own, said = ({"name": leaf} if isinstance(leaf, str) else dict(leaf or {}) for leaf in (own, said))
    if own.get("name") not in PROTOTYPE_HEADS:
        own = {"name": "cowpro"}
    return said if said.get("name", own["name"]) != own["name"] else {**own, **said}


def at_test(head: Mapping[str, Any], window: int, where: str) -> dict[str, Any]:
    """The leaf ``head`` with the test's ``window``, where it has one. ``ValueError`` for an unknown head."""
    constructor, _ = registry.split(PROTOTYPE_HEADS, head, where)
    windowed = "window" in inspect.signature(constructor).parameters
    return {**head, "window": window} if windowed else dict(head)


def volume(suffix: str, mask: Tensor, voxel: float, reference: float) -> Case:
    """The mask's volume in ml (``voxel`` ml each), and its relative error."""
    found = int(mask.sum()) * voxel
    return {f"volume_ml{suffix}": found, f"volume_error{suffix}": (found - reference) / reference}
