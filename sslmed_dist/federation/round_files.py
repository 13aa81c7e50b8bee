"""The shared tensors of every round in the run folder: ``checkpoints/round_NNNNN.pt``."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from sslmed_dist import checkpoint
from sslmed_dist.config import Config, fingerprint, to_tree
from sslmed_dist.federation.shared import Arrays


def save_round(folder: Path, rounds_done: int, arrays: Mapping[str, Tensor], settings: Config) -> Path:
    """Write the shared tensors after ``rounds_done`` rounds: ``checkpoints/round_NNNNN.pt``; returns the file.

    Older files are deleted as those of a training are: the newest ``plan.keep_last`` stay, and every
    ``plan.keep_every``-th round. The first weights (round 0) always stay.
    """
    tree, run_fingerprint = to_tree(settings), fingerprint(settings)
    path = folder / "checkpoints" / f"round_{rounds_done:05d}.pt"
    checkpoint.save(
        path, kind="encoder", config=tree, fingerprint=run_fingerprint, round=rounds_done, method=dict(arrays)
    )
    for old_file in sorted(path.parent.glob("round_*.pt"))[: -settings.plan.keep_last]:
        old_round = int(old_file.stem.rsplit("_", 1)[1])
        if old_round and not (settings.plan.keep_every and old_round % settings.plan.keep_every == 0):
            old_file.unlink(missing_ok=True)
    return path


def last_round(folder: Path, settings: Config) -> tuple[int, Arrays] | None:
    """(number of rounds done, shared tensors) of the newest round checkpoint, or None where there is none.
    ``ValueError`` names a file of another run."""
    files = sorted((folder / "checkpoints").glob("round_*.pt"))
    if not files:
        return None
    saved = checkpoint.load(files[-1])
    if saved["fingerprint"] != fingerprint(settings):
        raise ValueError(f"{files[-1]}: belongs to another run (configuration fingerprint differs)")
    return int(saved["round"]), dict(saved["method"])
