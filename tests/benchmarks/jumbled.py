"""How fast jumbled patches are made, against PIL and torchvision: ``python -m tests.benchmarks.jumbled``.

One thread, CPU time of the process, repetitions of the two taking turns, medians. Slices of 256 pixels, nine patches of
64. ``L``: grey, as SSLACL takes them; ``RGB``: PIL's images have the three channels that SKID takes (here the network
repeats the one). The PIL images are ready in memory: decoding is in neither figure. Target: 10 x.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import functional

from sslmed_dist import randomness
from sslmed_dist.data.arrangements import arrangements
from sslmed_dist.training.allocation import keep_freed_memory
from sslmed_dist.views.jumbled import JumbledViews

COUNT, SIZE, REPEAT = 16, 256, 5


def theirs(images: Tensor, table: Tensor, noise: float, mode: str) -> Callable[[int], Any]:
    """Each cell of each image cut, transformed, cropped and turned into a tensor by torchvision on PIL."""
    pictures = [Image.fromarray(image[0].numpy()).convert(mode) for image in images]
    steps = [transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))]
    make = transforms.Compose(
        [
            transforms.RandomAffine(
                15, (0.075, 0.075), (1.0, 1.2), interpolation=functional.InterpolationMode.BILINEAR
            ),
            transforms.RandomCrop(64),
            *steps,
        ]
    )

    def one(picture: Image.Image) -> Tensor:
        cells = [
            picture.crop((85 * column, 85 * row, 85 * column + 85, 85 * row + 85))
            for row in range(3)
            for column in range(3)
        ]
        order = table[int(torch.randint(len(table), (1,)))]
        patches = torch.stack([make(cells[cell]) for cell in order.tolist()])
        return patches.add_(torch.randn(patches.shape), alpha=noise).clamp_(-1, 1) if noise else patches

    return lambda epoch: torch.stack([one(picture) for picture in pictures])


def ours(images: Tensor, table: Tensor, noise: float) -> Callable[[int], Any]:
    """The same by this package, the batch at once."""
    views = JumbledViews(
        SIZE, noise=noise, arrangements=table, channels=1, value_range=(0.0, 255.0), mean=(0.5,), std=(0.5,)
    )
    index = torch.arange(len(images))
    batch = {"images": images, "index": index, "draw": torch.zeros_like(index)}
    return lambda epoch: views(batch, seed=0, epoch=epoch)["patches"]


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as a training does
    pixels = torch.arange(COUNT * SIZE * SIZE)
    images = (randomness.uniform("benchmark", pixels).view(COUNT, 1, SIZE, SIZE) * 255).to(torch.uint8)
    table = arrangements(classes=1000)
    for mode, noise in (("L", 0.0), ("L", 0.1), ("RGB", 0.1)):
        makers = {"ours": ours(images, table, noise), "theirs": theirs(images, table, noise, mode)}
        times: dict[str, list[float]] = {name: [] for name in makers}
        for turn in range(REPEAT + 1):
            for name, make in makers.items():
                started = time.process_time()
                make(turn)
                if turn:
                    times[name].append(time.process_time() - started)
        ms = {name: statistics.median(values) / COUNT * 1e3 for name, values in times.items()}
        ratio = statistics.median(b / a for a, b in zip(times["ours"], times["theirs"], strict=True))
        print(
            f"{mode}, noise {noise:g}: ours {ms['ours']:.2f} ms a slice, PIL and torchvision {ms['theirs']:.2f} ms; "
            f"{ratio:.1f} x (target 10 x)"
        )


if __name__ == "__main__":
    main()
