"""Heads over slices: published counts, slow references, and padding that changes nothing."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslmed_dist import registry
from sslmed_dist.models import ENCODERS, SLICE_HEADS
from sslmed_dist.models.sequence import ConvLSTMCell, branches_of, divided, present, spread

SMALL: dict[str, dict[str, Any]] = {
    "convlstm": {"hidden": 4},
    "cnn3d": {"hidden": 4},
    "max": {},
    "mean": {},
    "divfram": {"variant": "final"},
}


def head(name: str, in_dim: int = 5, out: int = 3, **arguments: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        leaf = {"name": name, **SMALL[name], **arguments}
        made: nn.Module = registry.build(SLICE_HEADS, leaf, "method.head", in_dim=in_dim, out=out)
    return made.double()


def maps_of(exams: int, slices: int, channels: int = 5, side: int = 8) -> Tensor:
    source = torch.Generator().manual_seed(exams + slices)
    return torch.randn(exams, slices, channels, side, side, dtype=torch.float64, generator=source)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("variant, expected", [("final", 77_047_553), ("model_1", 57_121_537), ("model_2", 72_327_937)])
def test_sslacl_has_the_published_number_of_parameters(variant: str, expected: int) -> None:
    """One grey channel, one label, the stem included; three channels are 41,472 more."""
    with torch.device("meta"):
        for channels, more in ((1, 0), (3, 41_472)):
            stem = registry.build(ENCODERS, "sslacl", "encoder", channels=channels).stem
            leaf = {"name": "divfram", "variant": variant}
            classifier = registry.build(SLICE_HEADS, leaf, "head", in_dim=stem.width, out=1)
            assert count(stem) + count(classifier) == expected + more


def test_the_convlstm_has_the_published_number_of_parameters() -> None:
    """84.94 M + 18.88 M + 1.5 K on SKID's 4,096 channels."""
    with torch.device("meta"):
        made = registry.build(SLICE_HEADS, "convlstm", "head", in_dim=4096, out=3)
    first, second = (count(cell) for cell in made.cells)
    assert (first, second, count(made.linear)) == (84_936_704, 18_876_416, 1_539)
    assert count(made) == pytest.approx(103.8e6, rel=2e-4)


def test_the_3d_cnn_says_its_size() -> None:
    with torch.device("meta"):
        made = registry.build(SLICE_HEADS, "cnn3d", "head", in_dim=4096, out=3)
    assert count(made) == 4096 * 256 * 27 + 256 + 256 * 256 * 27 + 256 + 256 * 3 + 3


@pytest.mark.parametrize("name", SMALL)
def test_padding_changes_nothing(name: str) -> None:
    """An exam alone, and the same exam padded with anything in a batch with a longer one."""
    made = head(name)
    maps = maps_of(2, 6)
    length = torch.tensor([4, 6])
    alone = made(maps[:1, :4], length[:1])
    noisy = maps.clone()
    noisy[0, 4:] = 1e6
    for given in (maps, noisy):
        assert torch.allclose(made(given, length)[:1], alone, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(made(noisy, torch.tensor([5, 6]))[:1], alone)
    assert made(maps, length).shape == (2, 3)


@pytest.mark.parametrize("name", SMALL)
def test_gradients_reach_every_parameter_and_no_padding(name: str) -> None:
    made, maps = head(name), maps_of(2, 3).requires_grad_()
    made(maps, torch.tensor([2, 3])).square().sum().backward()
    assert maps.grad is not None and not maps.grad[0, 2].any() and maps.grad[0, :2].any()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in made.parameters())


@pytest.mark.parametrize("name, order_counts", [("convlstm", True), ("cnn3d", True), ("max", False), ("mean", False)])
def test_which_heads_see_the_order_of_the_slices(name: str, order_counts: bool) -> None:
    made, maps, length = head(name), maps_of(1, 4), torch.tensor([4])
    assert torch.allclose(made(maps, length), made(maps.flip(1), length)) != order_counts


