"""Whether the places that a site's file names can be used, as far as that shows before any recipe is there."""

import os
from pathlib import Path

from sslmed_dist.federation.site_file import SiteFile
from sslmed_dist.printable import plural

Lines = list[str]
PACKED = ".npz"  # one such file may hold any number of examinations
MOST_COUNTED = 100_000


def data(site: SiteFile) -> tuple[Lines, Lines]:
    """(what lies at ``data``, what is wrong with it). Only names are looked at; nothing is opened."""
    place, least = Path(site.data), site.policy.least.examinations
    if not place.exists():
        return [], [f"data: {place}: no such file or folder"]
    if not os.access(place, os.R_OK):
        return [], [f"data: {place}: this user may not read it"]
    if place.is_file():
        return [f"data: {place}: a file of {place.stat().st_size / 1e6:.1f} megabytes"], []
    count, packed = files_in(place)
    if count == 0:
        return [], [f"data: {place}: no file in it, so there is nothing to train on"]
    if count < least and not packed:
        few = plural(count, "file")
        why = f"every round would be refused: policy.least.examinations is {least}"
        return [], [f"data: {place}: {few}, fewer than examinations are asked for; {why}"]
    shown = plural(count, "file") if count < MOST_COUNTED else f"at least {MOST_COUNTED:,} files"
    return [f"data: {place}: {shown}; `sslmed data check` reads them"], []


def files_in(folder: Path) -> tuple[int, bool]:
    """How many files there are below a folder, up to ``MOST_COUNTED``, and whether one of them is ``PACKED``. Those
    whose name begins with a dot are none of the data, and a folder that several links lead to counts once."""
    count, packed = 0, False
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        names = [name for name in files if not name.startswith(".")]
        count, packed = count + len(names), packed or any(name.endswith(PACKED) for name in names)
        if count >= MOST_COUNTED:
            break
    return count, packed


def unwritable(site: SiteFile) -> Lines:
    """Which of the places that the data side writes to cannot be written to by this user: state, ledger, and the folder
    of the socket. One that is missing would be made in the nearest folder above it."""
    places = {"state": Path(site.state), "ledger": site.ledger, "socket": Path(site.socket).parent}
    found = []
    for what, place in places.items():
        there = next(above for above in (place, *place.parents) if above.exists())
        if not os.access(there, os.W_OK):
            found.append(f"{what}: {place}: cannot be written to (as this user, on this disk)")
    return found
