"""The shared tensors of every round in the run folder: ``checkpoints/round_NNNNN.pt``."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor

from sslmed_dist import checkpoint
from sslmed_dist.config import Config, fingerprint, to_tree
from sslmed_dist.federation.shared import Arrays

EMPTY: Mapping[str, Any] = MappingProxyType({})


class Round(NamedTuple):
    """What a round's file holds: the number of rounds done, the shared tensors, and what the server keeps between
    rounds (``server``: the strategy's state, the norms that the screen compares with, the sites seen)."""

    number: int
    arrays: Arrays
    server: dict[str, Any]


def save_round(
    folder: Path,
    rounds_done: int,
    arrays: Mapping[str, Tensor],
    settings: Config,
    server: Mapping[str, Any] = EMPTY,
    *,
    keep: int | None = None,
) -> Path:
    """Write the shared tensors after ``rounds_done`` rounds: ``checkpoints/round_NNNNN.pt``; returns the file.
    ``server`` is plain data and tensors (``Round.server``).

    Older files are deleted as those of a training are: the newest ``plan.keep_last`` stay, and every
    ``plan.keep_every``-th round. The first weights (round 0) always stay, and so does the round ``keep``.
    """
    tree, run_fingerprint = to_tree(settings), fingerprint(settings)
    path = folder / "checkpoints" / checkpoint.file_name("round", rounds_done)
    checkpoint.save(
        path,
        kind="encoder",
        config=tree,
        fingerprint=run_fingerprint,
        round=rounds_done,
        method=dict(arrays),
        server=dict(server),
    )
    for old_round, old_file in list(checkpoint.numbered(path.parent, "round").items())[: -settings.plan.keep_last]:
        if old_round not in (0, keep) and not (settings.plan.keep_every and old_round % settings.plan.keep_every == 0):
            old_file.unlink(missing_ok=True)
    return path


def last_round(folder: Path, settings: Config) -> Round | None:
    """The newest round checkpoint, or None where there is none. A file of an older version has an empty ``server``.
    ``ValueError`` names a file of another run, kind or round."""
    files = checkpoint.numbered(folder / "checkpoints", "round")
    if not files:
        return None
    return one_round(folder, settings, max(files))


def one_round(folder: Path, settings: Config, number: int) -> Round:
    """The checkpoint of round ``number``; errors as of ``last_round``."""
    path = folder / "checkpoints" / checkpoint.file_name("round", number)
    saved = checkpoint.load(path)
    if saved["fingerprint"] != fingerprint(settings):
        raise ValueError(f"{path}: belongs to another run (configuration fingerprint differs)")
    if saved["kind"] != "encoder":
        raise ValueError(f"{path}: kind: expected encoder, the shared tensors of a federation, got {saved['kind']}")
    server = saved.get("server", {})
    if not isinstance(server, dict):
        raise ValueError(f"{path}: server: expected the server's state, got {type(server).__name__}: damaged")
    return Round(int(saved["round"]), dict(saved["method"]), server)
