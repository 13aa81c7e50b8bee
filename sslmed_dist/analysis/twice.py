"""Convolutions whose second derivatives are made of the fast kernels of the first ones.

Torch differentiates a convolution's backward pass by convolutions with kernels as large as the feature map, which a CPU
does slowly. The same products are an ordinary convolution, its gradient by the input and its gradient by the weight.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.overrides import TorchFunctionMode

Geometry = tuple[list[int], list[int], list[int], int]  # stride, padding, dilation, groups


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


class FastTwice(TorchFunctionMode):
    """Within it, 2-d convolutions with numbers for padding are ``Convolution``; all else is as before."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not torch.conv2d or kwargs or len(args) < 7 or isinstance(args[4], str):
            return func(*args, **(kwargs or {}))
        x, weight, bias, stride, padding, dilation, groups = args
        result = convolution(x, weight, (list(stride), list(padding), list(dilation), groups))
        return result if bias is None else result + bias[:, None, None]
