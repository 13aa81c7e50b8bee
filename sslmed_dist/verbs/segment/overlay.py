"""The overlay of one query: for every label, support slices with their mask beside query slices with what was found."""

from collections.abc import Sequence

from torch import Tensor

from sslmed_dist.downstream.oneshot.protocol import middle_of
from sslmed_dist.downstream.oneshot.reliability import rounded_down
from sslmed_dist.outputs import RESEARCH
from sslmed_dist.printable import printable
from sslmed_dist.report.outlines import Panel, sheet
from sslmed_dist.verbs.segment.files import colour
from sslmed_dist.verbs.segment.search import Found, Organ

SIDES = {True: "Left half: the patient's right.", False: "Which half is the patient's right is a guess."}


def require_matplotlib() -> None:
    """``ValueError`` where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError("the overlay needs matplotlib: pip install 'sslmed-dist[report]'") from None


def montage(
    organs: Sequence[Organ],
    findings: Sequence[Found],
    winners: Tensor,
    stack: Tensor,
    name: str,
    note: str = "",
    *,
    oriented: bool,
) -> bytes:
    """PNG in the model's pixels: a row per label, outlines in the label's colour. In it, for each part of the label
    from inferior to superior, its support slice, and the middle one of the query slices that belong to this part, with
    the mask found there. ``winners`` (S, size, size) is the number of the label of each pixel, counted from 1, 0 for
    none. ``stack`` (S, 1, size, size) is the query, called ``name``; ``note`` stands below its name. ``oriented``: its
    file says where left is."""
    rows = []
    for label_index, (organ, finding) in enumerate(zip(organs, findings, strict=True)):
        shade = tuple(channel / 255 for channel in colour(label_index))
        mask = winners == label_index + 1
        row = []
        for part, z in enumerate(organ.shown.slices):
            middle = middle_of(part, finding.estimate.first, finding.estimate.last)
            if middle is None:
                continue
            title = f"query, slice {middle}, reliability {rounded_down(finding.reliability, 2):.2f}"
            title += ", doubt" if finding.doubted else ""
            title += "" if finding.estimate.seen else ", a guess"
            title += "" if mask[middle].any() else ": nothing found"
            support_title = f"support, label {organ.label}, slice {z}"
            row.append(Panel(organ.images[part], {shade: organ.masks[part]}, support_title))
            row.append(Panel(stack[middle, 0], {shade: mask[middle]}, title))
        rows.append(row)
    return sheet(
        rows,
        f"{printable(name)}: support and query in turn. {RESEARCH} {SIDES[oriented]}" + (f"\n{note}" if note else ""),
    )
