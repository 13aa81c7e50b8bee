"""One-shot segmentation of organs, scored by the protocol of Ouyang et al. (2020), and also without its oracle (the
true range of slices)."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sslmed_dist import registry
from sslmed_dist.data.dataset import Dataset
from sslmed_dist.downstream.oneshot import copying as copied_mask
from sslmed_dist.downstream.oneshot import protocol, reliability, surfaces
from sslmed_dist.downstream.oneshot.measures import Columns, measures
from sslmed_dist.downstream.oneshot.scans import ScanSlices, Volume, fetch, load, scans_of
from sslmed_dist.downstream.oneshot.segmenter import COPY_MASK, Found, Segmenter, Shown
from sslmed_dist.downstream.oneshot.weighing import weighed
from sslmed_dist.downstream.predictions import Predictions
from sslmed_dist.models import PROTOTYPE_HEADS
from sslmed_dist.printable import plural

Case = dict[str, Any]
NUMBERS = 10**9  # exam numbers have at most nine digits


@dataclass(frozen=True)
class Picture:
    """A support slice, and the middle one of the query slices that are segmented with it. Tensors are on the CPU."""

    organ: str
    part: int  # of the organ
    support: int  # exam number
    support_slice: int  # from 0
    query: int  # exam number
    query_slice: int  # from 0
    support_image: Tensor  # (H, W) float32
    support_mask: Tensor  # (H, W) bool
    query_image: Tensor  # (H, W) float32
    truth: Tensor  # (H, W) bool
    prediction: Tensor  # (H, W) bool


class OneShot:
    """Dice of organs that are segmented on query scans after one annotated support scan (``protocol``).

    One organ at a time. The organ's range of slices is divided into thirds, on the support and on the query. Each third
    of the support gives one slice, and a query slice is segmented with the support slice of the same third. The query's
    range is taken from its true mask, and only the slices in it are scored: an oracle, as published.

    ``dice``: TP, FP and FN are summed over a volume; mean over queries, then over organs. ``dice_whole``: of all slices
    of the volume, the range being estimated without the query's mask (``slice_range``). ``surface`` asks for the 95th
    percentile Hausdorff distance (mm) and the surface Dice at ``tolerance_mm``, of the predictions that ``dice``
    scores; ``hd95_whole`` is the distance of those that ``dice_whole`` scores. ``quadrants``: before all that,
    predictions outside the quadrants of the body that the organ occupies in the support are removed.

    The test part's last exam is the support, all others are queries. With ``supports`` ``all`` each exam is the support
    in turn and every measure is a mean over all pairs; ``dice_last_support`` is then the protocol's number, and
    ``dice_sd_supports`` the standard deviation (n - 1) over supports. ``shots`` K: the last K exams together are the
    support. ``head``: a leaf of ``PROTOTYPE_HEADS`` (in a run it is laid over the run's own head; else over CoWPro's).
    An encoder that is its own head (``se_net``) is measured with that. ``window`` replaces the head's own at test,
    where the head has one. ``tidy``, which is not the protocol's: margins are averaged over neighbouring slices,
    lowered far from the support's place, and only the largest piece is kept (``oneshot.tidy``), as ``sslmed segment``
    does; each case then has its ``reliability`` too. ``neighbours``: of all that the average over neighbouring slices
    alone. ``copying: auto``, nor the protocol's: the support's copied mask counts where it explains a query better than
    what is found (``oneshot.copying``); ``copied_weight`` of each case says how much.
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
        tidy: bool = False,
        neighbours: bool = False,
        copying: Literal["off", "auto"] = "off",
    ) -> None:
        """``ValueError``: no organ or one twice, an unknown head, ``supports`` or ``shots`` that are not allowed, a
        negative tolerance, ``neighbours`` beside ``tidy``, which has them, an unknown ``copying``."""
        self.organs = tuple(organs)
        if not self.organs or len(set(self.organs)) < len(self.organs):
            raise ValueError(f"one_shot.organs: expected organs, none of them twice, got {list(organs)}")
        if supports not in ("last", "all"):
            raise ValueError(f"one_shot.supports: expected one of last, all, got {supports!r}")
        if shots < 1 or (shots > 1 and supports == "all"):
            raise ValueError(f"one_shot.shots: expected at least 1, and 1 with supports all, got {shots}")
        if not 0 <= tolerance_mm < float("inf"):
            raise ValueError(f"one_shot.tolerance_mm: expected a number >= 0, got {tolerance_mm}")
        self.copying = copied_mask.check(copying, "one_shot.copying")
        self.head = at_test({"name": "cowpro", **(head or {})}, window, "one_shot.head")
        registry.check(PROTOTYPE_HEADS, self.head, "one_shot.head")
        self.supports, self.shots, self.quadrants, self.whole = supports, shots, quadrants, whole
        if tidy and neighbours:
            raise ValueError("one_shot.neighbours: tidy masks have their neighbours already; leave out one of the two")
        self.surface, self.tolerance_mm, self.tidy, self.neighbours = surface, float(tolerance_mm), tidy, neighbours

    def segment(
        self, encoder: nn.Module, dataset: Dataset, positions: Tensor, *, device: torch.device | str, seed: int
    ) -> Predictions:
        """One row for each pair of a support and a query scan of the test part at ``positions`` (int64 (N,)). A row is
        measured from its pair alone. ``cases`` has one entry for each pair and organ. Nothing is random but the
        dataset's draws.

        ``ValueError``: fewer than two exams, an organ that the dataset does not know or the support does not hold, no
        masks, quadrants of a scan whose orientation is unknown.
        """
        scans, segmenter = self.prepare(encoder, dataset, positions, device)
        # supports that are used together: one exam, or the last K; every other exam is then a query
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
        """One picture for each organ of the first exam, a query, and each third of it. It shows the support slice of
        the last exam, and on the third's middle slice what ``dice`` scores. Arguments and errors as ``segment``."""
        scans, segmenter = self.prepare(encoder, dataset, positions, device)
        support, query = (self.load(segmenter, dataset, scan, seed) for scan in (scans[-1], scans[0]))
        images = [fetch(dataset, scan, seed=seed)[0].float().cpu() for scan in (scans[-1], scans[0])]
        pictures = []
        for organ in self.organs:
            shown = self.show(segmenter, dataset, [support], organ)
            organ_value = dataset.classes.index(organ) + 1
            truth = query.organs == organ_value
            organ_range = protocol.true_range(truth)
            if organ_range is None:
                continue
            prediction = self.find(segmenter, shown, query).mask(*organ_range).cpu()
            for part, support_slice in enumerate(shown.slices):
                # of the query's slices that are segmented with this support slice
                query_slice = protocol.middle_of(part, *organ_range)
                if query_slice is None:
                    continue
                mask = (support.organs[support_slice] == organ_value).cpu()
                origin = (organ, part, support.scan.number, support_slice, query.scan.number, query_slice)
                views = (
                    images[0][support_slice, 0],
                    mask,
                    images[1][query_slice, 0],
                    truth[query_slice].cpu(),
                    prediction[query_slice],
                )
                pictures.append(Picture(*origin, *views))
        return pictures

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
                f"one_shot: the test part holds {plural(len(scans), 'exam')}; it needs a query and a support, at least "
                f"{self.shots + 1}"
            )
        for scan in scans:
            if self.quadrants and not scan.oriented:
                raise ValueError(
                    f"exam {scan.number}: its file does not say where left is, so quadrants cannot be masked; "
                    "allowed: quadrants: false"
                )
        head = registry.build(PROTOTYPE_HEADS, self.head, "one_shot.head")
        ways = {"quadrants": self.quadrants, "tidy": self.tidy, "neighbours": self.neighbours}
        return scans, Segmenter(encoder, head, device, copying=self.copying, **ways)

    def load(self, segmenter: Segmenter, dataset: Dataset, scan: ScanSlices, seed: int) -> Volume:
        """The scan with its feature maps, which serve it as support and as query."""
        return load(segmenter, dataset, scan, seed=seed, centred=self.quadrants or self.tidy or segmenter.copying)

    def show(self, segmenter: Segmenter, dataset: Dataset, supports: Sequence[Volume], organ: str) -> Shown:
        """What the supports show of the organ. ``ValueError`` naming the organ and a support that holds none of it."""
        masks = [support.organs == dataset.classes.index(organ) + 1 for support in supports]
        for support, mask in zip(supports, masks, strict=True):
            if not mask.any():
                raise ValueError(f"exam {support.scan.number}: the support holds no voxel of {organ}")
        pairs = zip(supports, masks, strict=True)
        shown_by_each = [segmenter.learn(scan.maps, mask, scan.scan.spacing, scan.centre) for scan, mask in pairs]
        if len(shown_by_each) == 1:
            return shown_by_each[0]
        return segmenter.together(shown_by_each, [support.maps for support in supports], masks)

    def find(self, segmenter: Segmenter, shown: Shown, query: Volume) -> Found:
        """The organ on the query: margins and the estimated range."""
        where = query.scan.spacing, query.centre
        return weighed(segmenter, shown, segmenter.find(shown, query.maps, query.size, *where), query.maps, *where)

    def case(self, segmenter: Segmenter, dataset: Dataset, shown: Shown, query: Volume, organ: str) -> Case:
        """Everything that is measured of one organ of one pair. A query without the organ has no measures."""
        truth = query.organs == dataset.classes.index(organ) + 1
        organ_range = protocol.true_range(truth)
        if organ_range is None:
            return {"slices": 0, "reference_ml": 0.0}
        first, last = organ_range
        spacing = query.scan.spacing
        voxel_ml = spacing[0] * spacing[1] * spacing[2] / 1000
        segmentation = self.find(segmenter, shown, query)
        # with the query's true range (``dice``); below with the estimated one (``dice_whole``)
        prediction = segmentation.mask(first, last)
        reference_ml = int(truth.sum()) * voxel_ml
        case: Case = {
            "slices": last - first + 1,
            "true_first": first,
            "true_last": last,
            "dice": protocol.overlap(prediction[first : last + 1], truth[first : last + 1]).dice,
            "reference_ml": reference_ml,
            **volume("", prediction, voxel_ml, reference_ml),
        }
        if self.whole:
            whole_prediction = segmentation.prediction()
            case |= {
                "estimated_first": segmentation.estimate.first,
                "estimated_last": segmentation.estimate.last,
                "range_seen": segmentation.estimate.seen,
                "dice_whole": protocol.overlap(whole_prediction, truth).dice,
                **volume("_whole", whole_prediction, voxel_ml, reference_ml),
            }
        if self.whole and segmenter.tidy:
            assert query.centre is not None
            signs = reliability.signs(segmenter, shown, segmentation, query.maps, spacing, query.centre)
            case["reliability"] = 0.0 if signs is None else signs.figure
        if segmentation.weighing is not None:
            case["copied_weight"] = segmentation.weighing.weight
        if self.surface and self.whole:
            case["hd95_whole_mm"] = surfaces.hausdorff95(whole_prediction, truth, spacing)
        if self.surface:
            case["hd95_mm"] = surfaces.hausdorff95(prediction, truth, spacing)
            case["surface_dice"] = surfaces.surface_dice(prediction, truth, spacing, self.tolerance_mm)
        return case

    def predictions(self, cases: Sequence[Case], last: int) -> Predictions:
        """The rows of all pairs. ``cases`` are sorted by pair, and within a pair by organ; ``last`` is the exam number
        of the protocol's support."""
        columns = Columns(self.organs, self.whole, self.surface, self.supports == "all")
        # one pair is as many consecutive cases as there are organs
        pairs = [cases[i : i + len(self.organs)] for i in range(0, len(cases), len(self.organs))]
        rows = [columns.row(pair, pair[0]["support"] == last) for pair in pairs]
        supports, queries = (torch.tensor([pair[0][name] for pair in pairs]) for name in ("support", "query"))
        absent = sorted({f"{case['organ']} of exam {case['query']}" for case in cases if not case["slices"]})
        return Predictions(
            scores=torch.tensor(rows, dtype=torch.float64),  # (pairs, M), see ``Columns``
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


def head_over(run_head: Any, asked: Any) -> dict[str, Any]:
    """The leaf of the head that is meant by ``asked`` (a leaf, perhaps without a name, or None) in a run whose own head
    is ``run_head``.

    ``asked`` is laid over ``run_head``, or over CoWPro's where that is not a head of prototypes. If it names another
    head, nothing is taken over and that head's defaults apply.
    """
    run_head, asked = ({"name": leaf} if isinstance(leaf, str) else dict(leaf or {}) for leaf in (run_head, asked))
    if run_head.get("name") not in PROTOTYPE_HEADS:
        run_head = {"name": "cowpro"}
    return asked if asked.get("name", run_head["name"]) != run_head["name"] else {**run_head, **asked}


def at_test(head: Mapping[str, Any], window: int, where: str) -> dict[str, Any]:
    """The leaf ``head`` with the test's ``window``, if the head takes one. ``ValueError`` for an unknown head."""
    constructor, _ = registry.split(PROTOTYPE_HEADS, head, where)
    windowed = "window" in inspect.signature(constructor).parameters
    return {**head, "window": window} if windowed else dict(head)


def volume(suffix: str, mask: Tensor, voxel_ml: float, reference_ml: float) -> Case:
    """The volume of a mask in ml (a voxel has ``voxel_ml``), and its relative error to ``reference_ml``."""
    volume_ml = int(mask.sum()) * voxel_ml
    return {f"volume_ml{suffix}": volume_ml, f"volume_error{suffix}": (volume_ml - reference_ml) / reference_ml}
