"""The gradient cache: a batch of any size on a small device, exact for the loss of the whole batch.

First every micro-batch is embedded without a graph. The loss of all embeddings together gives the gradient in each of
them. Then every micro-batch is embedded once more, with a graph, and its embeddings' gradients are sent back. That is
one more forward pass, 4/3 of a plain step. Source: Gao et al. 2021, "Scaling deep contrastive learning batch size
under memory limited setup" (arXiv 2101.06983). Exact means: for the whole batch's loss and an encoder whose
batch norm sees one micro-batch at a time. With one micro-batch, or without batch norm, it is the plain gradient.
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
    """Add the gradient of the loss of ``count`` micro-batches to the parameters of ``method``.

    ``embed(k)`` gives the embeddings of micro-batch k, which holds the samples k, k + count, ... of the batch: tensors
    whose first axis is the samples. It is called twice for every k and has to do the same both times. ``objective``
    maps the embeddings of the whole batch to the scalar that is differentiated and the loss terms. Returns (loss terms,
    embeddings of the whole batch).
    """
    with torch.no_grad(), kept_statistics(method):
        parts = [embed(number) for number in range(count)]
    embeddings = {name: interleave([part[name] for part in parts]) for name in parts[0]}
    for value in embeddings.values():
        if value.is_floating_point():
            value.requires_grad_()
    loss, terms = objective(embeddings)
    loss.backward()  # type: ignore[no-untyped-call]
    for number in range(count):
        again = embed(number)
        # A teacher's embeddings have no graph of their own.
        pulled = [name for name, value in embeddings.items() if value.grad is not None and again[name].requires_grad]
        gradients = [embeddings[name].grad[number::count] for name in pulled]  # type: ignore[index]
        torch.autograd.backward([again[name] for name in pulled], gradients)
    return terms, {name: value.detach() for name, value in embeddings.items()}


def interleave(parts: list[Tensor]) -> Tensor:
    """Row i of part k becomes row i * len(parts) + k."""
    return torch.stack(parts, dim=1).flatten(0, 1)


@contextlib.contextmanager
def kept_statistics(method: nn.Module) -> Iterator[None]:
    """Batch norms' running statistics are afterwards as they were: the first pass must not count twice."""
    norms = [module for module in method.modules() if isinstance(module, _BatchNorm)]
    buffers = [buffer for norm in norms for buffer in norm.buffers()]
    kept = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, kept, strict=True):
            buffer.copy_(value)
