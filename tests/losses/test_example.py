"""CONTRIBUTING.md and docs/adding.md run: the loss is exact on any number of workers, the loop learns."""

import textwrap
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sslmed_dist import distributed, losses
from sslmed_dist.losses import LOSSES, TEMPERATURES, Constant
from sslmed_dist.registry import check
from tests.gloo import GlooPool
from tests.losses.golden import embeddings

ROOT = Path(__file__).parents[2]


def block(page: str, first_line: str) -> dict[str, Any]:
    """The names that the page's block of code defines which begins with ``first_line``."""
    text = (ROOT / page).read_text(encoding="utf-8")
    after = text[text.index(f"    {first_line}\n") :]
    lines = after.splitlines()
    end = next(i for i, line in enumerate(lines) if line and not line.startswith("    "))
    names: dict[str, Any] = {}
    exec(textwrap.dedent("\n".join(lines[:end])), names)
    return names


def example() -> Any:
    """The class in the page's block of code."""
    return block("CONTRIBUTING.md", "from torch import Tensor")["SoftMargin"]


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


def test_the_loop_of_the_page_learns() -> None:
    values = block("docs/adding.md", "import torch")["values"]
    assert len(values) == 20 and values[-1] < values[0] - 0.5


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if "temperature" in signature(loss).parameters])
def test_a_temperature_is_a_number_a_mapping_or_an_object(name: str) -> None:
    pair = embeddings(8, 6, "example")

    def value(temperature: Any) -> Tensor:
        return LOSSES[name](temperature=temperature)(*pair)

    assert torch.equal(value(0.3), value(Constant(0.3))) and torch.equal(value(0.3), value(np.float64(0.3)))
    leaf = {"low": 0.1, "high": 0.4}
    for kind, made in TEMPERATURES.items():
        if kind != "constant":
            assert torch.equal(value({"name": kind, **leaf}), value(made(**leaf))), kind


def test_every_loss_and_temperature_is_imported_from_the_package() -> None:
    named = [getattr(losses, name) for name in losses.__all__]
    assert all(made in named for made in (*LOSSES.values(), *TEMPERATURES.values()))
    assert len(set(losses.__all__)) == len(losses.__all__)
    with pytest.raises(ValueError, match="^temperature: expected a number > 0, a mapping or a Temperature, got True$"):
        losses.MIOv3(temperature=True)
    check(LOSSES, {"name": "mio_v3", "temperature": 0.2}, "loss")
    with pytest.raises(ValueError, match="^loss.temperature: expected float or mapping, got 'warm'$"):
        check(LOSSES, {"name": "mio_v3", "temperature": "warm"}, "loss")
