"""The networks of chapter 3: published counts, shapes, nine branches that know nothing of each other."""

import pytest
import torch
from torch import Tensor, nn

from sslmed_dist.models import ENCODERS
from sslmed_dist.models.heads import Projection
from sslmed_dist.models.jigsaw_networks import SKID, SSLACL, PuzzleEncoder
from sslmed_dist.models.semiparallel import BRANCHES, SemiParallel

# Encoder, its arguments, the head's linear layers, classes, published count (Tables 3.1 and 3.9), relative tolerance.
COUNTS = [
    ("skid", {"version": "v3"}, 2, 1000, 217_681_640, 0.0),
    ("skid", {"version": "v3"}, 2, 500, 217_169_140, 0.0),
    ("skid", {"version": "v2"}, 2, 500, 169.9e6, 1e-3),
    ("skid", {"version": "v2"}, 2, 1000, 170.4e6, 1e-3),
    ("skid", {"version": "v1"}, 2, 1000, 108.8e6, 1e-3),
    ("sslacl", {}, 3, 500, 173.0e6, 1e-3),
    ("sslacl", {}, 3, 1000, 173.5e6, 1e-3),
]


@pytest.mark.parametrize(("name", "arguments", "layers", "classes", "published", "tolerance"), COUNTS)
def test_published_counts(
    name: str, arguments: dict[str, str], layers: int, classes: int, published: float, tolerance: float
) -> None:
    """The running statistics of batch norm are counted, as the thesis did; the number of batches is no value."""
    with torch.device("meta"):
        encoder = ENCODERS[name](**arguments)
        head = Projection(1024, classes, layers, in_dim=encoder.feature_dim)
    state = {**encoder.state_dict(), **{f"head.{key}": value for key, value in head.state_dict().items()}}
    count = sum(value.numel() for key, value in state.items() if not key.endswith("num_batches_tracked"))
    assert abs(count - published) <= tolerance * published, count


def small(name: str) -> PuzzleEncoder:
    torch.manual_seed(0)
    encoder: PuzzleEncoder = {
        "sslacl": lambda: SSLACL(1 / 64),
        "v1": lambda: SKID("v1", 1 / 64),
        "v2": lambda: SKID("v2", 1 / 64),
        "v3": lambda: SKID("v3", 1 / 64),
        "no_blocks": lambda: SKID("no_blocks", 1 / 64),
    }[name]()
    return encoder.eval()


@pytest.mark.parametrize(
    ("name", "wide", "side"), [("sslacl", 32, 8), ("v3", 64, 4), ("v1", 64, 4), ("no_blocks", 16, 4)]
)
def test_shapes(name: str, wide: int, side: int) -> None:
    """64 px patches and 256 px slices give the published sides; odd sizes are rounded up and pass as well."""
    encoder = small(name)
    with torch.no_grad():
        assert encoder.maps(torch.rand(2, 9, 1, 64, 64)).shape == (2, wide, side, side)
        assert encoder.maps(torch.rand(1, 1, 256, 256)).shape == (1, wide, 4 * side, 4 * side)
        assert encoder(torch.rand(2, 9, 1, 21, 21)).shape == (2, wide) == (2, encoder.feature_dim)
    assert encoder.maps_dim == encoder.feature_dim


def test_published_shapes() -> None:
    """Sec. 3.4.1.6: 4 x 4 x 4096 of patches; of a whole slice 16 x 16 x 4096. SSLACL: 8 x 8 x 2048."""
    with torch.device("meta"):
        skid, sslacl = SKID(), SSLACL()
        assert skid.maps(torch.empty(2, 9, 1, 64, 64)).shape == (2, 4096, 4, 4)
        assert skid.maps(torch.empty(2, 1, 256, 256)).shape == (2, 4096, 16, 16)
        assert sslacl.maps(torch.empty(2, 9, 1, 64, 64)).shape == (2, 2048, 8, 8)
        assert sslacl.stem.branch(8, torch.empty(3, 1, 256, 256)).shape == (3, 512, 64, 64)


