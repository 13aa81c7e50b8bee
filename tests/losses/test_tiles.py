"""Block by block equals dense: any block size, any temperature, any number of ranks, and good float32."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sslmed_dist import distributed
from sslmed_dist.losses import LOSSES, products, similarity, tiles
from sslmed_dist.losses.similarity import Similarity
from tests.gloo import GlooPool
from tests.losses.golden import embeddings

PAIR_LOSSES = ["nt_xent", "contr", "dcl", "dclw", "macl", "binary", "combo", "mio_v1", "mio_v2", "mio_v3"]
LEAVES: list[Any] = [0.2, 0.02, {"name": "dystress"}, {"name": "dystress_shifted", "gradient": False}]
every_loss = pytest.mark.parametrize("name", PAIR_LOSSES)
every_temperature = pytest.mark.parametrize("leaf", LEAVES, ids=str)


@pytest.fixture(params=["torch.mm", "oneDNN"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Large float32 products by one library, whatever the processor. The list holds one entry a product of oneDNN."""
    by_onednn, calls, multiply = request.param == "oneDNN", list[str](), products.onednn_product
    if by_onednn and not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN")

    def counted(a: Tensor, b: Tensor) -> Tensor:
        calls.append(request.param)
        return multiply(a, b)

    monkeypatch.setattr(products, "onednn_is_faster", lambda: by_onednn)
    for module in (similarity, tiles):
        monkeypatch.setattr(module, "onednn_product", counted)
    return calls


def value_and_gradient(name: str, leaf: Any, z0: Tensor, z1: Tensor) -> tuple[float, Tensor]:
    z0, z1 = z0.clone().requires_grad_(), z1.clone().requires_grad_()
    value = LOSSES[name](temperature=leaf)(z0, z1)
    return value.item(), torch.stack(torch.autograd.grad(value, (z0, z1)))


def near(got: Tensor, expected: Tensor, tolerance: float) -> bool:
    return bool((got - expected).norm() <= tolerance * expected.norm())


