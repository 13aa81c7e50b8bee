"""Folded colour changes against one change at a time, and the distribution of what is drawn."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torchvision.transforms import functional as TF

from sslmed_dist.views.colour import LUMA, NAMES, YIQ, Colour, hue_matrices
from sslmed_dist.views.draws import LEVELS, draw, word_keys
from tests.views.scenes import constant, scene

JITTER = (0.4, 0.5, 0.6, 0.2)


def keyed(colour: Colour, count: int) -> dict[str, Tensor]:
    index = torch.arange(count)
    return dict(draw(colour.words, word_keys(colour.words), seed=4, epoch=0, index=index, draw=0 * index, view=1))


def slow_colour(
    image: Tensor, draws: dict[str, float], jitter: tuple[float, ...], probability: float, grey: float
) -> Tensor:
    """The changes of one image, one after another, in float64, unclamped until the end."""
    image = image.double()
    weights = torch.tensor(LUMA if len(image) == 3 else [1.0 / len(image)] * len(image), dtype=torch.float64)

    def luma(x: Tensor) -> Tensor:
        return (weights[:, None, None] * x).sum(0)

    def turn(x: Tensor) -> Tensor:
        step = (math.floor(draws["hue"] * LEVELS) + 0.5) / LEVELS
        y, i, q = (torch.tensor(YIQ, dtype=torch.float64) @ x.flatten(1)).unbind(0)
        chroma = torch.complex(i, q) * torch.exp(torch.tensor(-2j * math.pi * jitter[3] * (2 * step - 1)))
        rgb = torch.linalg.solve(torch.tensor(YIQ, dtype=torch.float64), torch.stack([y, chroma.real, chroma.imag]))
        return rgb.view(x.shape)

    factor = {name: 1 - s + 2 * s * draws[name] for name, s in zip(NAMES[:3], jitter, strict=False)}
    changes = [
        lambda x: factor["brightness"] * x,
        lambda x: factor["contrast"] * x + (1 - factor["contrast"]) * luma(x).mean(),
        lambda x: factor["saturation"] * x + (1 - factor["saturation"]) * luma(x) if len(x) == 3 else x,
        lambda x: turn(x) if len(x) == 3 else x,
    ]
    if draws["jitter"] < probability:
        for position in list(itertools.permutations(range(4)))[math.floor(draws["order"] * 24)]:
            image = changes[position](image)
    if draws["grey"] < grey:
        image = luma(image).expand_as(image)
    return image.clamp(0, 1)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_folded_changes_are_the_single_ones(channels: int) -> None:
    jitter, grey = (JITTER, 0.2) if channels == 3 else ((*JITTER[:2], 0.0, 0.0), 0.0)
    colour = Colour(channels, jitter, 0.8, grey)
    images = scene(60, channels, 11, 13, torch.float32)
    draws = keyed(colour, 60)
    result = colour(images, *colour.draw(draws))
    for row in range(60):
        numbers = {word: float(values[row]) for word, values in draws.items()}
        expected = slow_colour(images[row], numbers, jitter, 0.8, grey)
        torch.testing.assert_close(result[row], expected.float(), atol=3e-6, rtol=0)


def test_rates_and_ranges() -> None:
    colour = Colour(3, JITTER, 0.8, 0.2)
    draws = keyed(colour, 6000)
    matrix, _, _ = colour.draw(draws)
    grey = ((matrix - matrix[:, :1]).abs().amax((1, 2)) < 1e-6).float().mean()
    same = (matrix == torch.eye(3)).all(-1).all(-1).float().mean()
    assert abs(float(grey) - 0.2) < 0.02 and abs(float(same) - 0.2 * 0.8) < 0.02
    steps, contrast = colour.steps(draws, torch.eye(3, dtype=torch.float64))
    for factor, strength in ((steps[0, :, 0, 0], 0.4), (contrast, 0.5)):
        assert abs(float(factor.mean()) - 1) < 0.02 and abs(float(factor.std()) - 2 * strength / math.sqrt(12)) < 0.02
        assert 1 - strength <= float(factor.min()) and float(factor.max()) < 1 + strength
    assert len({int(order) for order in (draws["order"] * 24).int()}) == 24


def test_samples_without_grey_are_exact_copies() -> None:
    colour = Colour(3, None, 0.8, 0.5)
    images = scene(40, 3, 6, 6, torch.float32)
    draws = keyed(colour, 40)
    result = colour(images, *colour.draw(draws))
    copied = torch.tensor([torch.equal(a, b) for a, b in zip(images, result, strict=True)])
    assert torch.equal(copied, draws["grey"] >= 0.5)


def test_strength_above_one_keeps_factors_positive() -> None:
    colour = Colour(1, (1.5, 0.0, 0.0, 0.0), 1.0, 0.0)
    matrix, _, _ = colour.draw(keyed(colour, 3000))
    assert 0 <= float(matrix.min()) < 0.01 and 2.45 < float(matrix.max()) < 2.5


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_one_change_is_torchvisions(name: str) -> None:
    strengths = tuple(0.3 if name == other else 0.0 for other in NAMES)
    colour = Colour(3, strengths, 1.0, 0.0)
    images = 0.3 + 0.4 * scene(4, 3, 12, 12, torch.float32)  # no value leaves [0, 1]
    result = colour(images, *colour.draw(constant(colour.words, 0.75, 4)))
    expected = getattr(TF, f"adjust_{name}")(images, 1.15)
    torch.testing.assert_close(result, expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("turn", [-0.2, -0.1, -0.05, 0.05, 0.1, 0.2])
def test_hue_turns_as_torchvisions(turn: float) -> None:
    """Not the same map, but the same direction; luma stays."""
    images = scene(16, 3, 8, 8, torch.float32)
    matrix, opposite = hue_matrices(torch.tensor([turn, -turn], dtype=torch.float64)).float()
    theirs = TF.adjust_hue(images, turn)
    ours, wrong = (torch.einsum("ij,njhw->nihw", m, images) for m in (matrix, opposite))
    error, still, opposed = (float((x - theirs).square().mean()) for x in (ours, images, wrong))
    assert error < 0.85 * still and error < 0.25 * opposed
    luma = torch.tensor(LUMA)[:, None, None]
    torch.testing.assert_close((ours * luma).sum(1), (images * luma).sum(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(matrix @ torch.ones(3), torch.ones(3), atol=1e-5, rtol=0)
