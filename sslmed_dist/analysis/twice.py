"""Convolutions and batch norms whose second derivatives are made of the fast kernels of the first ones.

Torch differentiates a convolution's backward pass by convolutions with kernels as large as the feature map, which a CPU
does slowly. The same products are an ordinary convolution, its gradient by the input and its gradient by the weight.
Torch's second derivative of a batch norm reads and writes the feature map some thirty times; written with the kernel of
the first derivative it does so about ten times.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Geometry = tuple[list[int], list[int], list[int], int]  # stride, padding, dilation, groups
Running = tuple[Tensor | None, Tensor | None]  # mean and variance that are kept for evaluation


def forward(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """The convolution of images (N, C, H, W) without bias."""
    stride, padding, dilation, groups = geometry
    out: Tensor = torch.ops.aten.convolution(x, weight, None, stride, padding, dilation, False, [0, 0], groups)
    return out


def backward(out: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wanted: list[bool]) -> Sequence[Tensor]:
    """Its gradients by input and weight, those that are ``wanted``, of ``out``, the gradient by its output. Of the
    tensor whose gradient is wanted only the shape counts."""
    stride, padding, dilation, groups = geometry
    arguments = (out, x, weight, None, stride, padding, dilation, False, [0, 0], groups, [*wanted, False])
    gradients: Sequence[Tensor] = torch.ops.aten.convolution_backward(*arguments)
    return gradients


class Convolution(torch.autograd.Function):
    """x, weight -> convolution."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry  # type: ignore[attr-defined]
        return forward(x, weight, geometry)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        by_x = by_input(grads[0], weight, x.shape, ctx.geometry) if ctx.needs_input_grad[0] else None
        by_weight = by_kernel(grads[0], x, weight.shape, ctx.geometry) if ctx.needs_input_grad[1] else None
        return by_x, by_weight, None


