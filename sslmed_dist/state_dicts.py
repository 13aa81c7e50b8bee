"""Whether a state dict fits a module: the same names, the same shapes, finite numbers. One line says what does not."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

MOST_TIMES = 8  # a file's tensors may have so many times its bytes: some share theirs
SHOWN = 3  # examples of each kind of misfit; their number is always said
VARIANCE = "running_var"  # of batch norm; its root is taken
COUNTER = ".num_batches_tracked"  # of batch norm; absent from files older than torch 0.4.1, idle in evaluation


def misfit(expected: Mapping[str, Tensor], state: Mapping[str, object]) -> str | None:
    """What keeps ``state`` from being loaded where ``expected`` is: keys that are missing or unexpected, other shapes
    (theirs and ours), other types of number, numbers that are not finite, and variances below 0. None where it fits."""
    missing = [key for key in sorted(expected) if key not in state]
    unexpected = [key for key in sorted(state) if key not in expected]
    shared = [key for key in sorted(expected) if key in state]
    tensors = {key: value for key in shared if isinstance(value := state[key], Tensor)}
    reshaped = [
        f"{key} {tuple(theirs.shape)} in the file and {tuple(expected[key].shape)} here"
        for key, theirs in tensors.items()
        if theirs.shape != expected[key].shape
    ]
    retyped = [
        f"{key} {kind(state[key])} in the file and {kind(expected[key])} here"
        for key in shared
        if key not in tensors or not same_kind(tensors[key], expected[key])
    ]
    # A tensor of another kind or shape is reported as such; only one that can be ours is looked into.
    infinite = [
        key
        for key, theirs in tensors.items()
        if theirs.shape == expected[key].shape and same_kind(theirs, expected[key]) and not finite(theirs)
    ]
    below = [
        key
        for key, theirs in tensors.items()
        if key.endswith(VARIANCE)
        and key not in infinite
        and same_kind(theirs, expected[key])
        and bool((theirs < 0).any())
    ]
    parts = (
        listed("missing", missing),
        listed("unexpected", unexpected),
        listed("of another shape", reshaped),
        listed("of another type", retyped),
        listed("not finite", infinite),
        listed("with variances below 0", below),
    )
    return "; ".join(part for part in parts if part) or None


def kind(value: object) -> str:
    """What sort of values these are, as a message says it: torch.float32, sparse torch.float32, list."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{'' if value.layout == torch.strided else 'sparse '}{value.dtype}"


def momenta_misfit(momenta: Mapping[int, Mapping[str, object]], parameters: Sequence[tuple[str, Tensor]]) -> str | None:
    """What keeps the saved state of an optimiser (by the number of a parameter, then by its own names) from being that
    of ``parameters``, (name, values) in the optimiser's order: tensors of another shape, and numbers that are not
    finite, which would only show in the first step. None where it fits."""
    reshaped, infinite = [], []
    for number, (name, parameter) in enumerate(parameters):
        for key, value in momenta.get(number, {}).items():
            if not isinstance(value, Tensor):
                continue
            if value.ndim and value.shape != parameter.shape:  # a count of steps has no dimensions
                reshaped.append(f"{key} of {name} {tuple(value.shape)} in the file and {tuple(parameter.shape)} here")
            elif not finite(value):
                infinite.append(f"{key} of {name}")
    parts = (listed("of another shape", reshaped), listed("not finite", infinite))
    return "; ".join(part for part in parts if part) or None


def same_kind(theirs: Tensor, ours: Tensor) -> bool:
    """Whether both are dense and both floating-point or both not. Precision may differ: it is converted."""
    dense = theirs.layout == torch.strided and not theirs.is_quantized and not theirs.is_complex()
    return dense and theirs.is_floating_point() == ours.is_floating_point()


def finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite."""
    return not values.is_floating_point() or bool(values.isfinite().all())


def require_held(tensors: Mapping[str, Tensor], size: int, where: str) -> None:
    """``ValueError``, which begins with ``where``, for tensors of more bytes than a file of ``size`` bytes can be meant
    to hold: a tensor may show one stored number in any number of places."""
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if needed > MOST_TIMES * size:
        limit = f"allowed: {MOST_TIMES} times the bytes of the file, {size:,}"
        raise ValueError(f"{where}: its tensors have {needed:,} bytes; {limit}")


def listed(kind: str, names: Sequence[str]) -> str:
    """``2 missing (a, b)``: how many and the first few; empty for none."""
    if not names:
        return ""
    return f"{len(names)} {kind} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"


def counters(expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The counters of batch norm among ``expected``."""
    return {key: value for key, value in expected.items() if key.endswith(COUNTER)}
