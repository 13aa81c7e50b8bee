"""What one site answered, why a reply may not enter the average, and the average of those that may."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sslmed_dist.federation.shared import Arrays


@dataclass(frozen=True)
class Reply:
    """What one site answered: its name, its tensors, and how many samples it trained on."""

    site: str
    arrays: Mapping[str, Tensor]
    samples: int


def screen(reply: Reply, reference: Mapping[str, Tensor]) -> str | None:
    """Why a reply may not enter the average, or None. Names, shapes, types, finiteness and the sample count count."""
    unknown = sorted(set(reply.arrays) ^ set(reference))
    if unknown:
        return f"tensor {unknown[0]} is {'unknown' if unknown[0] in reply.arrays else 'missing'}"
    for key, expected in reference.items():
        if reply.arrays[key].shape != expected.shape:
            return f"tensor {key} has shape {tuple(reply.arrays[key].shape)}, expected {tuple(expected.shape)}"
        if reply.arrays[key].dtype != expected.dtype:
            return f"tensor {key} is {reply.arrays[key].dtype}, expected {expected.dtype}"
        if not bool(torch.isfinite(reply.arrays[key]).all()):
            return f"tensor {key} is not finite"
    return None if reply.samples > 0 else f"it reports {reply.samples} samples"


def fedavg(replies: Sequence[Reply]) -> Arrays:
    """Federated averaging (McMahan et al. 2017): the mean weighted by sample counts.

    Summed in float64 in the order of the sites' names, so that a repeated run has the same bits, and returned in the
    tensors' own type. The mean of one reply is that reply, bit for bit.
    """
    ordered = sorted(replies, key=lambda reply: reply.site)
    total = sum(reply.samples for reply in ordered)
    average = {}
    for key, first in ordered[0].arrays.items():
        parts = [reply.arrays[key].double() * (reply.samples / total) for reply in ordered]
        average[key] = torch.stack(parts).sum(0).to(first.dtype)
    return average
