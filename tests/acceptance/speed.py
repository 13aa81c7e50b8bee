"""How fast the device is, against goals. A goal applies to a GPU at full size; in a rehearsal only the path is run."""

import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslmed_dist import config, distributed, randomness
from sslmed_dist.data import ArrayDataset, Dataset
from sslmed_dist.losses import tiles
from sslmed_dist.methods.cowpro import CoWPro
from sslmed_dist.training import build, job
from sslmed_dist.training.step import Stepper
from sslmed_dist.views import VIEWS
from tests.acceptance.pack import CIFAR
from tests.acceptance.part import Bench, Value
from tests.benchmarks import episodes as episode_benchmark
from tests.benchmarks import losses as loss_benchmark

RECIPES = Path(__file__).parents[2] / "configs"
CIFAR_STEPS = 390  # of an epoch: 50,000 images in batches of 128
EPOCH_GOALS = {"H200": 2.0, "H100": 2.5}  # seconds
GIB = 2.0**30


def wait(bench: Bench) -> None:
    """Until the device has done what it was asked for."""
    if bench.on_gpu:
        torch.cuda.synchronize()


def seconds_of(bench: Bench, function: Callable[[], object], most: float, least_turns: int = 3) -> float:
    """Mean wall seconds of a call, after two calls to warm up, over about ``most`` seconds."""
    for _ in range(2):
        function()
    wait(bench)
    turns, began = 0, time.perf_counter()
    while turns < least_turns or (not bench.tiny and time.perf_counter() - began < most):
        function()
        turns += 1
        if turns % 8 == 0:
            wait(bench)  # else the host runs ahead of the clock
    wait(bench)
    return (time.perf_counter() - began) / turns


def stepper(made: job.Job) -> Callable[[], object]:
    """One training step a call, batch after batch, epoch after epoch."""
    made.method.train()
    leave = distributed.leave_gradients
    step = Stepper(made.method, made.views, made.settings.plan, made.batches, made.state, leave, None)
    source: Iterator[dict[str, Tensor]] = iter([])

    def take() -> None:
        nonlocal source
        batch = next(source, None)
        if batch is None:
            source = made.batches.epoch(0)
            batch = next(source)
        step.step(batch, 0, False)

    return take


@cache
def images(file: Path, split: str) -> Dataset:
    """A split of packed CIFAR-10, decoded once in a process."""
    return build.load_data(config.load(RECIPES / "contrastive/cifar10_simclr.yaml", [f"data.root={file}"]), split)


def recipe(bench: Bench, name: str, file: Path, overrides: tuple[str, ...] = ()) -> config.Config:
    """A recipe of ``configs/`` on the device; in a rehearsal narrow, with small batches."""
    small = ("method.encoder.width=4", "plan.batch_size=32", "plan.precision=float32") if bench.tiny else ()
    given = (f"data.root={file}", f"run.device={bench.device}", f"run.dir={bench.scratch}", *overrides, *small)
    return config.load(RECIPES / name, list(given))


def cifar_epoch(bench: Bench) -> list[Value]:
    """The thesis's CIFAR setting: MIOv3, ResNet-18, batch 128, two views, all of a step."""
    file = bench.data / CIFAR
    settings = recipe(bench, "contrastive/cifar10_mio_v3.yaml", file)
    take = stepper(job.assemble(settings, images(file, "train")))
    seconds = seconds_of(bench, take, most=min(15.0, bench.seconds / 3))
    goal = None
    if bench.on_gpu and not bench.tiny:
        name = torch.cuda.get_device_name()
        goal = next((most for card, most in EPOCH_GOALS.items() if card in name), None)
    values = [
        Value("an epoch of 390 steps", CIFAR_STEPS * seconds, "s", most=goal, goal=True),
        Value("steps", 1 / seconds, "steps/s"),
        Value("images", settings.plan.batch_size / seconds, "images/s"),
    ]
    return values + launches(bench, take)


def launches(bench: Bench, function: Callable[[], object]) -> list[Value]:
    """How many kernels a call launches, and how long the GPU works on them; nothing on a CPU."""
    if not bench.on_gpu:
        return []
    from torch.profiler import ProfilerActivity, profile

    turns = 5
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        for _ in range(turns):
            function()
        wait(bench)
    averages = seen.key_averages()
    count = sum(item.count for item in averages if "LaunchKernel" in item.key)
    busy = sum(item.self_device_time_total for item in averages) / 1e3
    return [Value("kernels of a call", count / turns), Value("GPU time of a call", busy / turns, "ms")]


def views(bench: Bench) -> list[Value]:
    """Two contrastive views: 128 images of 32 px, and 128 of 256 px to 224 with blur."""
    values = []
    for source, size, blur in ((32, 32, 0.0), (256, 224, 0.5)):
        count = 8 if bench.tiny else 128
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        chain = VIEWS["contrastive"](size, blur=blur, channels=3, value_range=(0.0, 255.0), mean=mean, std=std)
        pixels = synthetic(bench, count, source)
        index = torch.arange(count, device=bench.device)
        batch = {"images": pixels, "index": index, "draw": torch.zeros_like(index)}
        call = lambda chain=chain, batch=batch: chain(batch, seed=0, epoch=0)  # noqa: E731
        seconds = seconds_of(bench, call, most=4.0)
        label = f"{source} to {size} px"
        values.append(Value(f"{label}, two views of each image", count / seconds, "images/s"))
        values += [Value(f"{label}, {value.name}", value.value, value.unit) for value in launches(bench, call)]
    return values


