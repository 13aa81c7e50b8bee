"""Batch normalisation over the global batch, on CPU as well.

``torch.nn.SyncBatchNorm`` refuses CPU tensors, so tests and CPU clusters could not have global-batch semantics. The
layer here computes the same function, differentiable any number of times, with one message forward and one backward.
Parameters, buffers and state-dict keys are those of BatchNorm.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.modules.batchnorm import _BatchNorm

from sslmed_dist import distributed


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel of the rows of all ranks, in float32 (float64 for float64).

    One message carries every rank's mean and variance; the variance of the whole is the mean variance plus the
    variance of the means (Chan et al. 1979), exact for equal counts. The own variance is a mean of squared
    deviations, free of cancellation; torch.var_mean over these axes takes longer than the convolution before it.
    """
    axes, shape = layout(x)
    wide = x if x.dtype == torch.float64 else x.float()
    own_mean = wide.mean(axes)
    own_variance = (wide - own_mean.view(shape)).square().mean(axes)
    means, variances = distributed.gather(torch.stack([own_mean, own_variance])[None]).unbind(1)
    mean = means.mean(0)
    return mean, variances.mean(0) + (means - mean).square().mean(0)


def layout(x: Tensor) -> tuple[list[int], list[int]]:
    """The axes that are averaged over, and the shape in which a value per channel meets ``x`` (N, C, ...)."""
    return [axis for axis in range(x.dim()) if axis != 1], [1, -1] + [1] * (x.dim() - 2)


def composed(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """The layer's equation in operations that autograd knows: slow, and differentiable any number of times."""
    _, shape = layout(x)
    mean, variance = moments(x)
    scale = torch.rsqrt(variance + eps) if weight is None else torch.rsqrt(variance + eps) * weight
    out = (x - mean.view(shape)) * scale.view(shape)
    return (out if bias is None else out + bias.view(shape)).to(x.dtype)


class Synchronised(torch.autograd.Function):
    """``composed`` by torch's fast kernels: (x, weight, bias, eps) -> (out, mean, variance).

    Both directions are batch norms with given statistics. The gradient in x is that of the normalisation with the
    statistics held fixed, plus what flows through them: ``-w r (mean(dy) + xhat mean(dy xhat))`` with
    r = 1 / sqrt(variance + eps), which is itself a batch norm of x with other weights.
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
            wanted = [t for t in (x, weight, bias) if t is not None and t.requires_grad]
            found = iter(torch.autograd.grad(composed(x, weight, bias, eps), wanted, grads[0], create_graph=True))
            return *(next(found) if t is not None and t.requires_grad else None for t in (x, weight, bias)), None
        scale = torch.rsqrt(variance + eps)
        fixed, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            grads[0], x, weight, mean, variance, mean, scale, False, eps, [True, True, True]
        )
        count = x.numel() // x.shape[1] * distributed.world_size()
        both = distributed.reduce_sum(torch.stack([of_weight, of_bias])) / count
        slope, offset = -both * (scale if weight is None else scale * weight)
        fixed += F.batch_norm(x, mean, variance, slope, offset, False, 0.0, eps)
        return fixed, None if weight is None else of_weight, None if bias is None else of_bias, None


class SyncBatchNorm(_BatchNorm):
    """BatchNorm (N, C, ...) whose training statistics are those of all ranks' rows together.

    Every rank must hold the same number of rows. In one process, and in evaluation, it is ``F.batch_norm``.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f"batch norm expects (N, C, ...), got shape {tuple(x.shape)}")

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` (N, C, ...) per channel."""
        if not (self.training and distributed.active()):
            return super().forward(x)
        out: Tensor
        out, mean, variance = Synchronised.apply(x, self.weight, self.bias, self.eps)  # type: ignore[no-untyped-call]
        self.track(mean, variance, x.numel() // x.shape[1] * distributed.world_size())
        return out

    def track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Update the running statistics as BatchNorm does: unbiased variance, exponential or cumulative average."""
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        unbiased = variance * (count / max(count - 1, 1))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)


def synchronise(module: nn.Module, device: torch.device) -> nn.Module:
    """``module`` with every BatchNorm in it (or itself) synchronised: PyTorch's own on a GPU, ours on a CPU."""
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        return converted
    if isinstance(module, _BatchNorm):
        return module if isinstance(module, SyncBatchNorm) else convert(module)
    for name, child in module.named_children():
        setattr(module, name, synchronise(child, device))
    return module


def convert(norm: _BatchNorm) -> SyncBatchNorm:
    """The synchronised twin of one layer, sharing its parameters and buffers."""
    twin = SyncBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    twin.weight, twin.bias = norm.weight, norm.bias
    twin.running_mean, twin.running_var = norm.running_mean, norm.running_var
    twin.num_batches_tracked = norm.num_batches_tracked
    twin.training = norm.training
    return twin
