"""Blur, solarise, noise and cutout against slow references, and their rates."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslmed_dist.views.draws import LEVELS, draw, word_keys
from sslmed_dist.views.filters import Blur, Cutout, Noise, Solarise
from tests.views.scenes import constant, scene


def keyed(step: Blur | Cutout | Noise | Solarise, count: int) -> dict[str, Tensor]:
    index = torch.arange(count)
    return dict(draw(step.words, word_keys(step.words), seed=2, epoch=0, index=index, draw=0 * index, view=0))


@pytest.mark.parametrize("channels, height, width, sigma", [(3, 20, 26, (0.1, 2.0)), (1, 32, 32, (1.5, 3.0))])
def test_blur_is_a_convolution(channels: int, height: int, width: int, sigma: tuple[float, float]) -> None:
    blur = Blur(20, 0.5, sigma)
    draws = keyed(blur, 24)
    images = scene(24, channels, height, width, torch.float32)
    result = blur(images.clone(), *blur.draw(draws))
    for row in range(24):
        if draws["blur"][row] >= 0.5:
            assert torch.equal(result[row], images[row])
            continue
        level = (math.floor(float(draws["blur_sigma"][row]) * LEVELS) + 0.5) / LEVELS
        own = sigma[0] + (sigma[1] - sigma[0]) * level
        radius = math.ceil(3 * own)
        taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / own) ** 2)
        kernel = torch.outer(taps, taps)[None, None] / taps.sum() ** 2
        padded = F.pad(images[row].double()[:, None], (radius,) * 4, mode="reflect")
        torch.testing.assert_close(result[row], F.conv2d(padded, kernel)[:, 0].float(), atol=1e-6, rtol=0)


def test_blur_on_the_smallest_views_and_its_rate() -> None:
    blur = Blur(4, 0.3, (5.0, 5.0))
    assert blur.radius == 3
    images = torch.ones(2, 1, 4, 4)
    torch.testing.assert_close(blur(images.clone(), torch.tensor([True, False]), blur.kernels[:2]), images)
    drawn, _ = blur.draw(keyed(blur, 4000))
    assert abs(float(drawn.float().mean()) - 0.3) < 0.03


def test_solarise() -> None:
    solarise = Solarise(0.4, 0.6)
    draws = keyed(solarise, 50)
    images = scene(50, 3, 6, 6, torch.float32)
    result = solarise(images, *solarise.draw(draws))
    for row in range(50):
        expected = [x if draws["solarise"][row] >= 0.4 or x < 0.6 else 1 - x for x in images[row].flatten()]
        assert torch.equal(result[row].flatten(), torch.stack(expected))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 31, 33)])
def test_noise_is_white_and_normal(shape: tuple[int, int, int]) -> None:
    noise = Noise(0.05, 0.5)
    draws = keyed(noise, 40)
    grey = torch.full((40, *shape), 0.5)
    added = (noise(grey.clone(), *noise.draw(draws)) - 0.5) / 0.05
    drawn = draws["noise"] < 0.5
    assert 10 < int(drawn.sum()) < 30 and not added[~drawn].any()
    values = added[drawn]
    assert abs(float(values.mean())) < 0.02 and abs(float(values.var()) - 1) < 0.03
    assert abs(float((values**4).mean()) - 3) < 0.2
    neighbours = [(values[..., 1:] * values[..., :-1]).mean(), (values[:, :, 1:] * values[:, :, :-1]).mean()]
    neighbours += [(values[1:] * values[:-1]).mean()]
    assert max(abs(float(product)) for product in neighbours) < 0.03


def test_noise_stays_in_range() -> None:
    noise = Noise(0.5)
    result = noise(torch.zeros(4, 1, 8, 8), *noise.draw(keyed(noise, 4)))
    assert float(result.min()) == 0.0 and 0.0 < float(result.max()) <= 1.0


def test_cutout_holes() -> None:
    cutout = Cutout(20, (1, 3), 0.25)
    draws = keyed(cutout, 300)
    count, corners = cutout.draw(draws)
    assert sorted(set(count.tolist())) == [1, 2, 3]
    assert int(corners.min()) == -2 and int(corners.max()) == 17
    result = cutout(torch.ones(300, 2, 20, 20), count, corners)
    for row in range(300):
        expected = torch.ones(2, 20, 20)
        for top, left in corners[row, : count[row]].tolist():
            expected[:, max(top, 0) : max(top + 5, 0), max(left, 0) : max(left + 5, 0)] = 0
        assert torch.equal(result[row], expected)


def test_a_kernel_of_stated_size_cuts_the_gaussian_off() -> None:
    """Table 4.3: 5 x 5 taps at any sigma, summing to 1."""
    blur = Blur(16, 1.0, (2.0, 2.0), blur_kernel=5)
    image = torch.zeros(1, 1, 16, 16)
    image[0, 0, 8, 8] = 1.0
    drawn = blur.draw(constant(blur.words, 0.5))
    out = blur(image.clone(), *drawn)[0, 0]
    taps = torch.exp(-0.5 * (torch.arange(-2.0, 3.0) / 2.0) ** 2)
    taps = taps / taps.sum()
    expected = torch.zeros(16, 16)
    expected[6:11, 6:11] = taps[:, None] * taps
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    for kernel in (4, 0, 33):
        with pytest.raises(ValueError, match=r"^blur_kernel: expected an odd number from 1 to 31"):
            Blur(16, 1.0, blur_kernel=kernel)


def test_a_hole_of_stated_side() -> None:
    """64 pixels of a slice stay 64 pixels of a view of 224, where a quarter would be 56."""
    cutout = Cutout(224, (1, 1), cutout_side=64)
    images = torch.ones(1, 1, 224, 224)
    out = cutout(images, *cutout.draw(constant(cutout.words, 0.5)))
    assert int((out == 0).sum()) == 64 * 64
    with pytest.raises(ValueError, match=r"^cutout_side: "):
        Cutout(224, (1, 1), cutout_side=0)
