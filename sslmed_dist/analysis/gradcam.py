"""Where a network looks: Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) for any module and layer."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sslmed_dist.methods.diagnose import Diagnose


def cam(maps: Tensor, gradients: Tensor) -> Tensor:
    """ReLU of the sum over channels of the maps (n, D, h, w), each weighed by the mean of its gradient, over its
    greatest value: (n, h, w) in [0, 1]; 0 where nothing speaks for the score."""
    weights = gradients.mean(dim=(2, 3), keepdim=True)  # (n, D, 1, 1)
    positive = (weights * maps).sum(dim=1).clamp_min(0.0)
    top = positive.amax(dim=(1, 2), keepdim=True)
    return torch.where(top > 0, positive / top.clamp_min(1e-30), 0.0)


def gradcam(module: nn.Module, layer: str, score: Callable[[], Tensor]) -> list[Tensor]:
    """Grad-CAM of ``score()``, a tensor of scores that is summed, at the submodule ``layer`` of ``module``: (n, h, w)
    for each call of the layer while ``score`` ran. Nothing of the module is changed.

    ``ValueError``: no such layer, one that was not called, or one whose output is no feature map (n, D, h, w)."""
    layers = dict(module.named_modules())
    if layer not in layers or not layer:
        top = sorted({name for name in layers if name and name.count(".") < 2})
        raise ValueError(f"layer: no {layer!r}; allowed: any submodule, such as {', '.join(top)}")
    seen: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim != 4:
            raise ValueError(f"layer: {layer} gives no feature maps (n, D, h, w)")
        kept = output if output.requires_grad else output.detach().requires_grad_()
        seen.append(kept)
        return kept.clone()  # what follows may work in place

    hook = layers[layer].register_forward_hook(keep)
    try:
        with torch.enable_grad():
            total = score().sum()
    finally:
        hook.remove()
    if not seen:
        raise ValueError(f"layer: {layer} was not called")
    gradients = torch.autograd.grad(total, seen, allow_unused=True)
    return [
        cam(maps.detach(), torch.zeros_like(maps) if gradient is None else gradient)
        for maps, gradient in zip(seen, gradients, strict=True)
    ]


def of_slices(method: Diagnose, view: Tensor) -> list[Tensor]:
    """Grad-CAM of a diagnosis at the maps that its head reads (of SKID the last reduction, per label as in Fig. 3.10):
    for each label, where in each slice of an examination (1, S, C, H, W) its logit comes from, (S, h, w) in [0, 1]. A
    frozen encoder is not asked for gradients."""
    length = torch.tensor([view.shape[1]], device=view.device)
    with torch.no_grad():
        maps = method.maps(view, length)
    maps = maps.detach().requires_grad_()
    with torch.enable_grad():
        read = maps.mean(dim=(3, 4), keepdim=True) if method.cache == "pooled" else maps
        logits: Tensor = method.head(read, length)
        gradients = [torch.autograd.grad(logit, maps, retain_graph=True)[0] for logit in logits[0]]
    return [cam(maps[0].detach(), gradient[0]) for gradient in gradients]
