"""Whether Ray's workers have room on the nodes that there are. Counts only: nothing here needs Ray."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sslmed_dist import config
from sslmed_dist.printable import plural


def bundle(options: config.Ray) -> dict[str, float]:
    """What one worker asks for."""
    asked = {"CPU": float(options.cpus_per_worker), "GPU": float(options.gpus_per_worker)}
    return {key: need for key, need in asked.items() if need}


def whole_bundles(options: config.Ray) -> list[dict[str, int]]:
    """What an autoscaler is asked for, which knows whole numbers only: workers that share a GPU are put together."""
    gpus = options.gpus_per_worker
    together = max(1, int(1 / gpus + 1e-9)) if gpus else 1
    asked = {"CPU": options.cpus_per_worker * together, "GPU": math.ceil(gpus * together - 1e-9)}
    return [{key: need for key, need in asked.items() if need}] * math.ceil(options.fewest / together)


def room(options: config.Ray, nodes: Sequence[Mapping[str, float]]) -> float:
    """How many workers fit on nodes of these resources, even if nothing else ran on them; as many as the run needs, at
    most, on each. A worker is on one node as a whole."""
    most = 1.0 if options.placement == "strict_spread" else float(options.fewest)
    workers = 0.0
    for node in nodes:
        # The small term keeps 1 GPU at ten workers of 0.1.
        workers += min([most, *((node.get(key, 0) / need + 1e-9) // 1 for key, need in bundle(options).items())])
    return workers


def too_little(options: config.Ray, nodes: Sequence[Mapping[str, Any]]) -> str | None:
    """What the living ``nodes`` (as of ``ray.nodes``) lack, in words; None where the workers have ``room``."""
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    workers = room(options, resources)
    if workers >= options.fewest:
        return None
    cpus, gpus = (sum(node.get(key, 0) for node in resources) for key in ("CPU", "GPU"))
    each = f"{options.cpus_per_worker} CPUs and {options.gpus_per_worker:g} GPUs"
    present = f"{cpus:g} CPUs and {gpus:g} GPUs" if cpus < math.inf else f"{gpus:g} GPUs"
    if options.placement == "strict_spread":
        each += " each, each on a node of its own (ray.placement)"
        present += f" on {plural(len(resources), 'node')}"
    else:
        each += " each"
    least = "at least " if options.elastic else ""
    needed = plural(options.fewest, "worker")
    return f"ray.num_workers: {least}{needed} of {each}; there are {present}, room for {workers:g}"


def refuse_too_little(options: config.Ray, nodes: Sequence[Mapping[str, Any]]) -> None:
    """``ValueError`` where the workers do not fit on ``nodes``."""
    line = too_little(options, nodes)
    if line is not None:
        raise ValueError(f"{line}; smaller numbers, or more nodes (`ray status` shows them)")
