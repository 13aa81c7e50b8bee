"""Batch norm per episode: E episodes at once are E passes, running statistics move once, for all ranks alike."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslmed_dist import distributed, randomness
from sslmed_dist.models import episode_norm
from sslmed_dist.models.episode_norm import EpisodeBatchNorm
from sslmed_dist.models.normalization import synchronise
from sslmed_dist.models.resnet import ResNet
from tests.gloo import GlooPool

EPISODES, SIZE = 4, 16


def network(images: int | None) -> ResNet:
    """A small ResNet with weights of norms that are not 1 and 0; per episode if ``images`` is given."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = ResNet(9, "cifar", 4, channels=1)
        for name, parameter in made.named_parameters():
            if "bn" in name:
                nn.init.uniform_(parameter, 0.5, 1.5)
    if images is not None:
        episode_norm.convert(made, images)
    return made


def pictures(images: int, dtype: torch.dtype) -> Tensor:
    """(images, episodes, 1, 16, 16), every episode of another brightness and contrast."""
    shape = (images, EPISODES, 1, SIZE, SIZE)
    noise = randomness.normal(3, torch.arange(torch.Size(shape).numel()).view(shape)).to(dtype)
    level = torch.arange(EPISODES, dtype=dtype).view(1, EPISODES, 1, 1, 1)
    return noise * (1 + level) + 10 * level


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("images", [2, 3])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_episodes_at_once_are_episodes_one_by_one(images: int, dtype: torch.dtype, tolerance: float) -> None:
    """Maps, gradients of parameters and of pixels, against plain batch norm on one episode at a time."""
    together, apart = network(images).to(dtype), network(None).to(dtype)
    x = pictures(images, dtype).requires_grad_()
    y = together.maps(x.flatten(0, 1)).unflatten(0, (images, EPISODES))
    (y.pow(2).sum() / EPISODES).backward()
    other = pictures(images, dtype).requires_grad_()
    parts = [apart.maps(other[:, episode]) for episode in range(EPISODES)]
    (torch.stack([part.pow(2).sum() for part in parts]).sum() / EPISODES).backward()

    def close(a: Tensor, b: Tensor) -> None:
        assert ((a - b).norm() <= tolerance * b.norm()).item()

    close(y, torch.stack(parts, dim=1))
    close(x.grad, other.grad)  # type: ignore[arg-type]
    expected = gradients(apart)
    assert gradients(together).keys() == expected.keys()
    for name, value in gradients(together).items():
        close(value, expected[name])


def test_one_episode_is_batch_norm_bit_for_bit() -> None:
    """Outputs; running statistics after the step to the last digits."""
    ours, plain = network(2), network(None)
    x = pictures(2, torch.float32)[:, 1]
    assert torch.equal(ours.maps(x), plain.maps(x))
    episode_norm.update_running(ours)
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-6, atol=1e-7)