class ByInput(torch.autograd.Function):
    """gradient by the output, weight -> gradient by the input; linear in both."""

    @staticmethod
    def forward(ctx: FunctionCtx, out: Tensor, weight: Tensor, shape: torch.Size, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(out, weight)
        ctx.geometry = geometry  # type: ignore[attr-defined]
        return backward(out, out.new_empty(1).expand(shape), weight, geometry, [True, False])[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        out, weight = ctx.saved_tensors
        by_out = forward(grads[0], weight, ctx.geometry) if ctx.needs_input_grad[0] else None
        by_weight = backward(out, grads[0], weight, ctx.geometry, [False, True])[1] if ctx.needs_input_grad[1] else None
        return by_out, by_weight, None, None


class ByWeight(torch.autograd.Function):
    """gradient by the output, input -> gradient by the weight; linear in both."""

    @staticmethod
    def forward(ctx: FunctionCtx, out: Tensor, x: Tensor, shape: torch.Size, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(out, x)
        ctx.geometry = geometry  # type: ignore[attr-defined]
        return backward(out, x, out.new_empty(1).expand(shape), geometry, [False, True])[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        out, x = ctx.saved_tensors
        by_out = forward(x, grads[0], ctx.geometry) if ctx.needs_input_grad[0] else None
        by_x = backward(out, x, grads[0], ctx.geometry, [True, False])[0] if ctx.needs_input_grad[1] else None
        return by_out, by_x, None, None


convolution: Callable[..., Tensor] = Convolution.apply
by_input: Callable[..., Tensor] = ByInput.apply
by_kernel: Callable[..., Tensor] = ByWeight.apply


class BatchNorm(torch.autograd.Function):
    """x (N, C, ...), weight (C,), bias (C,) -> x normalised by the statistics of the batch, times weight, plus bias."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor, running: Running, momentum: float, eps: float
    ) -> Tensor:
        out, mean, rate = torch.native_batch_norm(x, weight, bias, *running, True, momentum, eps)
        ctx.save_for_backward(x, weight, mean, rate)
        ctx.eps = eps  # type: ignore[attr-defined]
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight, mean, rate = ctx.saved_tensors
        return (*by_normed(grads[0], x, weight, mean, rate, ctx.eps), None, None, None)


class NormBackward(torch.autograd.Function):
    """gradient g by the output, x, weight -> gradients by x, weight and bias.

    With the normalised input n = (x - mean) rate, means over all but the channels, and the projection
    P(g) = g - mean(g) - n mean(g n), which is its own transpose, these are weight rate P(g), sum(g n) and sum(g).
    ``mean`` and ``rate`` are functions of x here: the derivative of n by x is rate P, that of rate is -rate^2 n / M,
    M being how many values a mean is of.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rate: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        projected, by_weight, by_bias = projection(g, x, mean, rate, eps)  # rate P(g)
        ctx.save_for_backward(g, x, weight, mean, rate, projected, by_weight)
        ctx.eps = eps  # type: ignore[attr-defined]
        return projected * per_channel(weight, x), by_weight, by_bias

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor, a: Tensor, b: Tensor) -> Any:
        g, x, weight, mean, rate, projected_g, sum_gn = ctx.saved_tensors
        projected_v, sum_vn, _ = projection(v, x, mean, rate, ctx.eps)
        count = x.numel() // x.shape[1]
        along = (v * projected_g).sum([k for k in range(x.ndim) if k != 1])  # rate <v, P(g)>, per channel
        # By g: weight rate P(v) + a n + b, n being rate x - rate mean.
        by_g = projected_v * per_channel(weight, x)
        by_g.addcmul_(x, per_channel(a * rate, x)).add_(per_channel(b - a * rate * mean, x))
        # By x, through n: rate P of (a - weight rate mean(v n)) g - weight rate mean(g n) v; and through rate.
        of_g, of_v = a - weight * rate * sum_vn / count, -weight * rate * sum_gn / count
        of_n = -weight * rate * along / count
        by_x = projected_g * per_channel(of_g, x)
        by_x.addcmul_(projected_v, per_channel(of_v, x))
        by_x.addcmul_(x, per_channel(of_n * rate, x)).add_(per_channel(-of_n * rate * mean, x))
        return by_g, by_x, along, None, None, None


def projection(g: Tensor, x: Tensor, mean: Tensor, rate: Tensor, eps: float) -> Sequence[Tensor]:
    """rate P(g) (N, C, ...), sum(g n) (C,) and sum(g) (C,), by the kernel of the first backward pass."""
    made: Sequence[Tensor] = torch.ops.aten.native_batch_norm_backward(
        g, x, torch.ones_like(rate), None, None, mean, rate, True, eps, [True, True, True]
    )
    return made


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """Values (C,) in a shape that meets the channels of x (N, C, ...)."""
    return values.view(-1, *[1] * (x.ndim - 2))


batch_norm: Callable[..., Tensor] = BatchNorm.apply
by_normed: Callable[..., tuple[Tensor, Tensor, Tensor]] = NormBackward.apply


def normed(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``functional.batch_norm``, on a CPU by ``BatchNorm`` where it has weights and takes the batch's statistics."""
    if training and weight is not None and bias is not None and x.device.type == "cpu" and x.numel() > x.shape[1]:
        return batch_norm(x, weight, bias, (running_mean, running_var), momentum, eps)
    return functional.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)


class FastTwice(TorchFunctionMode):
    """Within it, 2-d convolutions with numbers for padding are ``Convolution`` and batch norms that learn and take the
    statistics of the batch are ``BatchNorm``; all else is as before."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.conv2d and not kwargs and len(args) == 7 and not isinstance(args[4], str):
            x, weight, bias, stride, padding, dilation, groups = args
            result = convolution(x, weight, (list(stride), list(padding), list(dilation), groups))
            return result if bias is None else result + bias[:, None, None]
        if func is functional.batch_norm:
            return normed(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))
