"""What ``run.json`` says of a call: what was read, how it was searched, and how far to trust what was found."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sslmed_dist import outputs
from sslmed_dist.downstream.oneshot import reliability
from sslmed_dist.printable import note, without_folders
from sslmed_dist.run_folder import environment
from sslmed_dist.verbs.segment import files
from sslmed_dist.verbs.segment.model import Model
from sslmed_dist.verbs.segment.search import Found
from sslmed_dist.verbs.segment.settings import Settings

WITHOUT = "reliability was calibrated without it"


def doubt(finding: Found, calibrated: bool, warnings: Sequence[str]) -> str:
    """What ``volumes.csv`` says of how far to trust a label; empty where there is nothing to say. ``calibrated``: the
    reliability was fitted to this organ."""
    own = [reliability.DOUBT] * finding.doubted + [reliability.UNCALIBRATED] * (not calibrated)
    if finding.weighing is not None and finding.copied > 0:
        own.append(f"copied mask counts, {finding.weighing.why}; {WITHOUT}")
    return "; ".join([*own, *warnings])


def copied_of(finding: Found) -> dict[str, Any]:
    """What ``run.json`` says of how much the copied mask counts in a label, and why."""
    assert finding.weighing is not None
    own, found, copied = (
        None if value is None else round(value, 4)
        for value in (finding.weighing.own, finding.weighing.found, finding.weighing.copied)
    )
    signs = {"own_slices": own, "way_back_found": found, "way_back_copied": copied}
    return {"weight": round(finding.copied, 4), "why": finding.weighing.why, **signs}


def support_lines(support: Mapping[str, Any]) -> list[str]:
    """What every picture says of the support: labels that were not looked for, and those whose reliability is no
    probability, because it was fitted to other organs or because their name does not say what they are."""
    lines = [files.left_out_line(support["left_out"])] if support["left_out"] else []
    return [*lines, *uncalibrated(support)]


def uncalibrated(support: Mapping[str, Any]) -> list[str]:
    """Of ``support_lines`` the one about the reliability."""
    others = [name for label, name in support["labels"].items() if int(label) not in support["calibrated"]]
    fitted = ", ".join(reliability.ORGANS)
    return [f"Reliability of {', '.join(others)}: not calibrated, it was fitted to {fitted}."] if others else []


def say_doubts(name: str, findings: Sequence[Found]) -> None:
    """A line on standard error about the labels of a query that are not to be trusted."""
    doubted = [
        f"{finding.label} ({reliability.rounded_down(finding.reliability, 2):.2f})"
        for finding in findings
        if finding.doubted
    ]
    if doubted:
        note(f"{name}: do not trust the masks of labels {', '.join(doubted)}: reliability below the threshold")


def trust_of(finding: Found, calibrated: bool) -> dict[str, Any]:
    """What ``run.json`` says of how far to trust a label; ``calibrated`` as for ``doubt``."""
    signs = {} if finding.signs is None else {name: round(value, 4) for name, value in asdict(finding.signs).items()}
    figure = reliability.rounded_down(finding.reliability, 4)
    return {"figure": figure, "trust": not finding.doubted, "calibrated": calibrated, **signs}


def facts(model: Model, support: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """``run.json``, without its queries. Of a file of first weights only its name is in it, as in an export."""
    return {
        outputs.MARK: files.SEGMENT,
        "use": outputs.RESEARCH,
        "model": {"file": model.file.name, "sha256": model.sha256, "method": without_folders(model.method)},
        "head": model.head,
        "grid": {"size": model.size, "pixel_mm": model.pixel, "pixel_from": model.pixel_from},
        "protocol": {
            "slices": "numbered from 0, inferior to superior",
            "support_slices": "of the n that hold the label, those numbered floor(n / 6), floor(n / 2), floor(5 n / 6)",
            "slice_range": "given by --range"
            if settings.span is not None
            else "estimated; seen false: the support's own slices do not stand out, so the range is a guess",
            "overlap": "the label with the larger margin",
            "quadrants": settings.quadrants,
            "tidy": settings.tidy,
            "copying": settings.copying,
        },
        "reliability": reliability.MEANING,
        "intensity": {"asked": settings.intensity, "window": settings.window},
        "probability": "foreground softmax of the head, uncalibrated; 0 outside the estimated slices; the fourth axis "
        "has the labels of support.labels in their order"
        if settings.probabilities
        else "not written (--no-probabilities)",
        "mean_margin": "foreground less background logit, mean over the label's voxels, uncalibrated",
        "support": support,
        "environment": environment(),
    }
