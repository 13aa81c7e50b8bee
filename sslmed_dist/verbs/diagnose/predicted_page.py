"""The page of new exams: probabilities, how far the draws of slices differ, which slices count, warnings."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor
from torch.nn import functional

from sslmed_dist.printable import as_html
from sslmed_dist.report import plots
from sslmed_dist.report.page import image
from sslmed_dist.verbs.diagnose.page import document

HINT = (
    "probability: of the parts together, calibrated on held-out training exams. Of each part: the mean over draws of "
    "slices, and their standard deviation. A slice counts by how much the probability falls when it is left out."
)


@dataclass
class Answer:
    """What is said of one exam: of each part probabilities and spread by label, and the slices that count as (part,
    label, slice from 1, difference); calibrated and plain probabilities by label; warnings."""

    exam: str
    probabilities: dict[str, float | None] = field(default_factory=dict)
    uncalibrated: dict[str, float | None] = field(default_factory=dict)
    parts: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    slices: list[tuple[str, str, int, float]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    pictures: list[tuple[str, bytes]] = field(default_factory=list)  # caption and PNG: they hold pixels


def html(answers: Sequence[Answer], labels: Sequence[str], phantom: bool, notices: Sequence[str] = ()) -> str:
    """The page. ``notices`` say what of the exams was left aside; they stand above the answers."""
    body = [f"<p class='hint'>{as_html(HINT)}</p>"]
    body += [f"<p class='banner caution'>{as_html(line)}</p>" for line in notices]
    for answer in answers:
        body.append(f"<h2>{as_html(answer.exam)}</h2>")
        body += [f"<p class='banner caution'>{as_html(warning)}</p>" for warning in answer.warnings]
        body.append(probabilities(answer, labels))
        body += [slices(answer), pictures(answer)]
    return document("Probabilities of findings", body, phantom)


def probabilities(answer: Answer, labels: Sequence[str]) -> str:
    """A row for each label: the answer, then that of each part."""
    head = "".join(f"<th>{as_html(part)}</th>" for part in answer.parts)
    rows = []
    for label in labels:
        cells = []
        for values in answer.parts.values():
            if label in values:
                mean, spread = values[label]
                cells.append(f"<td>{mean:.3f}<small>\N{PLUS-MINUS SIGN} {spread:.3f}</small></td>")
            else:
                cells.append("<td class='absent'>does not answer</td>")
        both = answer.probabilities[label]
        shown = "none" if both is None else f"{both:.3f}"
        rows.append(f"<tr><th>{as_html(label)}</th><td><strong>{shown}</strong></td>{''.join(cells)}</tr>")
    return (
        f"<div class='scroll'><table><thead><tr><th></th><th>probability</th>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def slices(answer: Answer) -> str:
    """The three slices of each part and label without which the probability changes most."""
    rows = "".join(
        f"<tr><td>{as_html(label)}</td><td>{as_html(part)}</td><td>{number}</td><td>{difference:+.3f}</td></tr>"
        for part, label, number, difference in answer.slices
    )
    head = "<tr><th>finding</th><th>part</th><th>slice, from 1</th><th>without it the probability falls by</th></tr>"
    table = f"<div class='scroll'><table class='plain'><thead>{head}</thead>{rows}</table></div>"
    return f"<details><summary>Slices that count</summary>{table}</details>"


def overlay(view: Tensor, where: Tensor) -> bytes:
    """A slice (H, W) with Grad-CAM (h, w) over it, as PNG."""
    figure = plots.new_figure((2.2, 2.2))
    axes = figure.subplots()
    axes.imshow(view.numpy(), cmap="gray")
    size = (int(view.shape[0]), int(view.shape[1]))
    heat = functional.interpolate(where[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
    axes.imshow(heat.numpy(), cmap="inferno", alpha=0.6 * heat.numpy(), vmin=0.0, vmax=1.0)
    axes.set_axis_off()
    return plots.png(figure, 100)


def pictures(answer: Answer) -> str:
    """The slice that counts most for each part and label, with what speaks for the finding in it."""
    shown = "".join(
        f"<figure>{image(content, caption)}<figcaption>{as_html(caption)}</figcaption></figure>"
        for caption, content in answer.pictures
    )
    said = "Grad-CAM at the maps that the head reads. This page holds image pixels: do not send it out."
    return f"<details><summary>Where</summary><p class='hint'>{said}</p><div class='figures'>{shown}</div></details>"
