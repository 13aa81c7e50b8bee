"""Whether Ray's workers have room on the nodes that there are. Counts only: nothing here needs Ray."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sslmed_dist import config


def bundle(options: config.Ray) -> dict[str, float]:
    """What one worker asks for."""
    asked = {"CPU": float(options.cpus_per_worker), "GPU": float(options.gpus_per_worker)}
    return {key: need for key, need in asked.items() if need}


def too_little(options: config.Ray, nodes: Sequence[Mapping[str, Any]]) -> str | None:
    """What the living ``nodes`` (as of ``ray.nodes``) lack, in words, even if nothing else ran on them; None where the
    workers fit. A worker is on one node as a whole."""
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    workers = 0.0
    for node in resources:
        # The small term keeps 1 GPU at ten workers of 0.1.
        fits = [(node.get(key, 0) / need + 1e-9) // 1 for key, need in bundle(options).items()]
        workers += min([float(options.num_workers), *fits])
    if workers >= options.num_workers:
        return None
    cpus, gpus = (sum(node.get(key, 0) for node in resources) for key in ("CPU", "GPU"))
    each = f"{options.cpus_per_worker} CPUs and {options.gpus_per_worker:g} GPUs"
    present = f"{cpus:g} CPUs and {gpus:g} GPUs" if cpus < math.inf else f"{gpus:g} GPUs"
    return f"ray.num_workers: {options.num_workers} workers of {each} each; there are {present}, room for {workers:g}"


def refuse_too_little(options: config.Ray, nodes: Sequence[Mapping[str, Any]]) -> None:
    """``ValueError`` where the workers do not fit on ``nodes``."""
    line = too_little(options, nodes)
    if line is not None:
        raise ValueError(f"{line}; smaller numbers, or more nodes (`ray status` shows them)")
