"""Batch normalisation over the global batch, on CPU as well.

``torch.nn.SyncBatchNorm`` refuses CPU tensors, so tests and CPU clusters could not have global-batch semantics. The
layer here computes the same function, differentiably, with one message forward and one backward. Parameters, buffers
and state-dict keys are those of BatchNorm.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sslmed_dist import distributed


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
        axes = [axis for axis in range(x.dim()) if axis != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        count = x.numel() // x.shape[1] * distributed.world_size()
        wide = x if x.dtype == torch.float64 else x.float()
        # One message carries every rank's mean and variance; the variance of the whole is the mean variance plus the
        # variance of the means (Chan et al. 1979), exact for equal counts and free of cancellation.
        own_variance, own_mean = torch.var_mean(wide, axes, correction=0)
        means, variances = distributed.gather(torch.stack([own_mean, own_variance])[None]).unbind(1)
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        self.track(mean.detach(), variance.detach(), count)
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            out = (wide - mean.view(shape)) * (scale * self.weight).view(shape) + self.bias.view(shape)
        else:
            out = (wide - mean.view(shape)) * scale.view(shape)
        return out.to(x.dtype)

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
