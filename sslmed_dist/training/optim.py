"""Optimisers, and which parameters they decay.

``exclude`` lists the parameters that get no weight decay (and, under LARS, no trust ratio): the words ``bias`` and
``norm``, or patterns of names. ``decay`` lists in the same way those that alone get it.
"""

import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from sslmed_dist import registry
from sslmed_dist.training.schedules import SCHEDULES, Schedule

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)  # batch and instance norms are subclasses of _NormBase
Scaling = Literal["none", "linear", "sqrt"]


class Lars(torch.optim.Optimizer):
    """LARS (You, Gitman and Ginsburg 2017, arXiv 1708.03888): SGD with momentum, each tensor's step scaled by
    ``trust |p| / (|g| + weight_decay |p| + eps)``. Groups with ``adapt: False`` take the plain step.

    All tensors of a group are handled at once and the ratio stays on the device: no host synchronisation.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 1e-6,
        trust: float = 0.001,
        eps: float = 1e-8,
        clip: bool = False,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "eps": eps}
        super().__init__(params, {**defaults, "clip": clip, "adapt": True})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step on the parameters that have a gradient."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            # update = ratio (g + weight_decay p); buffer = momentum buffer + update; p = p - lr buffer
            updates: list[Tensor] = [p.grad.clone() for p in params]
            if group["weight_decay"]:
                torch._foreach_add_(updates, params, alpha=group["weight_decay"])
            if group["adapt"]:
                torch._foreach_mul_(updates, self.ratios(params, group))
            # ``_foreach_..._`` changes all tensors of its first list in place.
            buffers = [self.buffer(p) for p in params]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, updates)
            torch._foreach_add_(params, buffers, alpha=-group["lr"])

    def ratios(self, params: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """The trust ratio of each parameter, a 0-d tensor; 1 where the parameter or its gradient is all zero."""
        weight_norms = torch.stack(torch._foreach_norm(params))  # (P,) for P parameters
        gradient_norms = torch.stack(torch._foreach_norm([p.grad for p in params if p.grad is not None]))  # (P,)
        ratio = group["trust"] * weight_norms / (gradient_norms + group["weight_decay"] * weight_norms + group["eps"])
        if group["clip"]:
            # lr * ratio is never more than lr itself: the clipped variant ("LARC") of some published recipes.
            ratio = torch.clamp(ratio / group["lr"], max=1.0) if group["lr"] > 0 else ratio
        return list(torch.where((weight_norms > 0) & (gradient_norms > 0), ratio, torch.ones_like(ratio)).unbind())

    def buffer(self, p: Tensor) -> Tensor:
        """The momentum buffer of one parameter."""
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


def sgd(
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    nesterov: bool = False,
    *,
    groups: list[dict[str, Any]],
) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum (torch)."""
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)


def adamw(
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 1e-4,
    eps: float = 1e-8,
    *,
    groups: list[dict[str, Any]],
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""
    return torch.optim.AdamW(groups, lr=lr, betas=betas, weight_decay=weight_decay, eps=eps)


def adam(
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
    eps: float = 1e-8,
    *,
    groups: list[dict[str, Any]],
) -> torch.optim.Optimizer:
    """Adam (Kingma and Ba 2015), weight decay added to the gradient."""
    return torch.optim.Adam(groups, lr=lr, betas=betas, weight_decay=weight_decay, eps=eps)


def rmsprop(
    lr: float,
    alpha: float = 0.99,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    eps: float = 1e-8,
    *,
    groups: list[dict[str, Any]],
) -> torch.optim.Optimizer:
    """RMSprop (torch), the jigsaw networks' optimiser. The published TensorFlow code has alpha 0.9 and eps 1e-7. A
    penalty of c |w|^2 in the loss, as that code writes its L2, is a weight decay of 2 c."""
    return torch.optim.RMSprop(groups, lr=lr, alpha=alpha, momentum=momentum, weight_decay=weight_decay, eps=eps)


def lars(
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 1e-6,
    trust: float = 0.001,
    clip: bool = False,
    *,
    groups: list[dict[str, Any]],
) -> torch.optim.Optimizer:
    """LARS; see ``Lars``."""
    return Lars(groups, lr=lr, momentum=momentum, weight_decay=weight_decay, trust=trust, clip=clip)


OPTIMIZERS: Mapping[str, Callable[..., Any]] = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
    "rmsprop": rmsprop,
    "lars": lars,
}


class Optimisation:
    """An optimiser with its schedule. ``lr`` is the learning rate that the schedule's factors multiply."""

    def __init__(self, optimizer: torch.optim.Optimizer, schedule: Schedule, lr: float) -> None:
        self.optimizer, self.schedule, self.lr = optimizer, schedule, lr

    def learning_rate(self, step: int) -> float:
        """The learning rate at ``step``."""
        return self.lr * self.schedule.factor(step)

    def set_rate(self, step: int) -> float:
        """Put the learning rate of ``step`` into the optimiser and return it."""
        rate = self.learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate


