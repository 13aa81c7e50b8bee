"""Episodes per second of CoWPro, sixteen at a time against one at a time, batch norm per episode.

    python -m tests.benchmarks.episodes [--device cuda --depth 101 --width 64 --size 256 --precision bf16]

A step is forward pass, loss, backward pass, running statistics and SGD on random episodes that are already on the
device; superpixels, views and logging are left out. Interleaved repetitions in one process; CPU time of one thread,
wall time on a GPU. Targets: at least 3 times as many on a GPU, not fewer on a CPU.
"""

import argparse
import statistics
import time

import torch
from torch import Tensor

from sslmed_dist.methods.cowpro import CoWPro
from sslmed_dist.training.allocation import keep_freed_memory
from sslmed_dist.training.precision import HALF

CPU = {"depth": 18, "width": 16, "size": 128}
GPU = {"depth": 101, "width": 64, "size": 256}


def episodes(count: int, size: int, device: torch.device) -> dict[str, Tensor]:
    """Noise, and a mask that covers a sixteenth of it."""
    support, query = torch.randn(2, count, 1, size, size, device=device)
    mask = torch.zeros(count, size, size, device=device)
    mask[:, size // 4 : size // 2, size // 4 : size // 2] = 1
    return {"support": support, "support_mask": mask, "query": query, "query_mask": mask}


def step(method: CoWPro, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor], precision: str) -> None:
    """One step as ``fit`` takes it, without its views, guard and log."""
    half = HALF.get(precision)
    with torch.autocast(batch["query"].device.type, half, enabled=half is not None):
        embeddings = method.embed(batch)
    wide = {name: value.float() if value.is_floating_point() else value for name, value in embeddings.items()}
    method.objective(wide, {})["loss"].backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    method.step_end(0.0)


def seconds(method: CoWPro, batch: dict[str, Tensor], at_once: int, precision: str) -> float:
    """Time of all episodes of ``batch``, ``at_once`` in a step."""
    cuda = batch["query"].is_cuda
    optimizer = torch.optim.SGD(method.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    if cuda:
        torch.cuda.synchronize()
    started = time.perf_counter() if cuda else time.process_time()
    for first in range(0, len(batch["query"]), at_once):
        step(method, optimizer, {name: value[first : first + at_once] for name, value in batch.items()}, precision)
    if cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() if cuda else time.process_time()) - started


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    for name in CPU:
        arguments.add_argument(f"--{name}", type=int)
    arguments.add_argument("--episodes", type=int, default=16)
    arguments.add_argument("--precision", choices=("float32", *HALF), default="float32")
    arguments.add_argument("--repeat", type=int, default=3)
    options = arguments.parse_args()
    device = torch.device(options.device)
    sizes = {name: getattr(options, name) or value for name, value in (CPU if device.type == "cpu" else GPU).items()}
    if device.type == "cpu":
        torch.set_num_threads(1)
        keep_freed_memory()
    torch.manual_seed(0)
    encoder = {"name": "dilated_resnet", "depth": sizes["depth"], "width": sizes["width"]}
    method = CoWPro(encoder).to(device).train()
    batch = episodes(options.episodes, sizes["size"], device)
    found: dict[int, list[float]] = {1: [], options.episodes: []}
    for turn in range(options.repeat + 1):
        for at_once, spent in found.items():
            taken = seconds(method, batch, at_once, options.precision)
            if turn:  # the first time, kernels are chosen and memory is asked for
                spent.append(taken)
    one, many = found.values()
    name = torch.cuda.get_device_name() if device.type == "cuda" else "one CPU thread, CPU time"
    print(f"{name}: ResNet-{sizes['depth']} width {sizes['width']}, {sizes['size']} px, {options.precision}")
    for at_once, spent in found.items():
        print(f"E = {at_once:3}: {options.episodes / statistics.median(spent):8.2f} episodes/s")
    ratio = statistics.median(a / b for a, b in zip(one, many, strict=True))
    print(f"E = {options.episodes} is {ratio:.2f}x E = 1 (target: >= 3x on a GPU, >= 1x on a CPU)")


if __name__ == "__main__":
    main()
