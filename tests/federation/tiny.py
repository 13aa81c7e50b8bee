"""A federation small enough for a test: random images in the MedMNIST layout, a narrow ResNet, a few steps."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from flwr.clientapp import ClientApp

from sslmed_dist import checkpoint, config
from sslmed_dist.federation import messages
from sslmed_dist.federation.averages import Average, Round, WeightedMean, shares
from sslmed_dist.federation.local_round import initial_arrays
from sslmed_dist.federation.replies import Reply
from sslmed_dist.federation.round_files import save_round
from sslmed_dist.federation.shared import Arrays
from sslmed_dist.federation.sites import resolve_for_all, simulated_sites, training_settings

Tree = Mapping[str, Any]


def write_data(path: Path) -> Path:
    """128 random grey images of 12 pixels, two labels."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, count in (("train", 96), ("val", 16), ("test", 16)):
        arrays[f"{name}_images"] = rng.integers(0, 256, (count, 12, 12), dtype=np.uint8)
        arrays[f"{name}_labels"] = rng.integers(0, 2, (count, 1)).astype(np.uint8)
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def settings(folder: Path, name: str = "tiny", **changes: Tree) -> config.Config:
    """Settings of a run called ``name`` in ``folder``; ``changes`` are laid over the sections."""
    data = folder / "tiny.npz"
    root = data if data.exists() else write_data(data)
    tree = {
        "run": {"name": name, "dir": str(folder / "runs"), "device": "cpu"},
        "data": {"name": "medmnist", "root": str(root)},
        "views": {"name": "contrastive", "size": 8, "jitter": [0.4, 0.4, 0.0, 0.0], "grey": 0.0},
        "method": {
            "name": "contrastive",
            "encoder": {"name": "resnet", "depth": 9, "width": 4, "stem": "cifar"},
            "head": {"name": "projection", "hidden": 16, "out": 8, "batch_norm": True},
        },
        "optim": {"name": "sgd", "lr": 0.05},
        "plan": {"batch_size": 16, "steps_per_epoch": 2, "log_every": 1},
        "federated": {
            "rounds": 2,
            "partition": {"name": "iid", "count": 3},
            "runtime": "in_process",
            "quorum": 2,
            "timeout_s": 120.0,
        },
    }
    chosen = config.from_tree(config.merge(tree, changes), "tiny")
    chosen = training_settings(chosen)
    return resolve_for_all(chosen, simulated_sites(chosen))


def federate(chosen: config.Config, monkeypatch: pytest.MonkeyPatch, client: Any = None) -> Path:
    """Run the federation in this process, as the launcher's subprocess would; returns the run folder."""
    folder = chosen.folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(config.dump(chosen))
    travelling = messages.decode(messages.encode(chosen))
    save_round(folder, 0, initial_arrays(chosen), travelling)
    return goes_on(chosen, monkeypatch, client)


def goes_on(chosen: config.Config, monkeypatch: pytest.MonkeyPatch, client: Any = None) -> Path:
    """Run what is missing of a federation that has begun."""
    from server import in_process

    folder = chosen.folder
    monkeypatch.setenv("SSLMED_DATA_ROOT", str(chosen.data["root"]))
    monkeypatch.setenv("SSLMED_SITES_DIR", str(folder / "sites"))
    in_process.run(folder, client)
    return folder


def arrays(folder: Path, number: int) -> dict[str, torch.Tensor]:
    """The shared tensors after ``number`` rounds."""
    tensors: dict[str, torch.Tensor] = checkpoint.load(folder / "checkpoints" / f"round_{number:05d}.pt")["method"]
    return tensors


def same(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def averaged(replies: Sequence[Reply], average: Average | None = None, **changes: Any) -> Arrays:
    """What ``average`` (by default the weighted mean) makes of ``replies``; ``changes`` are fields of the round."""
    reference = {key: torch.zeros_like(value) for key, value in replies[0].arrays.items()}
    ordered = sorted(replies, key=lambda reply: reply.site)
    done = Round(ordered, shares(ordered), reference, len(replies), lambda: 1.0)
    return (average or WeightedMean()).combine(replace(done, **changes))


def log_of(folder: Path) -> str:
    """What the server logged."""
    return (folder / "federation.log").read_text()


def altered(change: Any, node: int = 2, rounds: tuple[int, ...] = (0,)) -> Any:
    """The real client app, but ``change`` is applied to what ``node`` replies to "train" in ``rounds``."""
    from clients.app import app

    def client(message: Message, context: Any) -> Message:
        assert isinstance(app, ClientApp)
        reply = app(message, context)
        chosen = message.metadata.message_type == "train" and context.node_id == node
        if chosen and message.content["config"]["round"] in rounds:
            return change(reply) or reply
        return reply

    return client
