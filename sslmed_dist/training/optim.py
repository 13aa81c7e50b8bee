"""Optimisers and learning-rate schedules.

A schedule is a pure function of the step, so a resumed run needs no schedule state. ``exclude`` lists the parameters
that get no weight decay (and, under LARS, no trust ratio): the words ``bias`` and ``norm``, or patterns of names.
"""

import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from sslmed_dist import registry

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


def rmsprop(
    lr: float,
    alpha: float = 0.99,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    eps: float = 1e-8,
    *,
    groups: list[dict[str, Any]],
) -> torch.optim.Optimizer:
    """RMSprop (torch), the jigsaw networks' optimiser."""
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


OPTIMIZERS: Mapping[str, Callable[..., Any]] = {"sgd": sgd, "adamw": adamw, "rmsprop": rmsprop, "lars": lars}


class Schedule:
    """A factor on the learning rate of the configuration: it rises linearly for ``warmup`` steps, then follows
    ``shape``.

    ``factor(step)`` is defined for 0 <= step < total. Steps are optimiser steps of the whole run; ``per_epoch`` of them
    are an epoch. ``ValueError`` for a warm-up as long as the run.
    """

    def __init__(self, warmup: int, total: int, per_epoch: int) -> None:
        if not 0 <= warmup < max(total, 1):
            raise ValueError(f"optim.schedule.warmup_epochs: {warmup} steps of warm-up, the run has only {total}")
        self.warmup, self.total, self.per_epoch = warmup, total, per_epoch

    def factor(self, step: int) -> float:
        """Multiplier of the base learning rate at ``step``."""
        if step < self.warmup:
            return (step + 1) / self.warmup  # the last step of the warm-up has the full rate
        return self.shape(step)

    def shape(self, step: int) -> float:
        """The factor after the warm-up: constant here."""
        return 1.0


class Constant(Schedule):
    """The base learning rate throughout, after an optional warm-up."""

    def __init__(self, warmup_epochs: float = 0.0, *, total: int, per_epoch: int) -> None:
        super().__init__(round(warmup_epochs * per_epoch), total, per_epoch)


class Cosine(Schedule):
    """Half a cosine from 1 to ``final`` (Loshchilov and Hutter 2017), per optimiser step."""

    def __init__(self, warmup_epochs: float = 0.0, final: float = 0.0, *, total: int, per_epoch: int) -> None:
        super().__init__(round(warmup_epochs * per_epoch), total, per_epoch)
        self.final = final

    def shape(self, step: int) -> float:
        """Cosine of the progress since the end of the warm-up."""
        progress = (step - self.warmup) / max(self.total - self.warmup, 1)  # 0 to just below 1
        return self.final + 0.5 * (1.0 - self.final) * (1.0 + math.cos(math.pi * progress))


class Step(Schedule):
    """Multiply by ``gamma`` at each of the ``milestones`` (epochs)."""

    def __init__(
        self,
        milestones: tuple[int, ...],
        gamma: float = 0.1,
        warmup_epochs: float = 0.0,
        *,
        total: int,
        per_epoch: int,
    ) -> None:
        super().__init__(round(warmup_epochs * per_epoch), total, per_epoch)
        self.milestones, self.gamma = tuple(milestones), gamma

    def shape(self, step: int) -> float:
        """``gamma`` to the number of milestones passed."""
        epoch = step // self.per_epoch  # counted from 0
        return float(self.gamma ** sum(epoch >= milestone for milestone in self.milestones))


