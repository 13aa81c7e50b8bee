"""The loss that docs/adding.md adds is what the page says it is: exact on any number of workers."""

import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sslmed_dist import distributed
from tests.gloo import GlooPool
from tests.losses.golden import embeddings

PAGE = Path(__file__).parents[2] / "docs" / "adding.md"


def example() -> Any:
    """The class in the page's first block of code."""
    text = PAGE.read_text(encoding="utf-8")
    after = text[text.index("    from torch import Tensor") :]
    lines = after.splitlines()
    end = next(i for i, line in enumerate(lines) if line and not line.startswith("    "))
    names: dict[str, Any] = {}
    exec(textwrap.dedent("\n".join(lines[:end])), names)
    return names["SoftMargin"]


def of_rank() -> tuple[float, Tensor]:
    """This rank's value, and the gradient of its value in its own rows."""
    first, second = (x.chunk(distributed.world_size())[distributed.rank()].clone() for x in embeddings(8, 6, "example"))
    first.requires_grad_()
    value = example()(temperature=0.2)(first, second)
    (gradient,) = torch.autograd.grad(value, first)
    return value.item(), gradient


def test_the_example_is_its_equation() -> None:
    first, second = (torch.nn.functional.normalize(x, dim=1) for x in embeddings(8, 6, "example"))
    rows = torch.cat([first, second])
    total = 0.0
    for i in range(16):
        partner = (i + 8) % 16
        crowd = sum(torch.exp(rows[i] @ rows[j] / 0.2) for j in range(16) if j not in (i, partner))
        total += float(torch.log1p(torch.as_tensor(crowd)) - rows[i] @ rows[partner] / 0.2)
    assert of_rank()[0] == pytest.approx(total / 16, rel=1e-12)


@pytest.mark.parametrize("world", [2, 4])
def test_the_example_is_exact_on_any_number_of_workers(gloo: GlooPool, world: int) -> None:
    value, gradient = of_rank()
    values, gradients = zip(*gloo.run(of_rank, world), strict=True)
    assert sum(values) / world == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(torch.cat(gradients) / world, gradient, rtol=1e-12, atol=1e-15)
