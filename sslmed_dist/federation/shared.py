"""Which tensors a federation averages, and how a site takes them over."""

import hashlib
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from sslmed_dist.federation.messages import SiteError
from sslmed_dist.methods import Method
from sslmed_dist.training.optim import NORMS


def shared_keys(method: Method, share: str) -> list[str]:
    """Names of the tensors that a federation averages: floating-point parameters and norm statistics of the encoder, or
    with ``share`` ``all`` of the whole method. What the method calls ``site_only`` is not shared. Integer counters
    (``num_batches_tracked``) stay at the sites."""
    state: Mapping[str, Tensor] = method.state_dict()
    shared = [key for key in state if share == "all" or key.startswith("encoder.")]
    return [key for key in shared if state[key].is_floating_point() and not key.startswith(method.site_only)]


Arrays = dict[str, Tensor]  # shared tensors by their name in the method's state dict
STATISTICS = (".running_mean", ".running_var")  # how the names of a norm's running statistics end; the rest is learned


def shared_tensors(method: Method, share: str, stay: Collection[str] = ()) -> Arrays:
    """Copies on the CPU of the tensors that ``shared_keys`` names, without those that never leave (``stay``)."""
    state = method.state_dict()
    return {key: state[key].detach().to("cpu", copy=True) for key in shared_keys(method, share) if key not in stay}


def is_statistic(key: str) -> bool:
    """Whether the shared tensor ``key`` is a norm's running mean or variance, which no optimiser may move."""
    return key.endswith(STATISTICS)


def norm_keys(method: Method) -> frozenset[str]:
    """Names of all tensors of normalisation layers, learned ones and statistics."""
    norms = [(name, module) for name, module in method.named_modules() if isinstance(module, NORMS)]
    return frozenset(f"{name}.{leaf}".lstrip(".") for name, module in norms for leaf in module.state_dict())


def model_digest(arrays: Mapping[str, Tensor]) -> str:
    """SHA-256, as hex digits, of tensors: their names in order, types, shapes and values."""
    total = hashlib.sha256()
    for key in sorted(arrays):
        value = arrays[key].detach().cpu().contiguous()
        total.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def load_shared(
    method: Method, arrays: Mapping[str, Tensor], share: str, stay: Collection[str] = (), skip: Collection[str] = ()
) -> None:
    """Copy the shared tensors into ``method``. ``stay`` are names that are never sent; ``skip`` are names that are sent
    and not taken over this time. ``SiteError`` names the first tensor that is missing, unknown or of another shape;
    nothing is copied then."""
    state = method.state_dict()
    expected = [key for key in shared_keys(method, share) if key not in stay]
    for key in sorted(set(expected) | set(arrays)):
        if key not in arrays or key not in expected or arrays[key].shape != state[key].shape:
            raise SiteError(f"shared tensor {key}: missing, unknown or of another shape than this site's method has")
    with torch.no_grad():  # in place: the state dict holds the method's own tensors
        for key in expected:
            if key not in skip:
                state[key].copy_(arrays[key])
