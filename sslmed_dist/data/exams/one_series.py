"""The one series of a folder, for who needs just one: several that would do are refused, and listed."""

from pathlib import Path

from sslmed_dist.data.exams.series import read_examination
from sslmed_dist.data.scans.padding import fill_padding
from sslmed_dist.data.scans.scan import StoredScan, read_scan


def read_image(path: Path) -> tuple[StoredScan, list[str]]:
    """The image in ``path`` as ``read_one`` reads it, without padding; a line for everything that was left aside,
    guessed or replaced. ``ValueError`` as ``read_one``, and where all of it is padding."""
    scan, notices = read_one(path)
    if scan.series is not None:
        return scan, notices  # its padding has been replaced
    try:
        return scan, [*notices, *fill_padding(scan.voxels)]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_one(path: Path) -> tuple[StoredScan, list[str]]:
    """The scan in ``path`` (a NIfTI file, or a folder with DICOM files right in it) as ``read_scan`` reads it, and a
    line for each series of the folder that was left aside (localizers, maps).

    ``ValueError`` as ``read_scan``, for a damaged file, and for a folder of several series, which are listed.
    """
    if not path.is_dir():
        scan = read_scan(path)
        return scan, list(scan.notices)
    found = read_examination(sorted(entry for entry in path.iterdir() if entry.is_file() and entry.name[0] != "."))
    for item in found.aside:
        if item.detail:
            raise ValueError(item.detail)
    for series in found.series:
        for line in series.damaged:
            raise ValueError(line)
    if len(found.series) > 1:
        lines = "; ".join(series.line for series in found.series)
        raise ValueError(
            f"{path}: {len(found.series)} series in it that would do ({lines}); put the files of one into a folder of "
            "their own"
        )
    if not found.series:  # nothing to choose from: the strict reader says what is wrong
        scan = read_scan(path)
        return scan, list(scan.notices)
    notes = [f"left aside: {item.images} images, {item.reason}" for item in found.aside]
    if found.other_files:
        notes.append(f"passed over: {found.other_files} files without an image")
    scan = read_scan(path, found.series[0].files)
    return scan, [*notes, *scan.notices]
