"""The shared tensors of every round in the run folder: ``checkpoints/round_NNNNN.pt``."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from sslmed_dist import checkpoint
from sslmed_dist.config import Config, fingerprint, to_tree
from sslmed_dist.federation.shared import Arrays


def save_round(folder: Path, number: int, arrays: Mapping[str, Tensor], settings: Config) -> Path:
    """Write the shared tensors after ``number`` rounds: ``checkpoints/round_NNNNN.pt``. As of a training's checkpoints,
    the newest ``plan.keep_last`` stay and every ``plan.keep_every``-th; the first weights (round 0) always do."""
    tree, mark = to_tree(settings), fingerprint(settings)
    path = folder / "checkpoints" / f"round_{number:05d}.pt"
    checkpoint.save(path, kind="encoder", config=tree, fingerprint=mark, round=number, method=dict(arrays))
    for old in sorted(path.parent.glob("round_*.pt"))[: -settings.plan.keep_last]:
        past = int(old.stem.rsplit("_", 1)[1])
        if past and not (settings.plan.keep_every and past % settings.plan.keep_every == 0):
            old.unlink(missing_ok=True)
    return path


def last_round(folder: Path, settings: Config) -> tuple[int, Arrays] | None:
    """The newest round checkpoint of this run, or None. ``ValueError`` names one of another run."""
    files = sorted((folder / "checkpoints").glob("round_*.pt"))
    if not files:
        return None
    saved = checkpoint.load(files[-1])
    if saved["fingerprint"] != fingerprint(settings):
        raise ValueError(f"{files[-1]}: belongs to another run (configuration fingerprint differs)")
    return int(saved["round"]), dict(saved["method"])