@every_loss
@every_temperature
def test_small_tiles_equal_one_tile(name: str, leaf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    z0, z1 = embeddings(51, 6, "blocks")
    whole = value_and_gradient(name, leaf, z0, z1)
    monkeypatch.setattr(tiles, "CPU_EDGE", 32)
    assert len(list(tiles.tiles(102, 102, 32))) == 10  # four on the diagonal, six beside it
    parts = value_and_gradient(name, leaf, z0, z1)
    assert parts[0] == pytest.approx(whole[0], rel=1e-13)
    assert near(parts[1], whole[1], 1e-10 if leaf == 0.02 else 1e-12)  # e^(1/0.02) leaves fewer digits


@pytest.mark.parametrize("name", ["nt_xent", "contr", "dclw", "macl"])
@pytest.mark.parametrize("leaf", [0.2, {"name": "dystress"}, {"name": "dystress", "gradient": False}], ids=str)
@pytest.mark.parametrize("kept", [3, 7, 1000])  # tiles of 32 x 32; there are ten
def test_what_is_kept_of_the_forward_pass_changes_no_bit(
    name: str, leaf: Any, kept: int, library: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    z0, z1 = (z.float() for z in embeddings(51, 6, "blocks"))
    monkeypatch.setattr(tiles, "CPU_EDGE", 32)
    monkeypatch.setattr(tiles, "KEPT", 0)
    monkeypatch.setattr(products, "WORTHWHILE", 0)
    nothing = value_and_gradient(name, leaf, z0, z1)
    computed: list[int] = []
    plain = Similarity.tile
    monkeypatch.setattr(Similarity, "tile", lambda self, *given: (computed.append(1), plain(self, *given))[1])
    monkeypatch.setattr(tiles, "KEPT", kept * 32 * 32 * 4)
    value, gradient = value_and_gradient(name, leaf, z0, z1)
    assert value == nothing[0] and torch.equal(gradient, nothing[1])
    # MACL's scale is a tensor whose size is not known, so its logits may need a shift and nothing is kept.
    stored = 0 if name == "macl" else min(10, kept if leaf == 0.2 else kept // 2)
    assert len(computed) == 10 + 10 - stored


def test_the_backward_pass_may_be_taken_twice() -> None:
    z0, z1 = (z.requires_grad_() for z in embeddings(20, 6, "dense"))
    value = LOSSES["nt_xent"](temperature={"name": "dystress"})(z0, z1)
    first, second = (torch.autograd.grad(value, z0, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@every_loss
@every_temperature
def test_first_derivatives_equal_those_of_the_dense_equation(name: str, leaf: Any) -> None:
    """``create_graph`` takes the dense equation and autograd; without it the closed forms answer."""
    z0, z1 = (z.requires_grad_() for z in embeddings(40, 6, "dense"))
    loss = LOSSES[name](temperature=leaf)
    closed = torch.stack(torch.autograd.grad(loss(z0, z1), (z0, z1)))
    dense = torch.stack(torch.autograd.grad(loss(z0, z1), (z0, z1), create_graph=True))
    assert near(closed, dense, 1e-11)


def part_of_rank(name: str, leaf: Any) -> tuple[float, Tensor]:
    """This rank's share of 96 samples, in tiles of 32 rows and columns."""
    former, tiles.CPU_EDGE = tiles.CPU_EDGE, 32
    try:
        mine = (z.chunk(distributed.world_size())[distributed.rank()] for z in embeddings(96, 6, "ranks"))
        return value_and_gradient(name, leaf, *mine)
    finally:
        tiles.CPU_EDGE = former


@every_loss
@pytest.mark.parametrize("leaf", [0.2, {"name": "dystress"}], ids=str)
def test_ranks_and_blocks_together(gloo: GlooPool, name: str, leaf: Any) -> None:
    value, gradient = part_of_rank(name, leaf)
    for world in (2, 4):
        values, gradients = zip(*gloo.run(part_of_rank, world, name, leaf), strict=True)
        assert sum(values) / world == pytest.approx(value, rel=1e-12)
        assert near(torch.cat(gradients, dim=1) / world, gradient, 1e-12), world


@every_loss
@pytest.mark.parametrize("leaf", [0.2, {"name": "dystress"}], ids=str)
def test_float32_gradient_is_within_5e_6_of_float64(
    name: str, leaf: Any, library: list[str], request: pytest.FixtureRequest
) -> None:
    z0, z1 = embeddings(512, 64, "float32")
    exact = value_and_gradient(name, leaf, z0, z1)
    assert not library
    single = value_and_gradient(name, leaf, z0.float(), z1.float())
    assert bool(library) == ("oneDNN" in request.node.name)
    assert single[0] == pytest.approx(exact[0], rel=5e-6, abs=1e-6)
    # Distances over a temperature of 0.07 have logits near -28: the dense equation is no better there (7e-6).
    assert near(single[1].double(), exact[1], 1e-5 if name == "contr" and isinstance(leaf, dict) else 5e-6)


@pytest.mark.parametrize(
    "vectors, maker, expected",
    [
        ("AVX512", "vendor_id\t: AuthenticAMD", True),
        ("AVX512", "vendor_id\t: GenuineIntel", False),  # oneMKL is as fast there
        ("AVX2", "vendor_id\t: AuthenticAMD", False),
    ],
)
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
def test_the_processors_for_which_onednn_multiplies(
    vectors: str, maker: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: vectors)
    monkeypatch.setattr(products, "processor", lambda: maker)
    assert products.onednn_is_faster.__wrapped__() is expected
    monkeypatch.setattr(products, "onednn_is_faster", products.onednn_is_faster.__wrapped__)
    large, small = torch.zeros(512, 64), torch.zeros(16, 64)
    assert products.by_onednn(large, large) is expected
    assert not products.by_onednn(small, large) and not products.by_onednn(large.double(), large.double())


@every_loss
def test_no_gradient_asked_none_computed(name: str) -> None:
    z0, z1 = embeddings(9, 5, "evaluation")
    with torch.no_grad():
        value = LOSSES[name]()(z0, z1)
    assert not value.requires_grad
    assert value.item() == pytest.approx(LOSSES[name]()(z0.requires_grad_(), z1).item(), rel=1e-14)


def test_the_euclidean_loss_is_nt_xent_at_half_the_temperature() -> None:
    z0, z1 = embeddings(20, 6, "euclidean")
    contr, half = value_and_gradient("contr", 0.33, z0, z1), value_and_gradient("nt_xent", 0.165, z0, z1)
    assert contr[0] == pytest.approx(half[0], rel=1e-13) and near(contr[1], half[1], 1e-12)


@pytest.mark.parametrize("detach", [True, False])
def test_weights_of_dclw_are_constants_for_the_gradient_or_not(detach: bool) -> None:
    z0, z1 = (z.requires_grad_() for z in embeddings(5, 4, "weights"))
    loss = LOSSES["dclw"](temperature=0.4, detach_weights=detach)
    assert torch.autograd.gradcheck(loss, (z0, z1), eps=1e-6, atol=1e-7, raise_exception=False) is not detach


def test_local_weights_of_dclw_depend_on_the_split(gloo: GlooPool) -> None:
    """What public code does; said in the docstring, and the reason why it is not the default."""
    alone = local_weights()
    assert sum(gloo.run(local_weights, 2)) / 2 != pytest.approx(alone, rel=1e-6)


def local_weights() -> float:
    mine = (z.chunk(distributed.world_size())[distributed.rank()] for z in embeddings(8, 6, "ranks"))
    return float(LOSSES["dclw"](weights="local")(*mine))


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("dclw", {"sigma": 0.0}, "sigma: expected a finite number > 0, got 0.0"),
        ("dclw", {"weights": "half"}, "weights: expected one of 'global', 'local', got 'half'"),
        ("macl", {"alpha": 1.5}, "alpha: expected a number that keeps 1 + alpha (A - threshold) > 0"),
        ("combo", {"contr_temperature": -1.0}, "temperature: expected a finite number > 0, got -1.0"),
        ("sum", {"terms": []}, "method.loss.terms: expected at least one loss, got none"),
        *(
            ("sum", {"terms": [{"name": "nt_xent", "weight": bad}]}, "method.loss.terms[0].weight: expected a finite")
            for bad in ("x", math.inf, math.nan)
        ),
        ("sum", {"terms": [{"name": "nt"}]}, "method.loss.terms[0].name: 'nt' is unknown; allowed: "),
    ],
)
def test_mistakes_are_one_line(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        LOSSES[name](**arguments)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@every_loss
def test_embeddings_that_are_not_finite(name: str) -> None:
    z0, z1 = embeddings(4, 3, "finite")
    z1[2, 1] = torch.nan
    with pytest.raises(ValueError, match="^z1: expected finite embeddings, row 2 of 4 is not$"):
        LOSSES[name]()(z0, z1)


def test_a_weighted_sum_is_the_sum_of_its_terms() -> None:
    z0, z1 = embeddings(8, 5, "sum")
    terms = [{"name": "mio_v3", "weight": 2.0}, {"name": "nt_xent", "temperature": 0.5}, {"name": "nt_xent"}]
    loss = LOSSES["sum"](terms=terms)
    parts = loss.terms(z0, z1)  # type: ignore[operator]
    assert list(parts) == ["mio_v3", "nt_xent", "nt_xent_2"]
    expected = 2 * LOSSES["mio_v3"]()(z0, z1) + LOSSES["nt_xent"](temperature=0.5)(z0, z1) + LOSSES["nt_xent"]()(z0, z1)
    assert loss(z0, z1).item() == pytest.approx(expected.item(), rel=1e-14)
