"""The gradient cache: a batch of any size on a small device, exact for the loss of the whole batch.

1. Every micro-batch is embedded without a graph.
2. The loss of all embeddings together is differentiated with respect to the embeddings.
3. Every micro-batch is embedded once more, now with a graph, and the gradients of its embeddings are sent back.

That is one more forward pass, 4/3 of the work of a plain step. Source: Gao et al. 2021, "Scaling deep contrastive
learning batch size under memory limited setup" (arXiv 2101.06983). The gradient is exact for the loss of the whole
batch and an encoder whose batch norm sees one micro-batch at a time. With one micro-batch, or without batch norm, it is
the gradient of a plain step.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Batch = dict[str, Tensor]


def backward(
    method: nn.Module,
    embed: Callable[[int], Batch],
    objective: Callable[[Batch], tuple[Tensor, Batch]],
    count: int,
) -> tuple[Batch, Batch]:
    """Add the gradient of the loss of a batch of B = ``count`` x b samples to the ``.grad`` of the parameters.

    ``embed(k)`` gives the embeddings (b, ...) of micro-batch k, by name; micro-batch k holds the samples k, k + count,
    k + 2 count, ... of the batch. It is called twice for every k and has to do the same both times. ``objective`` maps
    the embeddings (B, ...) of the whole batch to (the scalar that is differentiated, the loss terms). Returns (loss
    terms, embeddings of the whole batch).
    """
    # First pass: embeddings only, no graph is stored.
    with torch.no_grad(), kept_statistics(method):
        parts = [embed(k) for k in range(count)]
    embeddings = {name: interleave([part[name] for part in parts]) for name in parts[0]}  # (B, ...) each
    # The embeddings are the leaves of the graph of the loss: backward leaves d loss / d embedding in their .grad.
    for value in embeddings.values():
        if value.is_floating_point():
            value.requires_grad_()
    loss, terms = objective(embeddings)
    loss.backward()  # type: ignore[no-untyped-call]
    # Second pass, with a graph: by the chain rule these gradients go on into the parameters, one micro-batch at a time.
    for k in range(count):
        recomputed = embed(k)
        # A teacher's embeddings have no graph of their own.
        names = [
            name for name, value in embeddings.items() if value.grad is not None and recomputed[name].requires_grad
        ]
        gradients = [embeddings[name].grad[k::count] for name in names]  # type: ignore[index]  # (b, ...) each
        torch.autograd.backward([recomputed[name] for name in names], gradients)
    return terms, {name: value.detach() for name, value in embeddings.items()}


def interleave(parts: list[Tensor]) -> Tensor:
    """K parts (b, ...) -> (K b, ...): row i of part k becomes row i K + k, the inverse of slicing by ``[k::K]``."""
    return torch.stack(parts, dim=1).flatten(0, 1)


@contextlib.contextmanager
def kept_statistics(method: nn.Module) -> Iterator[None]:
    """Put the running statistics of batch norms back on exit: they must not count a micro-batch in both passes."""
    norms = [module for module in method.modules() if isinstance(module, _BatchNorm)]
    buffers = [buffer for norm in norms for buffer in norm.buffers()]
    saved = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, saved, strict=True):
            buffer.copy_(value)
