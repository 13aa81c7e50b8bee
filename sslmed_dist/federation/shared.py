"""Which tensors a federation averages, and how a site takes them over."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sslmed_dist.federation.messages import SiteError
from sslmed_dist.methods import Method


def shared_keys(method: Method, share: str) -> list[str]:
    """Names of the tensors a federation averages: floating-point parameters and norm statistics of the encoder, or of
    the whole method but what it calls ``site_only``. Integer counters (``num_batches_tracked``) stay where they are."""
    state: Mapping[str, Tensor] = method.state_dict()
    shared = [key for key in state if share == "all" or key.startswith("encoder.")]
    return [key for key in shared if state[key].is_floating_point() and not key.startswith(method.site_only)]


Arrays = dict[str, Tensor]


def load_shared(method: Method, arrays: Mapping[str, Tensor], share: str) -> None:
    """Overlay the shared tensors; ``SiteError`` names the first that is missing, unknown or misshapen."""
    state = method.state_dict()
    expected = shared_keys(method, share)
    for key in sorted(set(expected) | set(arrays)):
        if key not in arrays or key not in expected or arrays[key].shape != state[key].shape:
            raise SiteError(f"shared tensor {key}: missing, unknown or of another shape than this site's method has")
    with torch.no_grad():
        for key in expected:
            state[key].copy_(arrays[key])
