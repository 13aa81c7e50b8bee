"""Batch normalisation over the global batch, on CPU as well.

``torch.nn.SyncBatchNorm`` refuses CPU tensors, so tests and CPU clusters could not normalise over the global batch. The
layer here computes the same function, differentiable any number of times, with one message in the forward pass and one
in the backward pass. Parameters, buffers and state-dict keys are those of BatchNorm.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.modules.batchnorm import _BatchNorm

from sslmed_dist import distributed


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (C,) per channel of all ranks' ``x`` (N, C, ...), in float32 (float64 for float64).

    One message carries every rank's mean and variance. The variance of all rows is the mean of the ranks' variances
    plus the variance of their means (Chan et al. 1979), exact for equal counts. A rank's variance is a mean of squared
    deviations, free of cancellation; torch.var_mean over these axes takes longer than the convolution before it, and a
    second array for the squares as long as all the rest.
    """
    axes, shape = layout(x)
    wide = x if x.dtype == torch.float64 else x.float()
    local_mean = wide.mean(axes)
    local_variance = (wide - local_mean.view(shape)).square_().mean(axes)
    means, variances = distributed.gather(torch.stack([local_mean, local_variance])[None]).unbind(1)  # (W, C) each
    mean = means.mean(0)
    return mean, variances.mean(0) + (means - mean).square().mean(0)


def layout(x: Tensor) -> tuple[list[int], list[int]]:
    """For ``x`` (N, C, ...): the axes to average over, and the shape in which a value per channel broadcasts to it."""
    return [axis for axis in range(x.dim()) if axis != 1], [1, -1] + [1] * (x.dim() - 2)


