"""Several runs, checked before the first of them begins: a mistake in the last one would show after hours."""

from collections.abc import Iterable

from sslmed_dist.config import Config, to_tree
from sslmed_dist.data.dataset import Dataset
from sslmed_dist.training import build
from sslmed_dist.training.check import assembled


def require_buildable(runs: Iterable[tuple[str, Config]]) -> None:
    """Build every one of ``runs``, (what it is called, its settings), as far as its first step. Training data that two
    runs in a row share are read once. ``ValueError`` begins with what the run is called."""
    known: tuple[object, Dataset] | None = None
    for name, settings in runs:
        try:
            facts = (to_tree(settings)["data"], settings.run.seed)
            if known is None or known[0] != facts:
                known = (facts, build.load_data(settings, "train"))
            assembled(settings, known[1])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
