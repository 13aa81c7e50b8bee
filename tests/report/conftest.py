"""Fixtures of the report's tests."""

import pytest

from sslmed_dist.report import plots
from sslmed_dist.report.runs import PNG


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes seconds; the plots have their own tests."""
    monkeypatch.setattr(plots, "render", lambda draw, size, theme: PNG)