def composed(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """The layer's equation for ``x`` (N, C, ...) in operations that autograd can follow: slow, but differentiable any
    number of times."""
    _, shape = layout(x)
    mean, variance = moments(x)
    scale = torch.rsqrt(variance + eps) if weight is None else torch.rsqrt(variance + eps) * weight
    out = (x - mean.view(shape)) * scale.view(shape)
    return (out if bias is None else out + bias.view(shape)).to(x.dtype)


class Synchronised(torch.autograd.Function):
    """``composed`` by torch's fast kernels: (x, weight, bias, eps) -> (out, mean, variance).

    Both directions are batch norms with known statistics. With dy the upstream gradient, xhat the normalised x, w the
    weight and r = 1 / sqrt(variance + eps), the gradient of x has two parts: that of the normalisation with the
    statistics held fixed, and what flows through the statistics, ``-w r (mean(dy) + xhat mean(dy xhat))`` with means
    over all ranks. The second is itself a batch norm of x, with other weights.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
        mean, variance = moments(x)
        ctx.save_for_backward(x, weight, bias, mean, variance)  # type: ignore[arg-type]
        ctx.eps = eps  # type: ignore[attr-defined]
        ctx.mark_non_differentiable(mean, variance)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps), mean, variance

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> Any:
        x, weight, bias, mean, variance = ctx.saved_tensors  # type: ignore[attr-defined]
        eps: float = ctx.eps  # type: ignore[attr-defined]
        if torch.is_grad_enabled():  # somebody will differentiate this again
            inputs = [t for t in (x, weight, bias) if t is not None and t.requires_grad]
            gradients = iter(torch.autograd.grad(composed(x, weight, bias, eps), inputs, grads[0], create_graph=True))
            return *(next(gradients) if t is not None and t.requires_grad else None for t in (x, weight, bias)), None
        scale = torch.rsqrt(variance + eps)
        # The gradients of weight and bias are sum(dy xhat) and sum(dy) over this rank's rows.
        _, weight_gradient, bias_gradient = torch.ops.aten.native_batch_norm_backward(
            grads[0], x, weight, mean, variance, mean, scale, False, eps, [False, True, True]
        )
        # The second part: those two sums, as means over all ranks, are slope and offset of the other batch norm. To it
        # comes the first part, dy w r, in one pass (the kernel above would write it, for another to read).
        count = x.numel() // x.shape[1] * distributed.world_size()
        means = distributed.reduce_sum(torch.stack([weight_gradient, bias_gradient])) / count  # (2, C)
        factor = scale if weight is None else scale * weight
        slope, offset = -means * factor
        x_gradient = F.batch_norm(x, mean, variance, slope, offset, False, 0.0, eps)
        x_gradient.addcmul_(grads[0], factor.view(layout(x)[1]))
        return x_gradient, None if weight is None else weight_gradient, None if bias is None else bias_gradient, None


class SyncBatchNorm(_BatchNorm):
    """BatchNorm (N, C, ...) whose training statistics are those of all ranks' rows together.

    Every rank must hold the same number of rows. In one process, and in evaluation, it is ``F.batch_norm``.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f"batch norm expects (N, C, ...), got shape {tuple(x.shape)}")

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` (N, C, ...) per channel, in the same shape. ``ValueError`` for fewer than 2 axes."""
        if not (self.training and distributed.active()):
            return super().forward(x)
        out: Tensor
        out, mean, variance = Synchronised.apply(x, self.weight, self.bias, self.eps)  # type: ignore[no-untyped-call]
        self.track(mean, variance, x.numel() // x.shape[1] * distributed.world_size())
        return out

    def track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Update the running statistics as BatchNorm does, by ``mean`` and biased ``variance`` (C,) of ``count`` values
        per channel: with the unbiased variance, as an exponential or a cumulative average."""
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        unbiased = variance * (count / max(count - 1, 1))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)


class SyncBatchNormAct(SyncBatchNorm):
    """``SyncBatchNorm``, then dropout, then the activation: the twin of timm's ``BatchNormAct2d``."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """``act(drop(norm(x)))`` of ``x`` (N, C, ...)."""
        out: Tensor = self.act(self.drop(super().forward(x)))
        return out


class TorchSyncBatchNormAct(nn.SyncBatchNorm):
    """The same on PyTorch's layer, for a GPU."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """``act(drop(norm(x)))`` of ``x`` (N, C, ...)."""
        out: Tensor = self.act(self.drop(super().forward(x)))
        return out


PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
SYNCHRONISED = (SyncBatchNorm, nn.SyncBatchNorm)


def does_more(norm: _BatchNorm) -> bool:
    """Whether ``norm`` is of a subclass that computes more than batch norm: a twin of the plain layer would lose it."""
    return type(norm) not in PLAIN and not isinstance(norm, SYNCHRONISED)


def with_activation(norm: _BatchNorm) -> bool:
    """Whether ``norm`` is timm's BatchNormAct2d: batch norm, then ``drop``, then ``act``. timm is not imported here."""
    kind = type(norm)
    return kind.__name__ == "BatchNormAct2d" and kind.__module__.split(".")[0] == "timm"


def unknown(norm: _BatchNorm, what: str, allowed: str = "torch's BatchNorm layers") -> ValueError:
    """The line for a subclass of batch norm that ``what`` cannot replace."""
    return ValueError(
        f"{what}: {type(norm).__module__}.{type(norm).__name__} is a batch norm that computes more than torch's, which "
        f"would be lost; allowed: {allowed}"
    )


def synchronise(module: nn.Module, device: torch.device) -> nn.Module:
    """``module`` with every BatchNorm in it (or itself) synchronised: by PyTorch's layer on a GPU, by ours on a CPU.
    timm's BatchNormAct2d keeps its activation. ``ValueError`` for another subclass, by its name."""
    if isinstance(module, _BatchNorm):
        return module if isinstance(module, SYNCHRONISED) else convert(module, device)
    for name, child in module.named_children():
        setattr(module, name, synchronise(child, device))
    return module


def convert(norm: _BatchNorm, device: torch.device) -> nn.Module:
    """The synchronised layer with the parameters and buffers of ``norm``. ``ValueError``: see ``synchronise``."""
    acts = with_activation(norm)
    if does_more(norm) and not acts:
        raise unknown(norm, "batch norm over several workers", "torch's BatchNorm layers, timm's BatchNormAct2d")
    kinds = (TorchSyncBatchNormAct, nn.SyncBatchNorm) if device.type == "cuda" else (SyncBatchNormAct, SyncBatchNorm)
    kind: Any = kinds[0] if acts else kinds[1]
    twin: _BatchNorm = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    twin.weight, twin.bias = norm.weight, norm.bias
    twin.running_mean, twin.running_var = norm.running_mean, norm.running_var
    twin.num_batches_tracked = norm.num_batches_tracked
    if acts:
        twin.drop, twin.act = norm.drop, norm.act
    twin.training = norm.training
    return twin
