"""Where the real images for tests lie; a test that needs one is skipped where it is absent."""

import os
from pathlib import Path

import pytest


def real_data(name: str) -> Path:
    """The file or folder ``name`` below $SSLMED_TEST_DATA, or below ``shared/data`` beside the repository."""
    given = os.environ.get("SSLMED_TEST_DATA")
    folder = Path(given) if given else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / name).exists():
        pytest.skip(f"{name} is not in SSLMED_TEST_DATA or in shared/data beside the repository")
    return folder / name