def test_grey_images_are_repeated_for_skid_and_other_shapes_refused() -> None:
    encoder = small("v3")
    grey = torch.rand(2, 9, 1, 16, 16)
    with torch.no_grad():
        assert torch.equal(encoder(grey), encoder(grey.expand(-1, -1, 3, -1, -1)))
    with pytest.raises(ValueError, match="nine patches"):
        encoder(torch.rand(2, 4, 1, 16, 16))
    with pytest.raises(ValueError, match="expected 3 channels, got 2"):
        encoder(torch.rand(2, 2, 16, 16))
    for width in (0.0, -1.0, 2.1):
        with pytest.raises(ValueError, match=r"^method\.encoder\.width: "):
            SSLACL(width)


def slow_branch(stem: SemiParallel, k: int, x: Tensor) -> Tensor:
    """One branch as the text has it: [convolution, convolution, max-pool] twice, with layers of torch."""
    layers: list[nn.Module] = []
    for number, layer in enumerate(stem.layers):
        conv = nn.Conv2d(layer.before, layer.after, 3, padding=1)  # type: ignore[arg-type]
        conv.weight.data, conv.bias.data = (value.data.clone() for value in layer.own(k))  # type: ignore[operator, union-attr]
        layers.append(conv)
        if isinstance(layer.norm, nn.BatchNorm2d):
            norm = nn.BatchNorm2d(layer.after, eps=layer.norm.eps)  # type: ignore[arg-type]
            part = slice(k * layer.after, (k + 1) * layer.after)  # type: ignore[operator]
            for key in ("weight", "bias", "running_mean", "running_var"):
                getattr(norm, key).data.copy_(getattr(layer.norm, key).data[part])
            layers.append(norm)
        layers += [nn.ReLU(), *([nn.MaxPool2d(2)] if number % 2 else [])]
    out: Tensor = nn.Sequential(*layers).to(x).eval()(x)
    return out


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("width", [4, 16])
def test_a_stem_is_nine_separate_branches(norm: bool, width: int) -> None:
    """Grouped, as nine, branch by branch and whole images: all equal to a slow branch of torch's layers."""
    torch.manual_seed(1)
    stem = SemiParallel(3, (width, 2 * width), norm)
    for layer in stem.layers:
        if isinstance(layer.norm, nn.BatchNorm2d):
            for value in (layer.norm.weight, layer.norm.running_var, layer.norm.running_mean, layer.norm.bias):
                assert value is not None
                value.data.uniform_(0.5, 1.5)
    stem = stem.double().eval()
    patches, images = torch.rand(2, 9, 3, 12, 12).double(), torch.rand(2, 3, 12, 12).double()
    expected = torch.cat([slow_branch(stem, k, patches[:, k]) for k in range(BRANCHES)], 1)
    whole = torch.cat([slow_branch(stem, k, images) for k in range(BRANCHES)], 1)
    assert expected.shape == (2, 9 * stem.width, 3, 3)
    for stem.by_branch in (True, False):
        torch.testing.assert_close(stem(patches), expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(stem.whole(images), whole, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(stem.branch(4, images), slow_branch(stem, 4, images), rtol=1e-9, atol=1e-9)


def test_both_computations_have_the_same_gradients() -> None:
    """In float32 to 1e-5; a checkpoint is the same whichever is used."""
    stem = SemiParallel(1, (4, 8), True)
    patches = torch.rand(3, 9, 1, 16, 16)
    gradients = []
    for stem.by_branch in (True, False):
        stem.zero_grad()
        stem(patches).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in stem.parameters() if p.grad is not None]))
    assert (gradients[0] - gradients[1]).norm() <= 1e-5 * gradients[1].norm() and gradients[1].norm() > 0


def test_one_branch_in_training_mode_is_refused_with_batch_norm() -> None:
    with pytest.raises(ValueError, match="one branch alone"):
        SemiParallel(1, (4, 8), True).branch(0, torch.rand(2, 1, 8, 8))
    assert SemiParallel(1, (4, 8), False).branch(0, torch.rand(2, 1, 8, 8)).shape == (2, 8, 2, 2)


def test_no_network_keeps_a_mean_of_zero_parts() -> None:
    """He-normal weights, biases zero: activations neither vanish nor explode on standard normal patches."""
    features = small("sslacl").maps(torch.randn(4, 9, 1, 32, 32)).detach()
    assert 0.3 < float(features.std()) < 3.0
