"""Feature maps of any network of timm: which stages, at what stride, and which of them are frozen."""

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Stages:
    """The stages ``numbers`` of a network, whose maps are joined at ``stride``. Without numbers the network is whole.

    A stage is an entry of timm's ``feature_info``. ``modules``: the last module of every stage that there is.
    ``channels``: of the joined maps. ``frozen``: how many stages, from the first one, keep their weights. ``options``:
    what the network is made with.
    """

    numbers: tuple[int, ...] = ()
    stride: int = 0
    frozen: int = 0
    modules: tuple[str, ...] = ()
    channels: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, outline: nn.Module, numbers: Sequence[int] | None, stride: int | None, dilated: bool, frozen: int
    ) -> "Stages":
        """Checked against the network ``outline``, which may lie on the meta device. ``ValueError``: see
        ``TimmEncoder``."""
        info = list(getattr(outline, "feature_info", None) or [])
        if not info or not hasattr(outline, "forward_intermediates"):
            raise ValueError("method.encoder.stages: timm gives no maps of this network's stages; allowed: null")
        allowed = f"0 to {len(info) - 1} in ascending order"
        if numbers is not None and (
            not numbers or list(numbers) != sorted(set(numbers)) or not 0 <= numbers[0] <= numbers[-1] < len(info)
        ):
            raise ValueError(f"method.encoder.stages: expected some of {allowed}, each once, got {list(numbers)}")
        most = len(info) if numbers is None else numbers[-1] + 1
        if not 0 <= frozen <= most:
            raise ValueError(f"method.encoder.frozen_stages: expected 0 to {most}, got {frozen}")
        strides = [int(entry["reduction"]) for entry in info]
        if stride is None and numbers is not None:
            stride = strides[numbers[-1]]  # that of the coarsest, as timm makes it
        if stride is not None and stride < 1:
            raise ValueError(f"method.encoder.stride: expected an integer >= 1, got {stride}")
        return cls(
            tuple(numbers or ()),
            stride or 0,
            frozen,
            tuple(str(entry["module"]) for entry in info),
            sum(int(info[number]["num_chs"]) for number in numbers or ()),
            options_of(outline, stride or 0, dilated) if numbers is not None else {},
        )

    def cut(self, network: nn.Module) -> None:
        """Take away, in place, what lies behind the last of the stages."""
        network.prune_intermediate_layers(list(self.numbers), prune_norm=True, prune_head=True)  # type: ignore[operator]

    def joined(self, network: nn.Module, images: Tensor) -> Tensor:
        """Images (N, C, H, W) -> the stages' maps side by side, (N, ``channels``, h, w): h and w are H and W over the
        stride, rounded up. Maps of another size are resampled (bilinear)."""
        maps: list[Tensor] = network.forward_intermediates(  # type: ignore[operator]
            images, list(self.numbers), intermediates_only=True, output_fmt="NCHW"
        )
        size = [-(-side // self.stride) for side in images.shape[2:]]
        return torch.cat([resampled(each, size) for each in maps], dim=1)

    def freeze(self, network: nn.Module) -> None:
        """Mark the frozen stages' parameters as not to be trained, and put these stages in evaluation mode."""
        for module in self.frozen_modules(network):
            module.requires_grad_(False)
        if self.frozen:
            for parameter in network.parameters(recurse=False):  # positions and class tokens of a transformer
                parameter.requires_grad_(False)
        self.settle(network)

    def settle(self, network: nn.Module) -> None:
        """Put the frozen stages in evaluation mode, so that their batch norms keep their statistics."""
        for module in self.frozen_modules(network):
            module.eval()

    def frozen_modules(self, network: nn.Module) -> Iterator[nn.Module]:
        """The modules of the frozen stages, and those before them. timm registers modules in the order in which images
        go through them."""
        if not self.frozen:
            return
        last = self.modules[self.frozen - 1]
        parent = last.rpartition(".")[0]
        for name, module in network.named_children():
            if name == last:
                yield module
                return
            if name != parent:
                yield module
                continue
            for inner, part in module.named_children():
                yield part
                if f"{name}.{inner}" == last:
                    return
        raise ValueError(f"method.encoder.frozen_stages: this network has no module {last!r} of its own; allowed: 0")


def shallow_copy(network: nn.Module) -> nn.Module:
    """Another module of the same children: children can be exchanged in one without the other."""
    twin = copy.copy(network)
    twin._modules = dict(network._modules)
    return twin


def resampled(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (N, D, h, w) at ``size``, bilinear; untouched where they have it."""
    if list(maps.shape[2:]) == list(size):
        return maps
    return functional.interpolate(maps, list(size), mode="bilinear", align_corners=False)


def options_of(outline: nn.Module, stride: int, dilated: bool) -> dict[str, Any]:
    """What a network of the kind of ``outline`` is made with, so that it takes images of any size (transformers) and,
    if ``dilated``, goes no further than ``stride``. ``ValueError`` where timm cannot dilate it."""
    taken = inspect.signature(type(outline).__init__).parameters
    options: dict[str, Any] = {"dynamic_img_size": True} if "dynamic_img_size" in taken else {}
    if dilated:
        if "output_stride" not in taken or stride not in (8, 16):
            raise ValueError(
                f"method.encoder.dilated: timm cannot make {type(outline).__name__} with a stride of {stride}; "
                "allowed: false (coarser maps are then resampled to it), or a network with strides such as a ResNet or "
                "an EfficientNet, at stride 8 or 16"
            )
        options["output_stride"] = stride
    return options
