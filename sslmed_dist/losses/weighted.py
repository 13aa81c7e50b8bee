"""A weighted sum of losses, put together in a configuration."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sslmed_dist import registry


class WeightedSum(nn.Module):
    """sum_k weight_k L_k of the same embeddings; every term is a leaf of LOSSES with a ``weight`` (default 1):

        loss:
          name: sum
          terms:
            - {name: mio_v3, temperature: 0.2}
            - {name: vicreg, weight: 0.04, invariance: 0, variance: 25, covariance: 0}

    (a contrastive term with VICReg's variance term, which the thesis names as future work). ``losses`` is the table
    that the terms are looked up in. ``ValueError`` for no term, a weight that is not a finite number, or a bad term.
    """

    def __init__(self, terms: Sequence[Mapping[str, Any]], *, losses: Mapping[str, Callable[..., nn.Module]]) -> None:
        super().__init__()
        if not terms:
            raise ValueError("method.loss.terms: expected at least one loss, got none")
        self.weights: list[float] = []
        self.names: list[str] = []
        self.losses = nn.ModuleList()
        for index, term in enumerate(terms):
            leaf = dict(term)
            weight = leaf.pop("weight", 1.0)
            if not registry.matches(weight, float):
                raise ValueError(f"method.loss.terms[{index}].weight: expected a finite number, got {weight!r}")
            self.losses.append(registry.build(losses, leaf, f"method.loss.terms[{index}]"))
            self.weights.append(float(weight))
            name = str(leaf["name"])
            # A loss that occurs twice is told apart by its place in the list.
            self.names.append(name if name not in self.names else f"{name}_{index}")

    def terms(self, z0: Tensor, z1: Tensor) -> dict[str, Tensor]:
        """Each term's value by name, a scalar without its weight, for embeddings (N, D) of two views."""
        return {name: loss(z0, z1) for name, loss in zip(self.names, self.losses, strict=True)}

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of ``terms``, the values by name; a scalar."""
        weighted = [weight * terms[name] for weight, name in zip(self.weights, self.names, strict=True)]
        return torch.stack(weighted).sum()

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        return self.total(self.terms(z0, z1))
