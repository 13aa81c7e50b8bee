"""What one site answered, why a reply may not enter the average, and the average of those that may."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sslmed_dist.federation.shared import Arrays


@dataclass(frozen=True)
class Reply:
    """What one site answered: its name, its shared tensors by name, and how many samples it trained on."""

    site: str
    arrays: Mapping[str, Tensor]
    samples: int


def screen(reply: Reply, reference: Mapping[str, Tensor]) -> str | None:
    """Why a reply may not enter the average, or None if it may. Its tensors must have the names, shapes and types of
    ``reference`` (what the sites were sent) and finite values, and it must come from at least one sample."""
    unmatched = sorted(set(reply.arrays) ^ set(reference))
    if unmatched:
        return f"tensor {unmatched[0]} is {'unknown' if unmatched[0] in reply.arrays else 'missing'}"
    for key, expected in reference.items():
        if reply.arrays[key].shape != expected.shape:
            return f"tensor {key} has shape {tuple(reply.arrays[key].shape)}, expected {tuple(expected.shape)}"
        if reply.arrays[key].dtype != expected.dtype:
            return f"tensor {key} is {reply.arrays[key].dtype}, expected {expected.dtype}"
        if not bool(torch.isfinite(reply.arrays[key]).all()):
            return f"tensor {key} is not finite"
    return None if reply.samples > 0 else f"it reports {reply.samples} samples"


def fedavg(replies: Sequence[Reply]) -> Arrays:
    """Federated averaging (McMahan et al. 2017): of each tensor the mean over sites, weighted by sample counts.

    It is summed in float64 in the order of the sites' names, so that a repeated run has the same bits, and returned in
    the type of each tensor. The mean of one reply is that reply, bit for bit. ``replies`` have passed ``screen``.
    """
    ordered = sorted(replies, key=lambda reply: reply.site)
    total = sum(reply.samples for reply in ordered)
    average = {}
    for key, first in ordered[0].arrays.items():
        weighted = [reply.arrays[key].double() * (reply.samples / total) for reply in ordered]
        average[key] = torch.stack(weighted).sum(0).to(first.dtype)
    return average
