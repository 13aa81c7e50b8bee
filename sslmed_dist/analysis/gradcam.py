"""Where a network looks: Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) for any module and layer."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslmed_dist.methods import Method
from sslmed_dist.methods.diagnose import Diagnose
from sslmed_dist.methods.jigsaw import side_by_side
from sslmed_dist.models.semiparallel import BRANCHES, BranchConvolution
from sslmed_dist.printable import plural


def cam(maps: Tensor, gradients: Tensor) -> Tensor:
    """ReLU of the sum over channels of the maps (n, D, h, w), each weighed by the mean of its gradient, over its
    greatest value: (n, h, w) in [0, 1]; 0 where nothing speaks for the score."""
    return grouped_cam(maps, gradients, 1)[:, 0]


def grouped_cam(maps: Tensor, gradients: Tensor, groups: int) -> Tensor:
    """``cam`` of each of ``groups`` equal groups of channels, over the greatest value of all of them: (n, groups, h, w)
    in [0, 1]. Each branch of a semi-parallel stem is such a group."""
    weights = gradients.mean(dim=(2, 3), keepdim=True)  # (n, D, 1, 1)
    by_group = (weights * maps).reshape(len(maps), groups, -1, *maps.shape[2:])
    positive = by_group.sum(dim=2).clamp_min(0.0)
    top = positive.amax(dim=(1, 2, 3), keepdim=True)
    return torch.where(top > 0, positive / top.clamp_min(1e-30), 0.0)


def gradcam(module: nn.Module, layer: str, score: Callable[[], Tensor]) -> list[Tensor]:
    """Grad-CAM of ``score()``, a tensor of scores that is summed, at the submodule ``layer`` of ``module``: (n, h, w)
    for each call of the layer while ``score`` ran. Nothing of the module is changed.

    ``ValueError``: no such layer, one that was not called, or one whose output is no feature map (n, D, h, w)."""
    seen, gradients = at_layer(module, layer, lambda: {"score": score()})
    return [cam(*pair) for pair in zip(seen, gradients["score"], strict=True)]


def at_layer(
    module: nn.Module, layer: str, scores: Callable[[], Mapping[str, Tensor]]
) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
    """The maps of ``layer``, one (n, D, h, w) for each call of it while ``scores`` ran, and by name the gradients of
    each score, summed, with respect to them; 0 at a call that a score does not depend on.

    ``ValueError`` as ``gradcam``, and where a score depends on no call of the layer."""
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
            totals = {name: score.sum() for name, score in scores().items()}
    finally:
        hook.remove()
    if not seen:
        raise ValueError(f"layer: {layer} was not called")
    gradients: dict[str, list[Tensor]] = {}
    for name, total in totals.items():
        found = torch.autograd.grad(total, seen, allow_unused=True, retain_graph=True) if total.requires_grad else ()
        if all(gradient is None for gradient in found):
            raise ValueError(f"layer: {name} does not depend on {layer}")
        gradients[name] = [
            torch.zeros_like(maps) if gradient is None else gradient for maps, gradient in zip(seen, found, strict=True)
        ]
    return [maps.detach() for maps in seen], gradients


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


@dataclass(frozen=True)
class Looks:
    """Where a method looks. ``images``: the inputs of its encoder (n, C, H, W), of a puzzle its patches side by side.
    ``heat``: by what was asked, Grad-CAM of each input, (n, H, W) in [0, 1]. ``layer``: where. ``together``: the
    patches of a puzzle have one map, that of the layer, which sees them all in one place."""

    layer: str
    images: list[Tensor]
    heat: dict[str, list[Tensor]]
    together: bool


def of_method(method: Method, batch: dict[str, Tensor], layer: str | None = None) -> Looks:
    """Grad-CAM of what ``method`` explains itself by (``Method.explained``), over the inputs of its encoder, for a
    batch of views. ``layer`` is a submodule of the method; None is the one that ``last_maps`` finds, and of a diagnosis
    the maps that its head reads. Nothing of the method is changed. ``ValueError`` as ``at_layer``, and for a layer that
    has not a map for each input."""
    if layer is None and isinstance(method, Diagnose):
        with asked(method):
            return of_diagnosis(method, batch)
    inputs = method.encoder_inputs(batch)

    def scores() -> dict[str, Tensor]:
        return method.explained(method.embed(batch), batch)

    with asked(method):
        name = layer or last_maps(method, scores, puzzles=inputs[0].dim() == 5)
        seen, gradients = at_layer(method, name, scores)
    branches = isinstance(dict(method.named_modules())[name], BranchConvolution)
    groups = BRANCHES if branches and inputs[0].dim() == 5 else 1
    heat = {}
    for score, found in gradients.items():
        calls = [grouped_cam(*pair, groups) for pair in zip(seen, found, strict=True)]
        heat[score] = spread_over(inputs, [row for call in calls for row in call], name)
    images = [side_by_side(given) if given.dim() == 5 else given for given in inputs]
    return Looks(name, images, heat, together=inputs[0].dim() == 5 and groups == 1)


def of_diagnosis(method: Diagnose, batch: dict[str, Tensor]) -> Looks:
    """``of_slices`` of every examination of a batch of views (B, S, C, H, W): a map for each slice that is there."""
    inputs, views = method.encoder_inputs(batch), batch["views_0"]
    lengths = batch["length"].tolist() if "length" in batch else [views.shape[1]] * len(views)
    of_exams = [of_slices(method, views[n : n + 1, :length]) for n, length in enumerate(lengths)]
    names = [f"class {k}" for k in range(len(of_exams[0]))] if method.softmax else method.labels
    layer = "the maps that the head reads"
    heat = {}
    for label, name in enumerate(names):
        rows = [row[None] for exam in of_exams for row in exam[label]]
        heat[name] = spread_over(inputs, rows, layer)
    puzzles = inputs[0].dim() == 5
    return Looks(layer, [side_by_side(given) if puzzles else given for given in inputs], heat, together=puzzles)


@contextmanager
def asked(method: Method) -> Iterator[None]:
    """A block in which the method evaluates, a frozen encoder is asked for gradients, and no parameter is."""
    training, frozen = method.training, method.freeze
    learns = {parameter: parameter.requires_grad for parameter in method.parameters()}
    method.eval().requires_grad_(False)
    method.freeze = False
    try:
        yield
    finally:
        method.freeze = frozen
        method.train(training)
        for parameter, own in learns.items():
            parameter.requires_grad_(own)


def last_maps(method: Method, run: Callable[[], object], puzzles: bool) -> str:
    """The submodule of the encoder that gave the last feature maps of more than one pixel while ``run`` ran. Of a
    semi-parallel stem that got ``puzzles`` its last layer, in which each patch still has maps of its own.
    ``ValueError`` for an encoder without."""
    given: list[tuple[str, nn.Module]] = []

    def hook(name: str) -> Callable[..., None]:
        def keep(module: nn.Module, _: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 4 and min(output.shape[2:]) > 1:
                given.append((name, module))

        return keep

    named = [(f"encoder.{name}", module) for name, module in method.encoder.named_modules() if name]
    hooks = [module.register_forward_hook(hook(name)) for name, module in named]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in hooks:
            handle.remove()
    stem = [name for name, module in given if isinstance(module, BranchConvolution)]
    if not given:
        raise ValueError("layer: no submodule of the encoder gives feature maps of more than one pixel")
    return stem[-1] if puzzles and stem else given[-1][0]


def spread_over(inputs: list[Tensor], rows: list[Tensor], layer: str) -> list[Tensor]:
    """Maps (groups, h, w), one for each row of the ``inputs`` in order, in the size of these: (n, H, W) each. A
    puzzle's single map is that of each of its patches. ``ValueError`` for too few of them."""
    wanted = sum(len(given) for given in inputs)
    if len(rows) < wanted:
        raise ValueError(f"layer: {layer} gives {plural(len(rows), 'map')} for {wanted} images")
    spread, start = [], 0
    for given in inputs:
        maps = torch.stack(rows[start : start + len(given)])  # (n, groups, h, w)
        start += len(given)
        heat = F.interpolate(maps, size=given.shape[-2:], mode="bilinear", align_corners=False)
        if given.dim() == 5:
            heat = side_by_side(heat.expand(-1, given.shape[1], -1, -1)[:, :, None])
        spread.append(heat[:, 0])
    return spread
