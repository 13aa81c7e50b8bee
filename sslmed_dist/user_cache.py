"""Where what can be computed again is kept: below the user's cache folder, never beside the data.

A hospital mounts its data read-only, and another program may take what lies beside images for an image.
"""

import os
from pathlib import Path


def user_cache(name: str) -> Path:
    """``$XDG_CACHE_HOME/sslmed/NAME``, by default ``~/.cache/sslmed/NAME``. Nothing is made."""
    given = os.environ.get("XDG_CACHE_HOME")
    home = Path(given) if given and Path(given).is_absolute() else Path.home() / ".cache"
    return home / "sslmed" / name