def chosen(method: nn.Module, patterns: tuple[str, ...], key: str) -> set[str]:
    """Names of the parameters that ``patterns``, the value of ``optim.KEY``, mean. A pattern is the word ``bias``
    (every bias), the word ``norm`` (weights and biases of normalisation layers), or a shell pattern of names
    (``encoder.*``). ``ValueError`` for a shell pattern that fits none."""
    names = [name for name, _ in method.named_parameters()]
    norms = [name for name, module in method.named_modules() if isinstance(module, NORMS)]
    # ``lstrip``: the name of a method that is itself a norm is "". ``& set(names)``: a norm may have no parameters.
    words = {
        "bias": {name for name in names if name.rsplit(".", 1)[-1] == "bias"},
        "norm": {f"{name}.{leaf}".lstrip(".") for name in norms for leaf in ("weight", "bias")} & set(names),
    }
    chosen_names: set[str] = set()
    for pattern in patterns:
        matching = words[pattern] if pattern in words else set(fnmatch.filter(names, pattern))
        if not matching and pattern not in words:
            raise ValueError(f"optim.{key}: {pattern!r} fits no parameter; allowed: bias, norm, patterns of names")
        chosen_names |= matching
    return chosen_names


def build(leaf: Mapping[str, Any], method: nn.Module, *, batch_size: int, epochs: int, per_epoch: int) -> Optimisation:
    """The optimiser that ``leaf`` (the ``optim`` section) describes, over the trainable parameters of ``method``.

    Beside the optimiser's own arguments the leaf may have ``schedule`` (a leaf of SCHEDULES, default cosine) and
    ``exclude`` (default: bias and norm for lars, nothing otherwise) or ``decay``. ``scale`` says how the learning rate
    grows with the global batch: ``none``, ``linear`` (lr x batch / 256) or ``sqrt`` (lr x sqrt(batch), as in Chen et
    al. 2020). ``epochs`` and ``per_epoch`` (optimiser steps) give the schedule its length. ``ValueError`` names the
    key.
    """
    arguments = dict(leaf)  # what is left once the keys that are not the optimiser's are taken out
    schedule_leaf = arguments.pop("schedule", "cosine")
    scale: Scaling = arguments.pop("scale", "none")
    patterns = {key: arguments.pop(key, None) for key in ("exclude", "decay")}
    for key, value in patterns.items():
        if value is not None and not registry.matches(value, tuple[str, ...]):
            raise ValueError(f"optim.{key}: expected a list of bias, norm or patterns of names, got {value!r}")
    if scale not in ("none", "linear", "sqrt"):
        raise ValueError(f"optim.scale: expected none, linear or sqrt, got {scale!r}")
    registry.check(OPTIMIZERS, arguments, "optim", ("groups",), also=("schedule", "exclude", "decay", "scale"))
    if not arguments["lr"] > 0:
        raise ValueError(f"optim.lr: expected a number > 0, got {arguments['lr']}")
    arguments["lr"] *= {"none": 1.0, "linear": batch_size / 256, "sqrt": math.sqrt(batch_size)}[scale]
    lars_leaf = arguments["name"] == "lars"
    if patterns["exclude"] is None and patterns["decay"] is None and lars_leaf:
        patterns["exclude"] = ("bias", "norm")
    groups = groups_of(method, patterns["exclude"], patterns["decay"], adapt=not lars_leaf)
    schedule = registry.build(SCHEDULES, schedule_leaf, "optim.schedule", total=epochs * per_epoch, per_epoch=per_epoch)
    return Optimisation(registry.build(OPTIMIZERS, arguments, "optim", groups=groups), schedule, arguments["lr"])


def groups_of(
    method: nn.Module, exclude: Sequence[str] | None, decay: Sequence[str] | None, *, adapt: bool
) -> list[dict[str, Any]]:
    """Up to two groups of trainable parameters: those with weight decay, and those without (under LARS, where ``adapt``
    is false, also without a trust ratio). ``ValueError`` where both patterns are given, or one fits nothing."""
    if exclude is not None and decay is not None:
        raise ValueError("optim.decay: says which parameters get weight decay; leave out optim.exclude beside it")
    trainable = [(name, p) for name, p in method.named_parameters() if p.requires_grad]
    if decay is not None:
        decayed = chosen(method, tuple(decay), "decay")
        without = {name for name, _ in trainable} - decayed
    else:
        without = chosen(method, tuple(exclude or ()), "exclude")
    groups: list[dict[str, Any]] = [{"params": [p for name, p in trainable if name not in without]}]
    rest = [p for name, p in trainable if name in without]
    if rest:
        groups.append({"params": rest, "weight_decay": 0.0} | ({} if adapt else {"adapt": False}))
    return groups
