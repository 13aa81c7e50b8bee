"""The page of a set of queries: every slice that holds an organ, with what was found and what copying the support's
mask would give; organs can be switched on and off. One file without script. It shows pixels of scans."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sslmed_dist.data.scans.grid import in_view
from sslmed_dist.downstream.oneshot import tidy
from sslmed_dist.downstream.oneshot.protocol import part_of
from sslmed_dist.downstream.oneshot.reliability import MEANING, rounded_down
from sslmed_dist.printable import as_html, plural
from sslmed_dist.report.page import CAUTION, frame
from sslmed_dist.report.slice_strips import Column, grey_range, strip
from sslmed_dist.verbs.segment.files import colour
from sslmed_dist.verbs.segment.search import Encoded, Found, Organ

FOUND, COPIED = "found", "copied mask"
BEYOND = 1  # slices below and above those with an organ, also shown
MOST = 80  # slices of a query that are shown
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


@dataclass(frozen=True)
class Copied:
    """The floor of one label: the masks ``laid`` bool (U, size, size) that the support has in each part of the organ,
    moved so that the middles of both bodies meet; each slice of the estimated range gets that of its part. What would
    lie beyond the query's image is cut off, since a mask that is found cannot lie there."""

    laid: Tensor
    first: int
    last: int

    def slice(self, z: int) -> Tensor:
        """Bool (size, size)."""
        if not self.first <= z <= self.last:
            return torch.zeros_like(self.laid[0])
        return self.laid[part_of(z, self.first, self.last, len(self.laid))]

    def pixels(self) -> int:
        """Those of all slices together."""
        return sum(int(self.slice(z).sum()) for z in range(self.first, self.last + 1))


def copied(organ: Organ, finding: Found, encoded: Encoded, size: int) -> Copied:
    """The floor of a label on a query."""
    place = organ.shown.place
    assert place is not None, "the tool learns every organ with the centre of the body"
    spacing = (encoded.placement.pixel, encoded.placement.pixel, encoded.placement.spacing[2])
    given = 1 - 2 * organ.masks.float()  # -1 in the mask and 1 beyond it, so that 0 is its outline once moved
    laid = tidy.moved(given, place, encoded.centre, spacing, (size, size)) < 0
    laid &= in_view(encoded.placement).to(laid.device)
    return Copied(laid, finding.estimate.first, finding.estimate.last)


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
    pairs = zip(organs, findings, strict=True)
    floor = [copied(organ, finding, encoded, stack.shape[-1]) for organ, finding in pairs]
    interesting = torch.zeros(len(stack), dtype=torch.bool)
    for finding in findings:
        interesting[max(finding.estimate.first - BEYOND, 0) : finding.estimate.last + 1 + BEYOND] = True
    slices = torch.nonzero(interesting)[:, 0].tolist()
    every = -(-len(slices) // MOST)
    lines = [*said, *([f"Of {plural(len(slices), 'slice')} every {every}th is shown."] if every > 1 else [])]

    def columns() -> Iterator[Column]:
        for z in slices[::every]:
            found = {number: winners[z] == number + 1 for number in range(len(findings))}
            layers = {FOUND: found, COPIED: {number: each.slice(z) for number, each in enumerate(floor)}}
            yield Column(f"slice {z}", stack[z, 0], layers)

    banners = "".join(f"<p class='banner'>{as_html(line)}</p>" for line in lines)
    key = "q" + name.encode().hex()  # a word without blanks and quotes
    body = table(findings, rows, floor, encoded) + strip(columns(), key, grey_range(stack))
    return f"<section class='card'><h2>{as_html(name)}</h2>{banners}{body}</section>"


def table(
    findings: Sequence[Found], rows: Sequence[Mapping[str, object]], floor: Sequence[Copied], encoded: Encoded
) -> str:
    """Volume and reliability of every label, and beside them the volume of the copied mask."""
    pixel_ml = encoded.placement.pixel**2 * encoded.placement.spacing[2] / 1000
    lines = []
    for number, (finding, row) in enumerate(zip(findings, rows, strict=False)):  # after them, those left out
        kind = " class='doubted'" if finding.doubted else ""
        verdict = "do not trust" if finding.doubted else "above the threshold"
        figures = (f"{row['volume_ml']:.1f} ml", f"{floor[number].pixels() * pixel_ml:.1f} ml")
        counts = "not asked for" if finding.weighing is None else finding.weighing.why
        texts = (*figures, f"{rounded_down(finding.reliability, 2):.2f}: {verdict}", counts)
        cells = "".join(f"<td{kind}>{as_html(text)}</td>" for text in texts)
        lines.append(f"<tr><th>{swatch(number)}{as_html(str(row['name']))}</th>{cells}</tr>")
    head = "<thead><tr><th>label</th><th>found</th><th>copied mask (floor)</th><th>reliability</th>"
    head += "<th>copied mask counts</th></tr></thead>"
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
        "gives in the same slices. Where it counts in a mask, the reliability was calibrated without that.</p>"
    )
    if elsewhere:
        hint += (
            "<p class='banner'>Segmented by earlier calls, and not shown here (their masks and overlays are in the "
            f"folder): {as_html(', '.join(elsewhere))}</p>"
        )
    top = [STYLE, "\n".join(rules), "</style>", CAUTION, hint]
    return frame("One-shot masks", "overlay", top, [f"<div class='switches'>{switches}</div>", *sections]).encode()
