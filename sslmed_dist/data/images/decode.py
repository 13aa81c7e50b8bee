"""One image file as a tensor: opened, its shorter side resized to a given length, cut to the centre square."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sslmed_dist.data.damage import reason
from sslmed_dist.printable import note
from sslmed_dist.strips import middle_of_strip

MOST_PIXELS = 178_956_970  # of an image: where Pillow refuses to read on, 13,377 x 13,377
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def read_picture(path: Path, size: int, channels: int, bits: int = 8) -> Tensor:
    """The image in ``path``, (channels, H, W): its shorter side has ``size`` pixels and its aspect is kept.

    uint8 for ``bits`` 8, float32 in [0, 1] for 16. ``ValueError`` names a file that cannot be read, or one of 16 bits
    where ``bits`` is 8.
    """
    picture, sixteen_bit = open_picture(path)
    if sixteen_bit and bits == 8:
        raise ValueError(f"{path}: a 16-bit image in a set of 8-bit ones; set bits to 16")
    return resize_picture(picture, size, channels, bits)


@functools.cache
def tell_of_transparency() -> None:
    """Say, once in a process, what becomes of transparent pixels."""
    note("some images have transparent pixels: read is the colour that is stored under them")


@functools.cache
def tell_of_frames() -> None:
    """Say, once in a process, what is read of an animation."""
    note("some images hold several pictures (an animated PNG, or several in a JPEG): read is the first")


def crop_centre(image: Tensor, size: int) -> Tensor:
    """The middle ``size`` x ``size`` pixels of (..., H, W), contiguous."""
    top, left = ((side - size) // 2 for side in image.shape[-2:])
    return image[..., top : top + size, left : left + size].contiguous()


def open_picture(path: Path) -> tuple[Any, bool]:
    """(a loaded PIL image, turned upright as its EXIF tag says; whether it is 16-bit grey). ``ValueError`` names a
    corrupt file, or one of a depth that is not supported (16-bit colour, 32-bit)."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            # Pillow reads 16-bit colour as 8-bit without a word; only the raw_mode mode of the tiles tells
            raw_mode = str(opened.tile[0][3]) if opened.tile else ""
            if getattr(opened, "is_animated", False):
                tell_of_frames()
            opened.load()
            ImageOps.exif_transpose(opened, in_place=True)  # else all pixels are copied where nothing is to be turned
            picture = opened
    except Image.DecompressionBombError:
        raise ValueError(f"{path}: an image of more pixels than are read; allowed: at most {MOST_PIXELS:,}") from None
    except Exception as error:  # Pillow's parsers raise what they like
        raise ValueError(f"{path} is corrupt or no image: {reason(error)}") from error
    sixteen_bit = picture.mode.startswith("I;16") or (picture.mode == "I" and ";16" in raw_mode)
    if not sixteen_bit and (picture.mode in ("I", "F") or ";16" in raw_mode):
        kind = "16-bit colour" if ";16" in raw_mode else f"kind {picture.mode}"
        raise ValueError(f"{path}: pixels of {kind}; allowed: 8-bit grey or colour, 16-bit grey")
    return picture, sixteen_bit


def resize_picture(picture: Any, size: int, channels: int, bits: int) -> Tensor:
    """A PIL image as a tensor (channels, H, W): uint8 for ``bits`` 8, float32 in [0, 1] for 16.

    Its shorter side becomes ``size`` pixels, its aspect is kept. Of a strip that would be enlarged only the middle is
    (``middle_of_strip``).
    """
    from PIL import Image

    part = middle_of_strip(picture.height, picture.width, size)
    if part is not None:
        top, bottom, left, right = part
        picture = picture.crop((left, top, right, bottom))
    scale = size / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    sixteen_bit = picture.mode.startswith("I")
    if not sixteen_bit:
        if picture.has_transparency_data:
            tell_of_transparency()
        picture = picture.convert("L" if channels == 1 else "RGB")
    if bits == 8:
        # Pillow resizes 8-bit pixels, antialiased
        resized = np.array(picture.resize((width, height), Image.Resampling.BILINEAR))  # (H, W) or (H, W, 3)
        return torch.from_numpy(resized).reshape(height, width, channels).permute(2, 0, 1)
    # for 16 bits torch resizes in float32, without rounding to pixel values
    values = np.asarray(picture).astype(np.float32) / np.float32(65535 if sixteen_bit else 255)
    image = torch.from_numpy(values).reshape(*values.shape[:2], -1).permute(2, 0, 1)  # (1 or 3, H, W)
    image = F.interpolate(image[None], (height, width), mode="bilinear", antialias=True, align_corners=False)[0]
    return image.clamp(0.0, 1.0).expand(channels, -1, -1)  # a grey channel stands for all three
