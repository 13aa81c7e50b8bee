"""How many voxels of a scan are read: a file of a megabyte can stand for gigabytes."""

import os
from collections.abc import Sequence
from pathlib import Path

MOST_VOXELS = 2**29  # 512 x 512 x 2,048: 2 GiB in float32
VARIABLE = "SSLMED_MOST_VOXELS"  # of the environment: another limit


def most_voxels() -> int:
    """The limit: ``VARIABLE`` where it is set, else ``MOST_VOXELS``. ``ValueError`` where it is no whole number."""
    text = os.environ.get(VARIABLE, "")
    if not text:
        return MOST_VOXELS
    if not (text.isascii() and text.isdecimal() and len(text) <= 18 and int(text) > 0):
        raise ValueError(f"{VARIABLE}: expected a whole number of voxels, got {text!r:.40}")
    return int(text)


def require_voxels(count: int, shape: Sequence[int], path: Path) -> None:
    """``ValueError`` naming ``path`` for a scan of ``count`` voxels, in ``shape``, that are more than the limit."""
    most = most_voxels()
    if count > most:
        raise ValueError(
            f"{path}: {count:,} voxels in shape {tuple(shape)} are {4 * count:,} bytes in float32; allowed: at most "
            f"{most:,} voxels; the environment variable {VARIABLE} sets another limit"
        )
