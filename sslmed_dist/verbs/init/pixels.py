"""What the files of a folder of images look like: some of them are opened, spread over the whole list."""

import statistics
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sslmed_dist.data.check.findings import SHOWN
from sslmed_dist.data.images.decode import open_picture
from sslmed_dist.printable import plural

LOOKED_AT = 200  # files that are opened
NEARLY_GREY = 3.0  # mean difference of two colours, of 255: what JPEG makes of a grey image stays below it
SMALL = 256  # pixels: colours are compared on a copy of at most this side


@dataclass(frozen=True)
class Pixels:
    """``short`` is the median of the shorter sides. ``channels`` is 1 where every image is grey, also one that is
    stored in colour. ``bits`` is 16 where one image has 16. ``brightest`` is the largest value of 16-bit images, 0
    where there are none. ``lines`` say all this in words."""

    short: int
    channels: int
    bits: int
    brightest: int
    lines: tuple[str, ...]


def look(files: Sequence[Path]) -> Pixels:
    """Open up to ``LOOKED_AT`` of the ``files``. ``ValueError`` names the first of them that cannot be read."""
    chosen = [files[i] for i in sorted({round(i) for i in np.linspace(0, len(files) - 1, LOOKED_AT)})]
    shorts: list[int] = []
    kinds: Counter[str] = Counter()
    brightest = 0
    for path in chosen:
        picture, sixteen = open_picture(path)
        shorts.append(min(picture.size))
        brightest = max(brightest, int(np.asarray(picture).max())) if sixteen else brightest
        kinds["16-bit grey" if sixteen else colour_of(picture)] += 1
    lines = [
        f"shorter side {min(shorts)} to {max(shorts)} pixels; {', '.join(f'{n} {kind}' for kind, n in kinds.items())} "
        f"(looked at: {len(chosen)} of {plural(len(files), 'file')})"
    ]
    if kinds["grey stored in colour"]:
        lines.append("colour files that hold grey images are read as grey")
    if brightest:
        lines.append(f"16-bit values up to {brightest} of 65535; views.mean and views.std bring them to one scale")
    channels = 3 if kinds["colour"] else 1
    return Pixels(int(statistics.median(shorts)), channels, 16 if brightest else 8, brightest, tuple(lines))


def damaged(files: Sequence[Path]) -> str:
    """Which of the ``files`` cannot be read, in a line that says what training would do with them; "" where all can.
    Every file is decoded."""
    with ThreadPoolExecutor(2) as pool:
        reasons = [reason for reason in pool.map(fault_of, files) if reason]
    if not reasons:
        return ""
    more = f"; and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else ""
    return (
        f"{len(reasons)} of {plural(len(files), 'image')} cannot be read; training would stop at the first of them, so "
        f"move them out of the folder (sslmed data check names all): {'; '.join(reasons[:SHOWN])}{more}"
    )


def fault_of(path: Path) -> str:
    """Why an image cannot be read; "" where it can."""
    try:
        open_picture(path)
    except ValueError as error:
        return str(error)
    return ""


def colour_of(picture: object) -> str:
    """``8-bit grey``, ``grey stored in colour`` or ``colour``, of an image of PIL."""
    from PIL import Image

    assert isinstance(picture, Image.Image)
    if picture.mode in ("1", "L", "LA"):
        return "8-bit grey"
    small = picture.convert("RGB")
    small.thumbnail((SMALL, SMALL))
    values = np.asarray(small).astype(np.float32)  # (H, W, 3)
    spread = max(float(np.abs(values[..., 0] - values[..., k]).mean()) for k in (1, 2))
    return "grey stored in colour" if spread < NEARLY_GREY else "colour"
