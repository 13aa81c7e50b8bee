"""Whether a query is of the kind that the support and the training data are of: intensities, and features.

Both are warnings and decide nothing. They cannot tell a kind from a very unusual patient, and an alike histogram does
not make two sequences alike.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

LEVELS = torch.linspace(0.02, 0.98, 49)
COUNT = 200_000  # of pixels, evenly spread, whose quantiles are taken
# Between fold 0's training patients of CHAOS T2-SPIR the distance is 0.11 in the median and 0.34 at most; to the same
# scans with inverted contrast 0.51 at least, to those with a gamma of 0.5 it is 0.27 to 0.42.
FAR = 0.4
# Of CHAOS scans, seen and unseen in training, 0.11 to 0.13 with the encoder of chaos_cowpro_lite0; of inverted
# contrast 0.17, of a gamma of 0.5 0.19, of the pelvis of three PROSTATEx patients (axial T2) 0.23 to 0.24, of noise
# 0.61. So a pelvis is said to be unlike an abdomen, and the same abdomen in another contrast is left to ``FAR``.
STRANGE = 0.2


def profile(stack: Tensor) -> Tensor:
    """The quantiles (49,) of standardised slices (S, 1, H, W)."""
    pixels = stack.flatten()
    return torch.quantile(pixels[:: max(1, len(pixels) // COUNT)].double(), LEVELS.double())


def distance(one: Tensor, other: Tensor) -> float:
    """The mean distance of two profiles, in standard deviations of a scan's pixels."""
    return float((one - other).abs().mean())


class Statistics:
    """How far the inputs of an encoder's batch norms are from those in training.

    ``value`` is the mean over all channels of all batch norms of |mean of what came - running mean| over the running
    standard deviation; None where the encoder has no batch norm with running statistics, or nothing came.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.images = 0
        self.norms: dict[str, nn.Module] = {}

    def see(self, name: str, maps: Tensor) -> None:
        """Add what comes into the batch norm ``name``: (N, C, h, w)."""
        of_images = maps.detach().double().mean(dim=(2, 3)).sum(dim=0)
        self.sums[name] = self.sums[name] + of_images if name in self.sums else of_images

    @property
    def value(self) -> float | None:
        """See the class."""
        distances = []
        for name, norm in self.norms.items():
            if name in self.sums:
                running, variance = (norm.get_buffer(of).double() for of in ("running_mean", "running_var"))
                distances.append(((self.sums[name] / self.images - running) / (variance + 1e-5).sqrt()).abs().mean())
        return float(torch.stack(distances).mean()) if distances else None


@contextmanager
def watched(encoder: nn.Module, images: int) -> Iterator[Statistics]:
    """A block in which ``images`` images go through the encoder, each once, and its ``Statistics``."""
    statistics, handles = Statistics(), []
    statistics.images = images

    def hook(name: str) -> object:
        return lambda _, inputs: statistics.see(name, inputs[0])

    for name, module in encoder.named_modules():
        if isinstance(getattr(module, "running_mean", None), Tensor):
            statistics.norms[name] = module
            handles.append(module.register_forward_pre_hook(hook(name)))
    try:
        yield statistics
    finally:
        for handle in handles:
            handle.remove()


def warnings(support: Tensor, query: Tensor, modalities: tuple[str, str], statistics: Statistics) -> list[str]:
    """Lines about a query that is unlike the support or the training data; ``support`` and ``query`` are profiles,
    ``modalities`` those of their files ("" where they do not say), support first."""
    lines = []
    if all(modalities) and modalities[0] != modalities[1]:
        lines.append(f"its modality is {modalities[1]}, the support's {modalities[0]}")
    apart = distance(support, query)
    if apart > FAR:
        lines.append(
            f"its intensities differ from the support's by {apart:.2f} standard deviations (between CHAOS patients at "
            "most 0.34): another sequence, modality or field of view?"
        )
    strange = statistics.value
    if strange is not None and strange > STRANGE:
        lines.append(
            f"its features differ from those in training by {strange:.2f} standard deviations (CHAOS scans by 0.13): "
            "unlike the training data?"
        )
    return lines