class Exponential(Schedule):
    """Multiply by ``gamma`` after every epoch."""

    def __init__(self, gamma: float = 0.95, warmup_epochs: float = 0.0, *, total: int, per_epoch: int) -> None:
        super().__init__(round(warmup_epochs * per_epoch), total, per_epoch)
        self.gamma = gamma

    def shape(self, step: int) -> float:
        """``gamma`` to the number of epochs done."""
        return float(self.gamma ** (step // self.per_epoch))


SCHEDULES: Mapping[str, Callable[..., Any]] = {
    "constant": Constant,
    "cosine": Cosine,
    "step": Step,
    "exponential": Exponential,
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


def excluded(method: nn.Module, patterns: tuple[str, ...]) -> set[str]:
    """Names of the parameters that ``patterns`` exclude. A pattern is the word ``bias`` (every bias), the word ``norm``
    (weights and biases of normalisation layers), or a shell pattern of names (``encoder.*``). ``ValueError`` for a
    shell pattern that fits none."""
    names = [name for name, _ in method.named_parameters()]
    norms = [name for name, module in method.named_modules() if isinstance(module, NORMS)]
    # ``lstrip``: the name of a method that is itself a norm is "". ``& set(names)``: a norm may have no parameters.
    words = {
        "bias": {name for name in names if name.rsplit(".", 1)[-1] == "bias"},
        "norm": {f"{name}.{leaf}".lstrip(".") for name in norms for leaf in ("weight", "bias")} & set(names),
    }
    excluded_names: set[str] = set()
    for pattern in patterns:
        matching = words[pattern] if pattern in words else set(fnmatch.filter(names, pattern))
        if not matching and pattern not in words:
            raise ValueError(f"optim.exclude: {pattern!r} fits no parameter; allowed: bias, norm, patterns of names")
        excluded_names |= matching
    return excluded_names


def build(leaf: Mapping[str, Any], method: nn.Module, *, batch_size: int, epochs: int, per_epoch: int) -> Optimisation:
    """The optimiser that ``leaf`` (the ``optim`` section) describes, over the trainable parameters of ``method``.

    Beside the optimiser's own arguments the leaf may have ``schedule`` (a leaf of SCHEDULES, default cosine) and
    ``exclude`` (default: bias and norm for lars, nothing otherwise). ``scale`` says how the learning rate grows with
    the global batch: ``none``, ``linear`` (lr x batch / 256) or ``sqrt`` (lr x sqrt(batch), as in Chen et al. 2020).
    ``epochs`` and ``per_epoch`` (optimiser steps) give the schedule its length. ``ValueError`` names the key.
    """
    arguments = dict(leaf)  # what is left once the keys that are not the optimiser's are taken out
    schedule_leaf = arguments.pop("schedule", "cosine")
    scale: Scaling = arguments.pop("scale", "none")
    default = ("bias", "norm") if arguments.get("name") == "lars" else ()
    exclude = arguments.pop("exclude", default)
    if not registry.matches(exclude, tuple[str, ...]):
        raise ValueError(f"optim.exclude: expected a list of bias, norm or patterns of names, got {exclude!r}")
    if scale not in ("none", "linear", "sqrt"):
        raise ValueError(f"optim.scale: expected none, linear or sqrt, got {scale!r}")
    registry.check(OPTIMIZERS, arguments, "optim", ("groups",), also=("schedule", "exclude", "scale"))
    if not arguments["lr"] > 0:
        raise ValueError(f"optim.lr: expected a number > 0, got {arguments['lr']}")
    arguments["lr"] *= {"none": 1.0, "linear": batch_size / 256, "sqrt": math.sqrt(batch_size)}[scale]
    # Up to two groups of parameters: those with weight decay, and the excluded ones.
    no_decay = excluded(method, tuple(exclude))
    trainable = [(name, p) for name, p in method.named_parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": [p for name, p in trainable if name not in no_decay]}]
    rest = [p for name, p in trainable if name in no_decay]
    if rest:
        groups.append({"params": rest, "weight_decay": 0.0} | ({"adapt": False} if arguments["name"] == "lars" else {}))
    schedule = registry.build(SCHEDULES, schedule_leaf, "optim.schedule", total=epochs * per_epoch, per_epoch=per_epoch)
    return Optimisation(registry.build(OPTIMIZERS, arguments, "optim", groups=groups), schedule, arguments["lr"])
