"""Nine branches as nine convolutions a layer or as one grouped convolution: ``python -m tests.benchmarks.stem``.

One thread, CPU time of the process, forward and backward pass, the two taking turns, the least of the repetitions.
"""

import time

import torch

from sslmed_dist.models.semiparallel import SemiParallel

# Channels, widths, patches of a batch, their side. The last two are SKID's and SSLACL's published stems.
CASES = (
    (1, (4, 4), 16, 32),
    (1, (8, 8), 16, 32),
    (1, (16, 16), 16, 32),
    (1, (32, 32), 8, 64),
    (3, (256, 256), 1, 64),
    (1, (256, 512), 1, 64),
)
REPEAT = 3


def seconds(stem: SemiParallel, patches: torch.Tensor, by_branch: bool) -> float:
    """CPU time of one forward and backward pass."""
    stem.by_branch = by_branch
    stem.zero_grad()
    started = time.process_time()
    stem(patches).square().mean().backward()
    return time.process_time() - started


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    for channels, widths, count, side in CASES:
        stem = SemiParallel(channels, widths, norm=True)
        patches = torch.rand(count, 9, channels, side, side)
        seconds(stem, patches, True), seconds(stem, patches, False)
        pairs = [(seconds(stem, patches, True), seconds(stem, patches, False)) for _ in range(REPEAT)]
        nine, grouped = (min(values) for values in zip(*pairs, strict=True))
        print(
            f"widths {widths}, {count} x 9 patches of {side} px: nine {nine * 1e3:.0f} ms, grouped "
            f"{grouped * 1e3:.0f} ms; nine is {grouped / nine:.2f} x as fast",
            flush=True,
        )


if __name__ == "__main__":
    main()
