"""How fast views are made, against the torchvision pipeline on PIL images: ``python -m tests.benchmarks.views``.

One thread each, CPU time of the process (other programs on the machine disturb it less than wall time), repetitions of
the two taking turns, medians. The PIL images are ready in memory: decoding is in neither figure. Targets: 10 x for two
views of 256 images of 32 pixels (crop, flip, jitter, grey), 2 x for 64 images 256 -> 224 with blur on half of them.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision import transforms

from sslmed_dist import randomness
from sslmed_dist.views import VIEWS

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
JITTER = (0.4, 0.4, 0.4, 0.1)


@dataclass(frozen=True)
class Case:
    """A batch of ``count`` square images of ``source`` pixels, two views of ``size`` each."""

    name: str
    count: int
    source: int
    size: int
    blur: float
    pil_blur: str
    target: float
    repetitions: int


CASES = (
    Case("32 -> 32, no blur", 256, 32, 32, 0.0, "none", 10.0, 9),
    Case("256 -> 224, blur 0.5, against PIL's box blur", 64, 256, 224, 0.5, "pil", 2.0, 3),
    Case("256 -> 224, blur 0.5, against torchvision's", 64, 256, 224, 0.5, "torchvision", 2.0, 3),
)


class PILBlur:
    """Pillow's approximation of a Gaussian by repeated box filters: the cheapest blur in use."""

    def __call__(self, image: Image.Image) -> Image.Image:
        sigma = float(torch.empty(1).uniform_(0.1, 2.0))
        return image.filter(ImageFilter.GaussianBlur(sigma))


def make_images(case: Case) -> Tensor:
    """Smooth keyed noise, uint8 (count, 3, source, source): structure at several scales, as in photographs."""
    total = torch.zeros(case.count, 3, case.source, case.source)
    for side in (4, 8, 16, 32):
        shape = (case.count, 3, side, side)
        cells = torch.arange(case.count * 3 * side * side)
        noise = randomness.uniform("benchmark", case.source, side, cells).float().view(shape)
        total += F.interpolate(noise, size=(case.source, case.source), mode="bilinear", align_corners=False)
    return (total / 4 * 255).to(torch.uint8)


def ours(case: Case, images: Tensor) -> Callable[[int], Any]:
    """Both views of the whole batch, by this package."""
    views = VIEWS["contrastive"](
        case.size, blur=case.blur, jitter=JITTER, channels=3, value_range=(0.0, 255.0), mean=MEAN, std=STD
    )
    batch = {"images": images, "index": torch.arange(case.count), "draw": torch.zeros(case.count, dtype=torch.int64)}
    return lambda epoch: views(batch, seed=0, epoch=epoch)


def theirs(case: Case, images: Tensor) -> Callable[[int], Any]:
    """Both views of every image by torchvision's transforms, stacked to a batch."""
    steps: list[Any] = [
        transforms.RandomResizedCrop(case.size),
        transforms.RandomHorizontalFlip(),
        transforms.RandomApply([transforms.ColorJitter(*JITTER)], 0.8),
        transforms.RandomGrayscale(0.2),
    ]
    if case.blur:
        kernel = int(0.1 * case.size) // 2 * 2 + 1
        blur = PILBlur() if case.pil_blur == "pil" else transforms.GaussianBlur(kernel, (0.1, 2.0))
        steps.append(transforms.RandomApply([blur], case.blur))
    chain = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    return lambda epoch: [torch.stack([chain(picture) for picture in pictures]) for _ in range(2)]


def alternate(makers: Sequence[Callable[[int], Any]], repetitions: int) -> list[float]:
    """Median CPU seconds of each maker; they take turns, after one warm-up each."""
    seconds: list[list[float]] = [[] for _ in makers]
    for epoch in range(repetitions + 1):
        for maker, kept in zip(makers, seconds, strict=True):
            start = time.process_time()
            maker(epoch)
            kept.append(time.process_time() - start)
    return [statistics.median(kept[1:]) for kept in seconds]


def main() -> None:
    """Prints one line per case with the ratio of the two and whether it reaches its target."""
    torch.set_num_threads(1)
    print(f"{'case':48s} {'PIL ms/view':>12s} {'ours ms/view':>13s} {'ratio':>7s} {'target':>7s}")
    for case in CASES:
        images = make_images(case)
        pil, batched = alternate([theirs(case, images), ours(case, images)], case.repetitions)
        per_view = 1000.0 / (2 * case.count)
        verdict = "reached" if pil / batched >= case.target else "MISSED"
        print(
            f"{case.name:48s} {pil * per_view:12.3f} {batched * per_view:13.4f} {pil / batched:6.1f}x"
            f" {case.target:6.0f}x {verdict}"
        )


if __name__ == "__main__":
    main()
