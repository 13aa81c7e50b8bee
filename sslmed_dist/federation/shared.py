"""Which tensors a federation averages, and how a site takes them over."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sslmed_dist.federation.messages import SiteError
from sslmed_dist.methods import Method


def shared_keys(method: Method, share: str) -> list[str]:
    """Names of the tensors that a federation averages: floating-point parameters and norm statistics of the encoder, or
    with ``share`` ``all`` of the whole method. What the method calls ``site_only`` is not shared. Integer counters
    (``num_batches_tracked``) stay at the sites."""
    state: Mapping[str, Tensor] = method.state_dict()
    shared = [key for key in state if share == "all" or key.startswith("encoder.")]
    return [key for key in shared if state[key].is_floating_point() and not key.startswith(method.site_only)]


Arrays = dict[str, Tensor]  # shared tensors by their name in the method's state dict


def load_shared(method: Method, arrays: Mapping[str, Tensor], share: str) -> None:
    """Copy the shared tensors into ``method``. ``SiteError`` names the first that is missing, unknown or of another
    shape; nothing is copied then."""
    state = method.state_dict()
    expected = shared_keys(method, share)
    for key in sorted(set(expected) | set(arrays)):
        if key not in arrays or key not in expected or arrays[key].shape != state[key].shape:
            raise SiteError(f"shared tensor {key}: missing, unknown or of another shape than this site's method has")
    with torch.no_grad():  # in place: the state dict holds the method's own tensors
        for key in expected:
            state[key].copy_(arrays[key])
