"""How the scans of a call of ``sslmed segment`` are read, searched and written."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sslmed_dist.data.exams.one_series import pattern_of
from sslmed_dist.downstream.oneshot import copying as copied_mask
from sslmed_dist.verbs.segment.model import Intensity
from sslmed_dist.verbs.segment.naming import Naming


@dataclass(frozen=True)
class Settings:
    """How scans are read and searched."""

    intensity: Intensity
    window: tuple[float, float] | None
    quadrants: bool
    dicom_seg: bool
    tidy: bool = True
    probabilities: bool = True
    naming: Naming = Naming({}, False)
    series: str = ""
    span: tuple[int, int] | None = None
    copying: str = copied_mask.AUTO


def check(
    intensity: str,
    window: tuple[float, float] | None,
    span: tuple[int, int] | None,
    copying: str,
    rules: Mapping[str, str],
) -> None:
    """``check_intensity``, ``check_span``, ``copying.check``, and that each of the ``rules`` for a series (by its
    option) is a regular expression, also where no scan has several series."""
    check_intensity(intensity, window)
    check_span(span)
    copied_mask.check(copying)
    for option, rule in rules.items():
        pattern_of(rule, option)


def check_intensity(intensity: str, window: tuple[float, float] | None) -> None:
    """``ValueError`` unless the way of clipping is known and the window is two finite numbers, the lower first."""
    if intensity not in ("auto", "clip", "keep"):
        raise ValueError(f"intensity: expected one of auto, clip, keep, got {intensity!r}")
    if window is not None and not (np.isfinite(window).all() and window[0] < window[1]):
        raise ValueError(f"window: expected two numbers, the lower first, got {window[0]:g} {window[1]:g}")


def check_span(span: tuple[int, int] | None) -> None:
    """``ValueError`` unless the range is two slice numbers, the lower first."""
    if span is not None and not 0 <= span[0] <= span[1]:
        raise ValueError(f"range: expected two slice numbers from 0 on, the lower first, got {span[0]} {span[1]}")


def require_in_stack(span: tuple[int, int] | None, slices: int, path: Path) -> None:
    """``ValueError`` naming a query that does not have the slices of the range."""
    if span is not None and span[1] >= slices:
        raise ValueError(f"{path}: has slices 0 to {slices - 1}, so --range {span[0]} {span[1]} is beyond it")
