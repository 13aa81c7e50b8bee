"""Grad-CAM of a run over what its encoder gets, as a contact sheet. It holds pixels: it stays with the run."""

import torch
from torch import Tensor

from sslmed_dist.analysis import gradcam
from sslmed_dist.analysis.gradcam import Looks
from sslmed_dist.config import Config
from sslmed_dist.data.dataset import Dataset
from sslmed_dist.methods import Method
from sslmed_dist.report.contact_sheets import overlaid, views_picture
from sslmed_dist.run_folder import phantom_data
from sslmed_dist.training import build

SHOWN, VIEWS = 4, 2  # samples, and inputs of each
PHANTOM = "Phantoms, no patients. "


def sheet(
    settings: Config, method: Method, dataset: Dataset, positions: Tensor, layer: str | None
) -> tuple[bytes, str]:
    """PNG and caption: a row for each of the samples at ``positions`` (N,), in it the inputs of the encoder in the
    first epoch, and each of them under the Grad-CAM of what the method explains itself by. Of an exam its middle slice
    is shown. ``ValueError`` as ``gradcam.of_method``."""
    device, seed = build.choose_device(settings), settings.run.seed
    batch = dataset.fetch(positions, seed=seed, epoch=0, draw=torch.zeros_like(positions))
    views = build.build_views(settings, dataset)
    seen = {name: tensor.to(device) for name, tensor in views(batch, seed=seed, epoch=0).items()}
    looks = gradcam.of_method(method.to(device), seen, layer)
    columns = columns_of(looks, batch.get("length"), len(positions))
    first, *rest = columns
    return views_picture(columns[first], {name: columns[name] for name in rest}, first=first), caption(settings, looks)


def columns_of(looks: Looks, length: Tensor | None, count: int) -> dict[str, Tensor]:
    """The columns of the sheet by title, uint8 (N, C, H, W) each. With several scores only the first input is shown."""
    columns: dict[str, Tensor] = {}
    alone = len(looks.heat) == 1
    for number, images in enumerate(looks.images[: VIEWS if alone else 1]):
        rows = middles(length, count, len(images))
        grey = scaled(images.detach().cpu()[rows])
        suffix = f" {number}" if len(looks.images) > 1 else ""
        columns[f"input{suffix}"] = grey
        for name, heat in looks.heat.items():
            title = f"Grad-CAM{suffix}" if alone else name
            columns[title] = overlaid(grey, heat[number].float().cpu()[rows])
    return columns


def middles(length: Tensor | None, count: int, rows: int) -> Tensor:
    """Which of ``rows`` images are shown of ``count`` samples: all; of exams of ``length`` slices the middle ones."""
    if rows == count or length is None:
        return torch.arange(count)
    starts = length.cpu().cumsum(0) - length.cpu()
    return starts + length.cpu() // 2


def scaled(images: Tensor) -> Tensor:
    """Views (N, C, H, W) as uint8 between the extremes of each; of channels that are no colours the middle one."""
    if images.shape[1] not in (1, 3):
        images = images[:, images.shape[1] // 2][:, None]
    low, high = (extreme(images.float(), dim=(1, 2, 3), keepdim=True) for extreme in (torch.amin, torch.amax))
    return ((images.float() - low) / (high - low).clamp_min(1e-12) * 255).round().to(torch.uint8)


def caption(settings: Config, looks: Looks) -> str:
    """What the sheet shows."""
    words = ", ".join(looks.heat)
    shared = "; one map for all patches of a puzzle, which this layer sees in one place" if looks.together else ""
    asked = f"Grad-CAM at {looks.layer}: bright is what speaks for {words}{shared}. It says where, not why"
    return f"{PHANTOM if phantom_data(settings) else ''}{asked}."
