"""What supports show of each label, and where a query has it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sslmed_dist.data.scans.grid import Placement, place
from sslmed_dist.data.scans.masks import Masks, to_slices
from sslmed_dist.data.scans.scan import StoredScan
from sslmed_dist.downstream.oneshot import likeness, reliability
from sslmed_dist.downstream.oneshot.copying import Weighing
from sslmed_dist.downstream.oneshot.quadrants import body_centre
from sslmed_dist.downstream.oneshot.segmenter import Shown
from sslmed_dist.downstream.oneshot.slice_range import Estimate
from sslmed_dist.downstream.oneshot.weighing import weighed
from sslmed_dist.verbs.segment.model import Model, spacing

OUTSIDE = -1e4  # margin where a label is not looked for: its probability is 0


@dataclass(frozen=True)
class Kind:
    """Of what kind a scan is: the quantiles of its standardised slices (``likeness.profile``), and its modality, empty
    where its file does not say."""

    profile: Tensor
    modality: str


@dataclass(frozen=True)
class Encoded:
    """A query's slices as the encoder sees them: ``maps`` (S, D, h, w), the ``centre`` of its body, and in
    ``warnings`` what is unlike the support or the training data."""

    maps: Tensor
    centre: tuple[float, float]
    placement: Placement
    warnings: list[str]


@dataclass(frozen=True)
class Organ:
    """One label of the support: its U support slices, standardised float32 (U, size, size), their masks bool (U, size,
    size), and what the segmenter learnt from them. Support slice u stands for part u of the organ."""

    label: int
    images: Tensor
    masks: Tensor
    shown: Shown


@dataclass(frozen=True)
class Found:
    """One label on a query of S slices: the estimated range of slices that hold the organ (``estimate``), and margins
    float32 (S, size, size). A slice in the range has the margins by the support slice of its part; a slice outside it
    has ``OUTSIDE`` everywhere. ``signs`` say how far to trust it; None: nothing was found. ``weighing``: how much the
    copied mask counts in it; None: not asked for."""

    label: int
    margins: Tensor
    estimate: Estimate
    placement: Placement
    signs: reliability.Signs | None
    weighing: Weighing | None = None

    @property
    def reliability(self) -> float:
        """The estimated probability of a Dice of at least 0.5; 0 where nothing was found."""
        return 0.0 if self.signs is None else self.signs.figure

    @property
    def copied(self) -> float:
        """The weight of the copied mask, 0 to 1."""
        return 0.0 if self.weighing is None else self.weighing.weight

    @property
    def doubted(self) -> bool:
        """Whether the mask is not to be trusted."""
        return self.reliability < reliability.THRESHOLD


@dataclass(frozen=True)
class Example:
    """An annotated scan: its standardised slices ``stack`` (S, 1, size, size), their ``maps`` (S, D, h, w), the
    ``centre`` of its body, and its masks, which lie in the scan's grid."""

    stack: Tensor
    maps: Tensor
    centre: tuple[float, float]
    masks: Masks
    placement: Placement

    def in_model(self, label: int) -> Tensor | None:
        """The mask bool (S, size, size) of a label; None where the scan has no such label, or it fills no pixel. A
        pixel of the model's slices belongs to a label that covers at least half of it."""
        if label not in self.masks.names:
            return None
        mask = to_slices(self.masks.read(label), self.placement) >= 0.5
        return mask if mask.any() else None


def example(model: Model, masks: Masks, stack: Tensor) -> Example:
    """An annotated scan with these standardised slices, encoded once for all labels."""
    placement = place(masks.shape, masks.affine, pixel=model.pixel, size=model.size)
    return Example(stack, model.segmenter.maps(stack), body_centre(stack), masks, placement)


def learn(model: Model, examples: Sequence[Example], labels: Sequence[int]) -> tuple[list[Organ], dict[int, str]]:
    """(the organs of the supports, one for each of ``labels`` that can be looked for; of every other label, why not).
    The last example is the support: an organ's range, place and slices to look at are those that it has. Other
    examples add their prototypes of the labels that they have.

    A label that fills no pixel of the support's slices is left out. ``ValueError`` naming the mask where that leaves
    none.
    """
    organs: list[Organ] = []
    left_out: dict[int, str] = {}
    support = examples[-1]
    for label in labels:
        in_model = [(each, mask) for each in examples if (mask := each.in_model(label)) is not None]
        if not in_model or in_model[-1][0] is not support:
            left_out[label] = (
                f"label {label} fills no pixel of the {model.size} x {model.size} slices of {model.pixel:g} mm about "
                f"the middle of the support; it is too small or lies outside them"
            )
            continue
        shown_by_each = [
            model.segmenter.learn(each.maps, mask, spacing(each.placement), each.centre) for each, mask in in_model
        ]
        shown = shown_by_each[0]
        if len(in_model) > 1:
            maps, masks = [each.maps for each, _ in in_model], [mask for _, mask in in_model]
            shown = model.segmenter.together(shown_by_each, maps, masks)
        support_slices = list(shown.slices)  # U slice numbers
        organs.append(Organ(label, support.stack[support_slices, 0], in_model[-1][1][support_slices], shown))
    if not organs:
        raise ValueError(f"{support.masks.path}: {'; '.join(left_out.values())}")
    return organs, left_out


def kind_of(scan: StoredScan, stack: Tensor) -> Kind:
    """The kind of a scan with these standardised slices (S, 1, size, size)."""
    return Kind(likeness.profile(stack), str(getattr(scan.series, "modality", "") or ""))


def encode(model: Model, scan: StoredScan, stack: Tensor, placement: Placement, support: Kind) -> Encoded:
    """A query's standardised slices (S, 1, size, size), encoded once for all labels, and compared with the support."""
    kind = kind_of(scan, stack)
    with likeness.watched(model.segmenter.encoder, len(stack)) as statistics:
        maps = model.segmenter.maps(stack)
    modalities = (support.modality, kind.modality)
    lines = likeness.warnings(support.profile, kind.profile, modalities, statistics)
    return Encoded(maps, body_centre(stack), placement, lines)


def search(
    model: Model, organs: Sequence[Organ], query: Encoded, span: tuple[int, int] | None = None
) -> Iterator[Found]:
    """Look for every organ in a query, one after another. The range of slices that hold an organ is estimated
    (``downstream.oneshot.slice_range``), or given as ``span`` (first and last slice, inclusive); each slice of the
    range is segmented by the support slice of the part that it belongs to."""
    maps, centre, placement = query.maps, query.centre, query.placement
    for organ in organs:
        result = model.segmenter.find(organ.shown, maps, (model.size, model.size), spacing(placement), centre)
        if span is not None:
            result = replace(result, estimate=Estimate(*span, seen=True, given=True))
        result = weighed(model.segmenter, organ.shown, result, maps, spacing(placement), centre)
        first, last = result.estimate.first, result.estimate.last
        margins = torch.full(tuple(result.margins.shape[1:]), OUTSIDE)  # (S, size, size)
        margins[first : last + 1] = result.within(first, last).cpu()
        signs = reliability.signs(model.segmenter, organ.shown, result, maps, spacing(placement), centre)
        yield Found(organ.label, margins, result.estimate, placement, signs, result.weighing)
