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
    deviations, free of cancellation; torch.var_mean over these axes takes longer than the convolution before it.
    """
    axes, shape = layout(x)
    wide = x if x.dtype == torch.float64 else x.float()
    local_mean = wide.mean(axes)
    local_variance = (wide - local_mean.view(shape)).square().mean(axes)
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
        # The first part; the gradients of weight and bias are sum(dy xhat) and sum(dy) over this rank's rows.
        x_gradient, weight_gradient, bias_gradient = torch.ops.aten.native_batch_norm_backward(
            grads[0], x, weight, mean, variance, mean, scale, False, eps, [True, True, True]
        )
        # The second part: those two sums, as means over all ranks, are slope and offset of the other batch norm.
        count = x.numel() // x.shape[1] * distributed.world_size()
        means = distributed.reduce_sum(torch.stack([weight_gradient, bias_gradient])) / count  # (2, C)
        slope, offset = -means * (scale if weight is None else scale * weight)
        x_gradient += F.batch_norm(x, mean, variance, slope, offset, False, 0.0, eps)
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


def synchronise(module: nn.Module, device: torch.device) -> nn.Module:
    """``module`` with every BatchNorm in it (or itself) synchronised: by PyTorch's layer on a GPU, by ours on a CPU."""
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        return converted
    if isinstance(module, _BatchNorm):
        return module if isinstance(module, SyncBatchNorm) else convert(module)
    for name, child in module.named_children():
        setattr(module, name, synchronise(child, device))
    return module


def convert(norm: _BatchNorm) -> SyncBatchNorm:
    """The synchronised layer that shares the parameters and buffers of ``norm``."""
    twin = SyncBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    twin.weight, twin.bias = norm.weight, norm.bias
    twin.running_mean, twin.running_var = norm.running_mean, norm.running_var
    twin.num_batches_tracked = norm.num_batches_tracked
    twin.training = norm.training
    return twin
