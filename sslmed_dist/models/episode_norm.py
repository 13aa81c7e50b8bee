"""Batch normalisation episode by episode: a batch of E episodes computes what E batches of one episode compute.

An episode is a few images (supports and a query). Rows are ordered image by image: row b E + e is image b of episode e.
So the rows (images E, C, H, W) can be viewed as (images, E C, H, W), with a channel of its own for each channel of each
episode, and one call of torch's batch norm serves all episodes. Statistics never cross episodes, so a forward pass
synchronises nothing between ranks (``models.normalization.synchronise`` leaves the layer alone). Only the running
statistics are averaged over ranks, once per step.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from sslmed_dist import distributed
from sslmed_dist.models import normalization


class EpisodeBatchNorm(_NormBase):
    """BatchNorm of rows (images E, C, H, W) whose training statistics are those of each episode's ``images`` rows.

    Parameters, buffers and their names are those of BatchNorm2d; with one episode the outputs are too. In evaluation
    it normalises by the running statistics. A forward pass does not move these, it only records its statistics in
    ``seen``. ``update_running`` moves them, once per optimiser step, however many passes (micro-batches) the step has.
    Images in channels-last layout are copied. ``ValueError`` for rows that are no multiple of ``images``.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_features: int, images: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(num_features, eps, momentum)
        self.images = images
        self.seen: Tensor | None = None  # (2, C): the sum of the step's moments so far
        self.passes = 0  # how many passes it has added up

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` (images E, C, H, W) per episode and channel, in the same shape."""
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        if len(x) % self.images:
            raise ValueError(f"episode batch norm: {len(x)} rows are no multiple of {self.images} images per episode")
        episodes = len(x) // self.images
        rows = x.reshape(self.images, episodes * self.num_features, *x.shape[2:])  # (images, E C, H, W)
        # With momentum 1 torch leaves the batch's own mean and unbiased variance in the buffers it is given.
        mean, variance = self.running_mean.new_zeros(2, episodes * self.num_features)
        weight, bias = self.weight.repeat(episodes), self.bias.repeat(episodes)  # (E C,), as mean and variance
        out = F.batch_norm(rows, mean, variance, weight, bias, True, 1.0, self.eps)
        self.note(torch.stack([mean, variance]).view(2, episodes, self.num_features).mean(1))
        return out.reshape(x.shape)

    @torch.no_grad()
    def note(self, moments: Tensor) -> None:
        """Add the ``moments`` (2, C) of one pass to the sum over the step's passes: mean and unbiased variance, each
        averaged over the pass's episodes."""
        self.seen = moments if self.seen is None else self.seen + moments
        self.passes += 1

    @torch.no_grad()
    def follow(self, moments: Tensor) -> None:
        """Move the running mean and variance towards ``moments`` (2, C) by ``momentum``, and forget what was seen."""
        assert self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(moments[0], self.momentum)
        self.running_var.lerp_(moments[1], self.momentum)
        self.seen, self.passes = None, 0


def convert(module: nn.Module, images: int = 2) -> nn.Module:
    """``module`` with every BatchNorm in it replaced by its per-episode twin, which has its parameters and buffers.

    ``ValueError`` for a BatchNorm without parameters, without running statistics or with their cumulative average, and
    for a subclass that computes more.
    """
    for name, child in module.named_children():
        setattr(module, name, twin(child, images) if isinstance(child, _BatchNorm) else convert(child, images))
    return module


def twin(norm: _BatchNorm, images: int) -> EpisodeBatchNorm:
    """The per-episode layer with the parameters, buffers and mode of ``norm``. ``ValueError``: see ``convert``."""
    if normalization.does_more(norm):
        raise normalization.unknown(norm, "episode batch norm")
    if not norm.affine or not norm.track_running_stats or norm.momentum is None:
        raise ValueError(f"episode batch norm: expected parameters, running statistics and a momentum, got {norm}")
    layer = EpisodeBatchNorm(norm.num_features, images, norm.eps, norm.momentum)
    layer.weight, layer.bias = norm.weight, norm.bias
    for name, buffer in norm.named_buffers():
        setattr(layer, name, buffer)
    return layer.train(norm.training)


def layers(module: nn.Module) -> list[EpisodeBatchNorm]:
    """The per-episode layers of ``module``, in the order of its modules."""
    return [layer for layer in module.modules() if isinstance(layer, EpisodeBatchNorm)]


def arrange(module: nn.Module, images: int) -> None:
    """Set how many ``images`` an episode has in the next forward passes."""
    for layer in layers(module):
        layer.images = images


@torch.no_grad()
def update_running(module: nn.Module) -> None:
    """At the end of a step, move every layer's running statistics once, towards the mean over all ranks' episodes.

    One message serves all layers. It is a sum in rank order, so that all ranks hold the same bits. Every rank must have
    seen the same number of episodes. Does nothing where no layer saw a training pass since the last call.
    """
    waiting = [layer for layer in layers(module) if layer.seen is not None]
    if not waiting:
        return
    # Each layer's moments (2, C): on this rank the mean over the step's passes, then the mean over ranks.
    local = [layer.seen / layer.passes for layer in waiting if layer.seen is not None]
    average = distributed.reduce_sum(torch.cat([moments.flatten() for moments in local])) / distributed.world_size()
    sizes = [moments.numel() for moments in local]
    for layer, moments in zip(waiting, torch.split(average, sizes), strict=True):
        layer.follow(moments.view(2, layer.num_features))