def test_running_statistics_follow_the_mean_of_the_episodes() -> None:
    """Unbiased variances; one update per step, however many passes; evaluation uses them."""
    x = pictures(2, torch.float64)
    norm = EpisodeBatchNorm(1, 2, momentum=0.25).double()
    norm(x.flatten(0, 1))
    assert norm.running_mean.item() == 0 and norm.num_batches_tracked.item() == 0
    mean = x.transpose(0, 1).flatten(1).mean(1).mean()
    variance = x.transpose(0, 1).flatten(1).var(1, unbiased=True).mean()
    episode_norm.update_running(norm)
    episode_norm.update_running(norm)  # nothing was seen since
    assert norm.running_mean.item() == pytest.approx(0.25 * mean.item(), rel=1e-12)
    assert norm.running_var.item() == pytest.approx(0.75 + 0.25 * variance.item(), rel=1e-12)
    halves = EpisodeBatchNorm(1, 2, momentum=0.25).double()
    for episodes in ([0, 2], [1, 3]):
        halves(x[:, episodes].flatten(0, 1))
    episode_norm.update_running(halves)
    torch.testing.assert_close(halves.running_var, norm.running_var, rtol=1e-12, atol=0)
    assert norm.num_batches_tracked.item() == halves.num_batches_tracked.item() == 1
    norm.eval()
    expected = (x.flatten(0, 1) - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    torch.testing.assert_close(norm(x.flatten(0, 1)), expected, rtol=1e-12, atol=1e-12)


def walk(images: int) -> dict[str, Tensor]:
    """Three steps on this rank's episodes: running statistics, and the ranks' sum of gradients."""
    rank, world = distributed.rank(), distributed.world_size()
    made: Any = network(images).double()
    if world > 1:
        made = synchronise(made, torch.device("cpu"))
    mine = slice(rank * EPISODES // world, (rank + 1) * EPISODES // world)
    for step in range(3):
        made.maps((pictures(images, torch.float64) * (1 + step))[:, mine].flatten(0, 1)).square().sum().backward()
        episode_norm.update_running(made)
    summed = {f"grad.{name}": distributed.reduce_sum(value) for name, value in gradients(made).items()}
    return {**summed, **{name: value.clone() for name, value in made.named_buffers()}}


def test_ranks_share_running_statistics_and_nothing_else(gloo: GlooPool) -> None:
    """``synchronise`` leaves the layers alone; any number of ranks, the same statistics, with the same bits."""
    alone = walk(2)
    for world in (2, 4):
        first, *others = gloo.run(walk, world, 2)
        assert first.keys() == alone.keys()
        for name, value in alone.items():
            assert float((first[name] - value).double().norm()) <= 1e-11 * float(value.double().norm()), name
        assert all(torch.equal(other[name], first[name]) for other in others for name in alone)


def test_conversion_keeps_keys_parameters_and_mode() -> None:
    made = network(None).eval()
    made.bn1.train()
    before, modes = dict(made.state_dict(keep_vars=True)), [module.training for module in made.modules()]
    assert episode_norm.convert(made, 3) is made
    after = dict(made.state_dict(keep_vars=True))
    assert list(after) == list(before) and all(after[key] is before[key] for key in before)
    assert [module.training for module in made.modules()] == modes
    found = episode_norm.layers(made)
    assert len(found) == sum("running_mean" in key for key in after) and {layer.images for layer in found} == {3}
    episode_norm.arrange(made, 4)
    assert {layer.images for layer in found} == {4}
    synchronise(made, torch.device("cpu"))
    assert episode_norm.layers(made) == found
    nn.SyncBatchNorm.convert_sync_batchnorm(made)  # type: ignore[no-untyped-call]
    assert episode_norm.layers(made) == found


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_half_precision_and_layouts(layout: torch.memory_format) -> None:
    """Half precision in and out, statistics in float32; channels-last input gives the same numbers."""
    x = pictures(2, torch.float32).flatten(0, 1).bfloat16().float()
    wide, narrow = EpisodeBatchNorm(1, 2), EpisodeBatchNorm(1, 2)
    expected, found = wide(x), narrow(x.to(memory_format=layout).bfloat16())
    assert found.dtype == torch.bfloat16 and narrow.seen is not None and narrow.seen.dtype == torch.float32
    torch.testing.assert_close(found.float(), expected, rtol=0.01, atol=0.01)
    assert torch.equal(EpisodeBatchNorm(1, 2)(x.to(memory_format=layout)), expected)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match=r"^episode batch norm: 5 rows are no multiple of 2 images per episode$"):
        EpisodeBatchNorm(1, 2)(torch.ones(5, 1, 2, 2))
    for wrong in ({"affine": False}, {"momentum": None}, {"track_running_stats": False}):
        with pytest.raises(ValueError, match="^episode batch norm: expected parameters, running statistics and a mom"):
            episode_norm.convert(nn.Sequential(nn.BatchNorm2d(1, **wrong)))  # type: ignore[arg-type]
