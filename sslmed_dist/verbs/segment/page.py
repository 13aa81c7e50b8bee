"""The page of a set of queries: every slice that holds an organ, with what was found and what copying the support's
mask would give; organs can be switched on and off. One file without script. It shows pixels of scans."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sslmed_dist.downstream.oneshot import tidy
from sslmed_dist.downstream.oneshot.protocol import part_of
from sslmed_dist.downstream.oneshot.reliability import MEANING
from sslmed_dist.printable import as_html
from sslmed_dist.report.page import frame
from sslmed_dist.report.slice_strips import Column, strip
from sslmed_dist.verbs.segment.files import colour
from sslmed_dist.verbs.segment.search import Encoded, Found, Organ

FOUND, COPIED = "found", "copied mask"
BEYOND = 1  # slices below and above those with an organ, also shown
STYLE = """<style>
.strip { display: flex; gap: .5rem; overflow-x: auto; padding: .25rem 0 .75rem; }
.slice { flex: 0 0 auto; width: 15rem; } .slice figure { padding: .3rem; margin-bottom: .4rem; }
.slice svg { display: block; width: 100%; background: #000; image-rendering: pixelated; }
.slice figcaption { margin: .2rem 0 0; font-weight: 400; font-size: .8rem; }
.organ { fill: none; stroke-width: 1.5; vector-effect: non-scaling-stroke; }
.switches { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: .2rem 1rem; padding: .5rem 0;
  background: var(--page); } .swatch { display: inline-block; width: .8em; height: .8em; margin-right: .3em; }
.doubted { color: var(--warm-ink); background: var(--warm); }
"""


def copied(organs: Sequence[Organ], findings: Sequence[Found], encoded: Encoded, size: int) -> dict[int, Tensor]:
    """The floor, by number of the label, bool (S, size, size): in every slice of the estimated range the outline that
    the support has in that part of the organ, moved so that the middles of both bodies meet."""
    masks = {}
    spacing = (encoded.placement.pixel, encoded.placement.pixel, encoded.placement.spacing[2])
    for number, (organ, finding) in enumerate(zip(organs, findings, strict=True)):
        place, first, last = organ.shown.place, finding.estimate.first, finding.estimate.last
        assert place is not None, "the tool learns every organ with the centre of the body"
        given = 1 - 2 * organ.masks.float()  # -1 in the mask and 1 beyond it, so that 0 is its outline once moved
        laid = tidy.moved(given.to(place.outside.device), place, encoded.centre, spacing, (size, size)) < 0
        mask = torch.zeros(encoded.placement.slices, size, size, dtype=torch.bool)
        for z in range(first, last + 1):
            mask[z] = laid[part_of(z, first, last, len(laid))].cpu()
        masks[number] = mask
    return masks


def section(
    name: str,
    organs: Sequence[Organ],
    findings: Sequence[Found],
    winners: Tensor,
    stack: Tensor,
    encoded: Encoded,
    rows: Sequence[Mapping[str, object]],
    said: Sequence[str],
) -> str:
    """One query of the page: a table of its labels, whose ``rows`` are those of ``volumes.csv``, and its strip.
    ``winners`` (S, size, size) is the number of the label of each pixel, counted from 1, 0 for none. ``said`` are lines
    about the whole query."""
    floor = copied(organs, findings, encoded, stack.shape[-1])
    shown = torch.zeros(len(stack), dtype=torch.bool)
    for finding in findings:
        shown[max(finding.estimate.first - BEYOND, 0) : finding.estimate.last + 1 + BEYOND] = True
    columns = []
    for z in torch.nonzero(shown)[:, 0].tolist():
        found = {number: winners[z] == number + 1 for number in range(len(findings))}
        layers = {FOUND: found, COPIED: {number: mask[z] for number, mask in floor.items()}}
        columns.append(Column(f"slice {z}", stack[z, 0], layers))
    banners = "".join(f"<p class='banner'>{as_html(line)}</p>" for line in said)
    key = "q" + name.encode().hex()  # a word without blanks and quotes
    body = table(findings, rows, floor, encoded) + strip(columns, key)
    return f"<section class='card'><h2>{as_html(name)}</h2>{banners}{body}</section>"


def table(
    findings: Sequence[Found],
    rows: Sequence[Mapping[str, object]],
    floor: Mapping[int, Tensor],
    encoded: Encoded,
) -> str:
    """Volume and reliability of every label, and beside them the volume of the copied mask."""
    pixel_ml = encoded.placement.pixel**2 * encoded.placement.spacing[2] / 1000
    lines = []
    for number, (finding, row) in enumerate(zip(findings, rows, strict=False)):  # after them, those left out
        kind = " class='doubted'" if finding.doubted else ""
        verdict = "do not trust" if finding.doubted else "above the threshold"
        figures = (f"{row['volume_ml']:.1f} ml", f"{int(floor[number].sum()) * pixel_ml:.1f} ml")
        cells = "".join(
            f"<td{kind}>{as_html(text)}</td>" for text in (*figures, f"{finding.reliability:.2f}: {verdict}")
        )
        lines.append(f"<tr><th>{swatch(number)}{as_html(str(row['name']))}</th>{cells}</tr>")
    head = "<thead><tr><th>label</th><th>found</th><th>copied mask (floor)</th><th>reliability</th></tr></thead>"
    return f"<div class='scroll'><table>{head}<tbody>{''.join(lines)}</tbody></table></div>"


def swatch(number: int) -> str:
    """A square in the colour of a label's outline."""
    return f"<span class='swatch' style='background:rgb{colour(number)}'></span>"


def page(sections: Sequence[str], names: Sequence[str], elsewhere: Sequence[str] = ()) -> bytes:
    """The whole page; ``names`` are those of the labels in their order. ``elsewhere``: queries of earlier calls, which
    have files in the folder and no part of this page."""
    rules = [f".organ-{number} {{ stroke: rgb{colour(number)}; }}" for number in range(len(names))]
    rules += [
        f"body:has(#show-{number}:not(:checked)) .organ-{number} {{ display: none; }}" for number in range(len(names))
    ]
    switches = "".join(
        f"<label><input type='checkbox' id='show-{number}' checked> {swatch(number)}{as_html(name)}</label>"
        for number, name in enumerate(names)
    )
    hint = (
        f"<p class='hint'>Slices are numbered from 0, inferior to superior; left is the patient's right where the file "
        f"says so. Reliability: {as_html(MEANING)}. The copied mask is the floor: what the support's mask alone "
        "gives in the same slices.</p>"
    )
    if elsewhere:
        hint += (
            "<p class='banner'>Segmented by earlier calls, and not shown here (their masks and overlays are in the "
            f"folder): {as_html(', '.join(elsewhere))}</p>"
        )
    top = [STYLE, "\n".join(rules), "</style>", hint]
    return frame("One-shot masks", "overlay", top, [f"<div class='switches'>{switches}</div>", *sections]).encode()
