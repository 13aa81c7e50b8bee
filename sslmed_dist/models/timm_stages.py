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
        return self.side_by_side(maps_of(network, images, self.numbers), images.shape[2:])

    def side_by_side(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """The maps of images of this ``size`` (H, W) at the stride, as channels of one."""
        grid = [-(-side // self.stride) for side in size]
        return torch.cat([resampled(each, grid) for each in maps], dim=1)

    @property
    def kept(self) -> tuple[int, ...]:
        """The frozen stages whose maps are joined, or are what the rest of the network goes on from."""
        goes_on = {self.frozen - 1} if self.numbers[-1] >= self.frozen else set()
        return tuple(sorted({number for number in self.numbers if number < self.frozen} | goes_on))

    def stem(self, network: nn.Module, images: Tensor) -> list[Tensor]:
        """The maps of the stages ``kept`` of images (N, C, H, W). ``ValueError``: see ``TimmEncoder.stem``."""
        if not self.numbers or not self.frozen or hasattr(network, "patch_embed"):
            raise ValueError(
                "method.cache: stem keeps the maps of frozen stages; allowed: a convolutional network of timm with "
                "encoder.stages and encoder.frozen_stages of 1 or more, or cache: off"
            )
        return maps_of(network, images, self.kept)

    def joined_after(self, network: nn.Module, stem: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """What ``joined`` gives of images of this ``size`` (H, W), from their ``stem``."""
        maps = dict(zip(self.kept, stem, strict=True))
        later = [number for number in self.numbers if number >= self.frozen]
        if later:
            rest = without(network, list(self.frozen_modules(network)))
            maps |= dict(zip(later, maps_of(rest, stem[-1], later), strict=True))
        return self.side_by_side([maps[number] for number in self.numbers], size)

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


def maps_of(network: nn.Module, images: Tensor, numbers: Sequence[int]) -> list[Tensor]:
    """The maps of the stages ``numbers``, each (n, D, h, w). No later stage is computed."""
    maps: list[Tensor] = network.forward_intermediates(  # type: ignore[operator]
        images, list(numbers), stop_early=True, intermediates_only=True, output_fmt="NCHW"
    )
    return maps


def without(network: nn.Module, left_out: Sequence[nn.Module]) -> nn.Module:
    """``network``, its modules and tensors shared, in which those ``left_out`` hand on what they get. They are its
    children or children's children."""
    twin = shallow_copy(network)
    for name, child in network.named_children():
        if any(child is module for module in left_out):
            twin._modules[name] = nn.Identity()
            continue
        inner = shallow_copy(child)
        for inner_name, part in child.named_children():
            if any(part is module for module in left_out):
                inner._modules[inner_name] = nn.Identity()
        twin._modules[name] = inner
    return twin


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
