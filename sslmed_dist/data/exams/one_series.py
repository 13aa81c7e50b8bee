"""The one series of a source, for who needs just one. Which one is never guessed: several that would do are listed."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from sslmed_dist.data.exams.series import Examination, Series, read_examination
from sslmed_dist.data.exams.studies import Source, one_source
from sslmed_dist.data.scans.padding import fill_padding
from sslmed_dist.data.scans.scan import StoredScan, read_scan
from sslmed_dist.printable import plural

OPTION = "--series"


def read_image(source: Path | Source, rule: str = "", option: str = OPTION) -> tuple[StoredScan, list[str]]:
    """The image of ``read_one``, without padding; a line for everything that was left aside, guessed or replaced.
    ``ValueError`` as ``read_one``, and where all of it is padding."""
    scan, notices = read_one(source, rule, option)
    if scan.series is not None:
        return scan, notices  # its padding has been replaced
    try:
        return scan, [*notices, *fill_padding(scan.voxels)]
    except ValueError as error:
        raise ValueError(f"{scan.path}: {error}") from None


def read_one(source: Path | Source, rule: str = "", option: str = OPTION) -> tuple[StoredScan, list[str]]:
    """The scan of a ``source``, or of everything at a path, as ``read_scan`` reads it, and a line for each series that
    was left aside (localizers, maps), and for what was guessed.

    ``rule``: a regular expression that is searched, in capitals or not, in the line of each series (``Series.line``).
    It may also choose one that was made of other images. ``option``: how a person says it, for the lines.
    ``ValueError`` as ``read_scan``, for a file that is damaged and may belong to the series, and where not exactly one
    series is left: all are listed.
    """
    source = source if isinstance(source, Source) else one_source(source)
    if source.files is None:
        scan = read_scan(source.path)
        chosen = [f"a file of NIfTI is one series: {option} {rule!r} chose nothing"] if rule else []
        return scan, [*chosen, *scan.notices]
    found, series = choose(source, rule, option)
    require_whole(found, series)
    notes = [f"left aside: {plural(item.images, 'image')}, {item.reason}" for item in found.aside]
    if len(found.series) > 1:
        notes.append(f"chosen by {option} among {plural(len(found.series), 'series', 'series')}: {series.line}")
    if found.other_files:
        notes.append(f"passed over: {found.other_files} files without an image")
    if series.nifti:
        scan = read_scan(series.files[0])
    else:
        scan = read_scan(source.path if source.path.is_dir() else source.path.parent, series.files)
    return scan, [*notes, *scan.notices]


def pattern_of(rule: str, option: str = OPTION) -> re.Pattern[str]:
    """What finds the ``rule`` in a line. ``ValueError`` for what is no regular expression."""
    try:
        return re.compile(rule, re.IGNORECASE)
    except re.error as error:
        raise ValueError(f"{option} {rule!r}: not a regular expression: {error}") from None


def choose(source: Source, rule: str, option: str = OPTION) -> tuple[Examination, Series]:
    """The examination of a source, and the one series that the ``rule`` fits. ``ValueError`` as ``read_one``."""
    pattern = pattern_of(rule, option)
    files = source.files or ()
    found = read_examination(files)
    fitting = [series for series in found.series if pattern.search(series.line)]
    if rule and not fitting:  # one that is made of others is taken where it is asked for, and only then
        found = read_examination(files, derived=True)
        fitting = [series for series in found.series if pattern.search(series.line)]
    if len(fitting) == 1:
        return found, fitting[0]
    if not found.series:
        for item in found.aside:
            if item.detail:
                raise ValueError(item.detail)
        aside = "; ".join(f"{plural(item.images, 'image')}, {item.reason}" for item in found.aside)
        raise ValueError(f"{source.path}: no scan in it" + (f" ({aside})" if aside else ": no DICOM image"))
    how = f"choose one by {option} RULE, a regular expression that fits its line alone"
    if not fitting:
        raise ValueError(f"{source.path}: none of its series fits {option} {rule!r} ({lines(found.series)}); {how}")
    raise ValueError(f"{source.path}: {len(fitting)} series in it that would do ({lines(fitting)}); {how}")


def lines(series: Sequence[Series]) -> str:
    """The lines of some series, for a message."""
    return "; ".join(item.line for item in series)


def require_whole(found: Examination, series: Series) -> None:
    """``ValueError`` for a file of the ``series`` that is damaged, and for one beside its files that may be of it."""
    for line in series.damaged:
        raise ValueError(line)
    folders = {file.parent for file in series.files}
    for item in found.aside:
        if any(item.detail.startswith(f"{folder}{os.sep}") for folder in folders):
            raise ValueError(item.detail)