def slow_convolution(x: list[Any], weight: list[Any], bias: list[float], side: int) -> list[list[list[float]]]:
    """A 3 x 3 convolution with zeros around, one number at a time."""
    out = []
    for filters, offset in zip(weight, bias, strict=True):
        plane = [[offset] * side for _ in range(side)]
        for row in range(side):
            for column in range(side):
                for channel, kernel in enumerate(filters):
                    for i in range(3):
                        for j in range(3):
                            r, c = row + i - 1, column + j - 1
                            if 0 <= r < side and 0 <= c < side:
                                plane[row][column] += kernel[i][j] * x[channel][r][c]
        out.append(plane)
    return out


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_the_convlstm_is_its_equations() -> None:
    side, before, hidden, steps = 3, 2, 2, 3
    with torch.random.fork_rng():
        torch.manual_seed(4)
        cell = ConvLSTMCell(before, hidden).double()
    assert cell.conv.bias is not None and cell.conv.bias.tolist() == [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    x = maps_of(1, steps, before, side)
    states = cell(x, torch.ones(1, steps, dtype=torch.bool))
    weight, bias = cell.conv.weight.tolist(), cell.conv.bias.tolist()
    h = [[[0.0] * side for _ in range(side)] for _ in range(hidden)]
    c = [[[0.0] * side for _ in range(side)] for _ in range(hidden)]
    for t in range(steps):
        gates = slow_convolution(x[0, t].tolist() + h, weight, bias, side)
        for k in range(hidden):
            for row in range(side):
                for column in range(side):
                    i, f, o, g = (gates[part * hidden + k][row][column] for part in range(4))
                    c[k][row][column] = sigmoid(f) * c[k][row][column] + sigmoid(i) * math.tanh(g)
                    h[k][row][column] = sigmoid(o) * math.tanh(c[k][row][column])
        assert torch.allclose(states[t][0], torch.tensor(h, dtype=torch.float64), atol=1e-12)


def slow_divfram(count: int) -> list[int]:
    """Alg. 3.3 as it is meant: hand out one slice after another."""
    parts = []
    left = count
    for i in range(1, 10):
        n = math.ceil(left / (9 - i + 1))
        parts.append(n)
        left -= n
    return parts


@pytest.mark.parametrize("slices", [1, 2, 8, 9, 10, 17, 35, 36, 37, 90])
def test_divfram_cuts_equal_consecutive_parts(slices: int) -> None:
    parts = divided(slices)
    assert parts == slow_divfram(slices) and sum(parts) == slices and len(parts) == 9
    assert max(parts) - min(parts) <= 1 and parts == sorted(parts, reverse=True)


def test_divfram_of_a_batch_counts_each_exam_alone() -> None:
    assert divided(36) == [4] * 9 and divided(5) == [1] * 5 + [0] * 4
    branches = branches_of(torch.tensor([3, 11]), 11)
    assert branches.tolist() == [[0, 1, 2] + [-1] * 8, [0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8]]


def test_spread_undoes_the_selection() -> None:
    there = present(torch.tensor([1, 3]), 3)
    x = maps_of(2, 3)
    out = spread(x[there], there, -1.0)
    assert torch.equal(out[there], x[there]) and bool((out[~there] == -1).all())


@pytest.mark.parametrize("leaf", [{"name": "convlstm", "hidden": 0}, {"name": "cnn3d", "layers": 0}])
def test_a_head_of_no_size_is_refused(leaf: dict[str, Any]) -> None:
    key = next(key for key in leaf if key != "name")
    with pytest.raises(ValueError, match=rf"^method\.head\.{key}: expected an integer >= 1, got 0$"):
        registry.build(SLICE_HEADS, leaf, "method.head", in_dim=2, out=1)


@pytest.mark.parametrize("name", ["convlstm", "cnn3d"])
def test_a_head_of_too_many_layers_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"^method\.head\.layers: expected a number from 1 to 64, got 65$"):
        registry.build(SLICE_HEADS, {"name": name, "layers": 65}, "method.head", in_dim=2, out=1)


def test_alexnet_reads_torchvisions_weights_and_grey_slices(tmp_path: Any) -> None:
    from torchvision.models import alexnet

    with torch.device("meta"):
        theirs = alexnet().eval()
    del theirs.classifier[1:]  # 58 M numbers that play no part
    theirs = theirs.to_empty(device="cpu")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in theirs.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
    torch.save({**theirs.state_dict(), "classifier.6.bias": torch.zeros(1000)}, tmp_path / "alexnet.pt")
    ours = registry.build(ENCODERS, {"name": "alexnet", "weights": str(tmp_path / "alexnet.pt")}, "encoder", channels=1)
    grey = torch.rand(2, 1, 64, 64)
    expected = theirs.features(grey.expand(-1, 3, -1, -1)).mean(dim=(2, 3))
    assert torch.allclose(ours(grey), expected) and ours.feature_dim == expected.shape[1] == 256
    with pytest.raises(ValueError, match="expected 3 channels, got 2"):
        ours(torch.rand(2, 2, 64, 64))
    own = registry.build(ENCODERS, {"name": "alexnet", "rgb": False}, "encoder", channels=1)
    assert own.features[0].in_channels == 1 and own(grey).shape == (2, 256)