def synthetic(bench: Bench, count: int, side: int) -> Tensor:
    """Noise, uint8 (count, 3, side, side), on the device."""
    noise = randomness.uniform("speed", torch.arange(count * 3 * side * side, device=bench.device))
    return (noise * 255).to(torch.uint8).view(count, 3, side, side)


def losses(bench: Bench) -> list[Value]:
    """Loss and gradient of 131,072 pairs: time, memory, and the ratio to the matrix products alone."""
    pairs = 600 if bench.tiny else 131_072
    goals = bench.on_gpu and not bench.tiny
    z0, z1 = loss_benchmark.embeddings(pairs, bench.device)
    values: list[Value] = []
    floors: dict[int, float] = {}
    for case in loss_benchmark.CASES:
        loss = loss_benchmark.blockwise(case)
        loss_benchmark.step(loss, z0[:4096], z1[:4096])
        wait(bench)
        before = torch.cuda.memory_allocated() if bench.on_gpu else 0
        if bench.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        loss_benchmark.step(loss, z0, z1)
        wait(bench)
        seconds = time.perf_counter() - began
        extra = (torch.cuda.max_memory_allocated() - before) / GIB if bench.on_gpu else 0.0
        passes = 1 if case == "mio_v3" else 2  # the softmax needs all denominators before the first gradient
        floors[passes] = floors.get(passes) or products(bench, z0, z1, passes)
        values.append(Value(f"{case}, loss and gradient", 1e3 * seconds, "ms"))
        if bench.on_gpu:
            values.append(Value(f"{case}, extra memory", extra, "GiB", most=1.0 if goals else None, goal=True))
        ratio = seconds / floors[passes]
        name = f"{case}, times its matrix products alone"
        values.append(Value(name, ratio, "x", most=2.0 if goals else None, goal=True))
    return values


def products(bench: Bench, z0: Tensor, z1: Tensor, passes: int) -> float:
    """Seconds of the matrix products of a loss and its gradient alone, in the same tiles and arithmetic: ``passes``
    times all similarities, once all products with the rows."""
    rows = torch.nn.functional.normalize(torch.cat([z0, z1]), dim=1)

    def multiply() -> None:
        for _ in range(passes - 1):
            for tile, buffer in tiles.work_through(rows, rows):
                torch.mm(rows[tile.rows], rows[tile.columns].T, out=buffer)
        gradient = torch.zeros_like(rows)
        for tile, buffer in tiles.work_through(rows, rows):
            torch.mm(rows[tile.rows], rows[tile.columns].T, out=buffer)
            tiles.add_products(gradient, buffer, tile, rows, rows)

    multiply()
    wait(bench)
    began = time.perf_counter()
    multiply()
    wait(bench)
    return time.perf_counter() - began


def resnet50(bench: Bench) -> list[Value]:
    """SimCLR with ResNet-50 on synthetic images of 256 px, views of 224 px with blur: images of the set a second."""
    count, batch, source, size = (16, 8, 40, 32) if bench.tiny else (512, 128, 256, 224)
    data = ArrayDataset(
        name="synthetic",
        images=synthetic(bench, count, source).cpu(),
        labels=torch.arange(count) % 2,
        classes=("a", "b"),
    )
    tree = config.merge(
        config.to_tree(recipe(bench, "contrastive/cifar10_simclr.yaml", bench.scratch)),
        {
            "views": {"size": size, "blur": 0.5},
            "method": {"encoder": {"depth": 50, "stem": "imagenet"}},
            "plan": {"batch_size": batch, "log_every": 50},
        },
    )
    seconds = seconds_of(bench, stepper(job.assemble(config.from_tree(tree, "resnet50"), data)), most=12.0)
    return [Value("images, two views of each", batch / seconds, "images/s")]


def episodes(bench: Bench) -> list[Value]:
    """CoWPro with ResNet-101 on slices of 256 px in bfloat16: 16 episodes a step against one."""
    count, sizes = (4, {"depth": 18, "width": 4, "size": 32}) if bench.tiny else (16, episode_benchmark.GPU)
    precision = "bf16" if bench.on_gpu else "float32"
    torch.manual_seed(0)
    encoder: dict[str, Any] = {"name": "dilated_resnet", "depth": sizes["depth"], "width": sizes["width"]}
    method = CoWPro(encoder).to(bench.device).train()
    batch = episode_benchmark.episodes(count, sizes["size"], torch.device(bench.device))
    rates = {}
    for at_once in (1, count):
        episode_benchmark.seconds(method, batch, at_once, precision)  # kernels are chosen, memory is asked for
        spent = [episode_benchmark.seconds(method, batch, at_once, precision) for _ in range(1 if bench.tiny else 3)]
        rates[at_once] = count / min(spent)
    least = 3.0 if bench.on_gpu and not bench.tiny else None
    values = [Value(f"{at_once} at once", rate, "episodes/s") for at_once, rate in rates.items()]
    return [*values, Value(f"{count} at once against one", rates[count] / rates[1], "x", least=least, goal=True)]
