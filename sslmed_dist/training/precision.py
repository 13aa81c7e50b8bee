"""The arithmetic of a step: half precision, deterministic kernels, and which module gave the first NaN or infinity."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sslmed_dist.config import Plan
from sslmed_dist.methods.method import Method

Batch = dict[str, Tensor]
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class NonFinite(ArithmeticError):
    """A loss or gradient is not finite: training stopped before the parameters were touched."""


def autocast(plan: Plan, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The autocast region that ``plan.precision`` asks for."""
    if plan.precision not in HALF:
        return contextlib.nullcontext()
    return torch.autocast(device.type, HALF[plan.precision])


@contextlib.contextmanager
def deterministic_kernels(plan: Plan) -> Iterator[None]:
    """Deterministic kernels while ``plan.deterministic`` asks for them."""
    if plan.deterministic:
        # cuBLAS is deterministic only with a fixed workspace, and torch refuses its matrix products without one.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(plan.deterministic or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def first_non_finite(method: Method, parts: Iterator[Batch], plan: Plan, device: torch.device) -> str | None:
    """Name of the first module, in order of execution, whose output is not finite, or ``input NAME``, or None.

    The ``parts`` of a batch are embedded once more to see it. All of them are, also after the first find: synchronised
    layers on other ranks would wait for this one.
    """
    bad_modules: list[str] = []  # at most one

    def watch(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not bad_modules and not bool(torch.isfinite(output).all()):
                bad_modules.append(name)

        return hook

    bad_inputs: list[str] = []
    hooks = [module.register_forward_hook(watch(name)) for name, module in method.named_modules() if name]
    try:
        # Eagerly, or a compiled encoder would be compiled once more for the hooks.
        with torch.no_grad(), autocast(plan, device), torch.compiler.set_stance("force_eager"):
            for batch in parts:
                floating = {name: value for name, value in batch.items() if value.is_floating_point()}
                bad_inputs += [name for name, value in floating.items() if not bool(value.isfinite().all())]
                method.embed(batch)
    finally:
        for hook in hooks:
            hook.remove()
    if bad_inputs:
        return f"input {bad_inputs[0]}"
    return bad_modules[0] if bad_modules else None
