"""Grad-CAM of every method: the weights against finite differences, each map over the input that it is of."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslmed_dist import registry
from sslmed_dist.analysis.gradcam import grouped_cam, of_method, of_slices
from sslmed_dist.methods import METHODS, Method
from tests.methods import small, test_cowpro, test_jigsaw

LAYERS = {"cowpro": "encoder.backbone.layer2"}  # else encoder.layer2
PLAIN = {"encoder": small.ENCODER, "channels": 1}
PUZZLE = {"name": "jigsaw", "pretext_classes": 6, "channels": 1}


def views(samples: int, channels: int, size: int, count: int = 2) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(1)
    return {f"views_{k}": small.draw(source, samples, channels, size) for k in range(count)}


def puzzles(samples: int) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(2)
    patches = torch.randn(samples, 9, 1, 12, 12, dtype=torch.float64, generator=source)
    return {"patches": patches, "pretext_label": torch.arange(samples) % 6}


def made(leaf: Mapping[str, Any]) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        method: Method = registry.build(METHODS, leaf, "method")
    return method.double().train()


CONTRASTIVE = {"name": "contrastive", "head": small.HEAD, **PLAIN}
CASES: dict[str, Callable[[], tuple[Any, dict[str, Tensor]]]] = {
    **{name: (lambda name=name: (small.build(name), small.batch(name, 3))) for name in small.METHOD},
    "contrastive": lambda: (made(CONTRASTIVE), views(3, 1, 12)),
    "classify": lambda: (made({"name": "classify", "classes": 3, "freeze": True, **PLAIN}), views(3, 1, 12, 1)),
    "cowpro": lambda: (test_cowpro.build(), test_cowpro.batch_of(3)),
    "single": lambda: (made({**PUZZLE, **test_jigsaw.TASKS["single"]["method"]}), puzzles(3)),
}


def rows_of(
    method: Method, batch: dict[str, Tensor], layer: str, add: Callable[[Tensor], Tensor] = lambda maps: maps
) -> Any:
    """All maps of ``layer``, call after call (rows, D, h, w), after ``add`` was applied to them, and the score."""
    calls: list[Tensor] = []
    start = [0]

    def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        wide = torch.zeros(start[0] + len(output), *output.shape[1:], dtype=output.dtype)
        changed = output + add(wide)[start[0] :]
        start[0] += len(output)
        calls.append(changed)
        return changed

    handle = dict(method.named_modules())[layer].register_forward_hook(hook)
    with torch.no_grad():
        scores = method.explained(method.embed(batch), batch)
    handle.remove()
    return [row for call in calls for row in call], float(next(iter(scores.values())))


@pytest.mark.parametrize("name", CASES)
def test_each_map_is_the_formula_and_lies_over_its_own_input(name: str) -> None:
    method, batch = CASES[name]()
    layer = LAYERS.get(name, "encoder.layer2")
    learns = [parameter.requires_grad for parameter in method.parameters()]
    looks = of_method(method, batch, layer)
    assert method.training and [parameter.requires_grad for parameter in method.parameters()] == learns
    assert name != "classify" or method.freeze
    heat = next(iter(looks.heat.values()))
    assert [tuple(part.shape) for part in heat] == [(len(i), *i.shape[2:]) for i in looks.images]
    method.eval()
    maps, _ = rows_of(method, batch, layer)
    samples = len(looks.images[0])
    number, sample = len(looks.images) - 1, 1  # of the last input the second sample
    row = number * samples + sample

    def moved(channel: int, by: float) -> float:
        def add(wide: Tensor) -> Tensor:
            if len(wide) > row:
                wide[row, channel] = by
            return wide

        return float(rows_of(method, batch, layer, add)[1])

    # Moving a whole channel moves the score by the sum of its gradient over the map.
    weights = [(moved(d, 1e-6) - moved(d, -1e-6)) / 2e-6 / maps[row][0].numel() for d in range(len(maps[row]))]
    positive = sum(weight * plane for weight, plane in zip(weights, maps[row], strict=True))
    assert isinstance(positive, Tensor) and bool((positive > 0).any())
    expected = positive.clamp_min(0) / positive.max()
    size = looks.images[number].shape[-2:]
    expected = F.interpolate(expected[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
    if name != "simsiam":  # its targets are moved as well, and have no gradient
        assert torch.allclose(heat[number][sample], expected, atol=1e-4)
    # Another image there changes this map, and of all that are shown no other.
    if name == "single":  # the picture is put together anew
        batch["patches"][sample] += 1.0
    elif name == "cowpro":
        batch["query"][sample] += 1.0
    else:
        batch[f"views_{number}"][sample] += 0.5
    others, _ = rows_of(method, batch, layer)
    shown = samples * len(looks.images)
    assert [k for k in range(shown) if not torch.equal(others[k], maps[k])] == [row]


@pytest.mark.parametrize("encoder", ["skid", "sslacl"])
def test_each_patch_of_a_puzzle_has_a_map_of_its_own(encoder: str) -> None:
    method = made({**PUZZLE, **test_jigsaw.TASKS[encoder]["method"]}).eval()
    last = method.encoder.stem.layers[3]
    with torch.no_grad():  # nothing but branch 5 says anything, and more where its patch is brighter
        for k in range(9):
            if k != 5:
                last.own(k)[0].zero_()
                last.own(k)[1].fill_(-1.0)
            else:
                last.own(k)[1].fill_(1.0)
    looks = of_method(method, puzzles(4))
    assert looks.layer == "encoder.stem.layers.3" and not looks.together
    (heat,) = looks.heat["the label that it finds"]
    assert heat.shape == (4, 36, 36) and torch.equal(looks.images[0][0, 0, :12, 12:24], puzzles(4)["patches"][0, 1, 0])
    elsewhere = heat.clone()
    elsewhere[:, 12:24, 24:] = 0.0
    assert not elsewhere.any() and bool((heat.amax(dim=(1, 2)) > 0).any())


def test_a_layer_that_sees_all_patches_in_one_place_says_so() -> None:
    method = made({**PUZZLE, **test_jigsaw.TASKS["skid"]["method"]}).eval()
    stem_out = [name for name, _ in method.named_modules() if name.startswith("encoder.") and "stem" not in name]
    tried = []
    for name in stem_out:
        try:
            looks = of_method(method, puzzles(2), name)
        except ValueError:
            continue
        tried.append(name)
        (heat,) = looks.heat.values()
        assert looks.together
        assert torch.equal(heat[0][:, :12, :12], heat[0][:, 12:24, 24:])
    assert tried


def test_groups_share_their_greatest_value() -> None:
    source = torch.Generator().manual_seed(0)
    maps, gradients = (torch.randn(2, 6, 3, 2, dtype=torch.float64, generator=source) for _ in range(2))
    found = grouped_cam(maps, gradients, 3)
    for n in range(2):
        groups = [
            [
                [
                    max(0.0, sum(float(gradients[n, d].mean() * maps[n, d, i, j]) for d in (2 * g, 2 * g + 1)))
                    for j in (0, 1)
                ]
                for i in range(3)
            ]
            for g in range(3)
        ]
        expected = torch.tensor(groups, dtype=torch.float64)
        assert torch.allclose(found[n], expected / expected.max())


@pytest.mark.parametrize("head", ["max", {"name": "divfram"}])
def test_a_diagnosis_shows_every_slice_that_is_there(head: Any) -> None:
    method = made({"name": "diagnose", "encoder": {"name": "skid", "width": 0.02}, "head": head, "classes": 2}).eval()
    exams = small.draw(torch.Generator().manual_seed(4), 2, 3, 32)[:, :, None]  # (B, S, C, H, W)
    batch = {"views_0": exams, "length": torch.tensor([3, 2]), "labels": torch.zeros(2)}
    looks = of_method(method, batch)
    assert torch.equal(looks.images[0], torch.cat([exams[0], exams[1, :2]]))
    assert list(looks.heat) == list(method.labels)
    label = method.labels[-1]
    alone = of_slices(method, exams[1:, :2])[-1]
    expected = F.interpolate(alone[:, None], size=(32, 32), mode="bilinear", align_corners=False)[:, 0]
    assert torch.allclose(looks.heat[label][0][3:], expected)


@pytest.mark.parametrize(
    "layer, said",
    [
        ("momentum_encoder.layer1", "layer: a lower loss does not depend on momentum_encoder.layer1"),
        ("encoder.layer9", "layer: no 'encoder.layer9'; allowed: any submodule"),
        ("head.layers.0", "layer: "),
    ],
)
def test_a_layer_that_cannot_be_asked_is_named(layer: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        of_method(small.build("byol"), small.batch("byol", 3), layer)
    assert str(caught.value).startswith(said)
