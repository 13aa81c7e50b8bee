"""One SimCLR step of ours against lightly 1.6: its own transform, loss and head, the same encoder and images.

    pip install -e '.[parity]'
    python -m tests.benchmarks.peers [--data cifar10-jpeg-5k1k.npz] [--encoder resnet9 resnet18] [--channels-last]

Batch 128 at 32 px, two threads, SGD. lightly's side is the loop of its examples: PIL transforms in a torch DataLoader
with 2 workers. Ours is the trainer's own path: packed images, batched views, ``Stepper``. Each is a process of its own;
they take turns by blocks of steps, the first of a block are not timed, and the ratio is the median over the blocks.
Memory: the largest sum of resident sets over a process and its children, and the same with shared pages counted once.
Without ``--data``, keyed noise: times and memory do not depend on what the images show. ``--channels-last``: both sides
have their encoder and images in that memory format. Targets: ``CASES``.
"""

import argparse
import importlib.metadata
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sslmed_dist import config, distributed, randomness
from sslmed_dist.data.dataset import ArrayDataset
from sslmed_dist.models import ENCODERS
from sslmed_dist.training import job
from sslmed_dist.training.build import load_data
from sslmed_dist.training.step import Stepper
from tests import tiny
from tests.benchmarks import process_memory

MEAN, STD = [0.491, 0.482, 0.447], [0.245, 0.243, 0.261]
OPTIMISER = {"lr": 0.06, "momentum": 0.9, "weight_decay": 5e-4}
TEMPERATURE = 0.1
UNTIMED = 3  # steps at the beginning of a block: lightly's workers start anew
INSTALL = "pip install -e '.[parity]' (or pip install 'lightly>=1.6,<1.7')"


@dataclass(frozen=True)
class Case:
    """An encoder, timed ``steps`` a block, and the least ratio that is aimed at."""

    depth: int
    width: int
    steps: int
    target: float

    @property
    def features(self) -> int:
        return 8 * self.width


CASES = {"resnet9": Case(9, 16, 12, 1.8), "resnet18": Case(18, 64, 5, 1.2)}
SIDES = ("ours", "lightly")


@dataclass(frozen=True)
class Setting:
    """What both sides are given."""

    encoder: str
    data: str
    batch: int
    channels_last: bool

    @property
    def case(self) -> Case:
        return CASES[self.encoder]


def settings(asked: Setting, folder: Path) -> config.Config:
    """SimCLR as ``configs/contrastive/cifar10_simclr.yaml`` has it. ``data`` is the JPEG pack of CIFAR-10, or keyed
    noise of ``write_noise`` in the layout of MedMNIST."""
    case = asked.case
    with np.load(asked.data, allow_pickle=False) as archive:
        name = "cifar10_jpeg" if "jpeg" in archive else "medmnist"
    head = {"name": "projection", "hidden": case.features, "out": 128, "layers": 2, "batch_norm": True}
    tree = tiny.tree(
        folder,
        run={"threads": 2},
        data={"name": name, "root": asked.data},
        views={"size": 32, "crop_scale": [0.08, 1.0], "jitter": [0.4, 0.4, 0.4, 0.1], "jitter_probability": 0.8,
               "grey": 0.2, "blur": 0.0, "mean": MEAN, "std": STD},
        method={"encoder": {"name": "resnet", "depth": case.depth, "stem": "cifar", "width": case.width},
                "head": {**head, "last_norm": True}, "loss": {"name": "nt_xent", "temperature": TEMPERATURE}},
        optim={"name": "sgd", **OPTIMISER, "schedule": {"name": "constant"}},
        plan={"batch_size": asked.batch, "steps_per_epoch": UNTIMED + case.steps, "log_every": 50,
              "channels_last": asked.channels_last},
    )  # fmt: skip
    return config.from_tree(tree, "benchmark")


def write_noise(path: Path, count: int) -> Path:
    """``count`` colour images of keyed noise, 32 px, and as many again of which nothing is asked."""
    arrays = {}
    for number, split in enumerate(("train", "val", "test")):
        rows = torch.arange(count if split == "train" else 1) + number * count
        pixels = randomness.uniform("peers", rows[:, None], torch.arange(32 * 32 * 3)[None, :])
        arrays[f"{split}_images"] = (pixels * 255).to(torch.uint8).view(-1, 32, 32, 3).numpy()
        arrays[f"{split}_labels"] = (rows % 2)[:, None].to(torch.uint8).numpy()
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


class Ours:
    """A run of the trainer as ``sslmed train`` assembles it."""

    def __init__(self, work: job.Job) -> None:
        self.work, self.epoch = work, 0
        work.method.train()
        self.stepper = Stepper(
            work.method, work.views, work.settings.plan, work.batches, work.state, distributed.leave_gradients, None
        )

    def steps(self) -> Iterator[None]:
        """The steps of a block, one at each turn."""
        for batch in self.work.batches.epoch(self.epoch):
            self.stepper.step(batch, self.epoch, False)
            yield
        self.epoch += 1


class PILImages(torch.utils.data.Dataset[Any]):
    """Images in memory, turned to PIL and transformed one by one, as ``torchvision.datasets.CIFAR10`` does."""

    def __init__(self, images: Tensor, transform: Callable[[Image.Image], Any]) -> None:
        self.pixels, self.transform = images.permute(0, 2, 3, 1).contiguous().numpy(), transform

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, position: int) -> Any:
        return self.transform(Image.fromarray(self.pixels[position]))


class Lightly:
    """The loop of lightly's SimCLR example."""

    def __init__(self, asked: Setting, images: Tensor) -> None:
        from lightly.loss import NTXentLoss
        from lightly.models.modules import SimCLRProjectionHead
        from lightly.transforms import SimCLRTransform

        # Of small images lightly's documentation asks for half the strength; without blur, as ours.
        normalise = {"mean": MEAN, "std": STD}
        transform = SimCLRTransform(input_size=32, cj_strength=0.5, gaussian_blur=0.0, normalize=normalise)
        self.loader = torch.utils.data.DataLoader(
            PILImages(images, transform), batch_size=asked.batch, shuffle=True, drop_last=True, num_workers=2
        )
        self.layout = torch.channels_last if asked.channels_last else torch.contiguous_format
        case = asked.case
        encoder = ENCODERS["resnet"](depth=case.depth, stem="cifar", width=case.width, channels=3)
        encoder = encoder.to(memory_format=self.layout)
        self.model = nn.Sequential(encoder, SimCLRProjectionHead(case.features, case.features, 128))
        self.loss = NTXentLoss(temperature=TEMPERATURE)
        self.optimiser = torch.optim.SGD(self.model.parameters(), **OPTIMISER)

    def steps(self) -> Iterator[None]:
        """Steps, one at each turn; the workers end with the iterator."""
        for first, second in self.loader:
            first, second = (view.to(memory_format=self.layout) for view in (first, second))
            loss = self.loss(self.model(first), self.model(second))
            loss.backward()
            self.optimiser.step()
            self.optimiser.zero_grad()
            yield


def block(side: Ours | Lightly, steps: int) -> float:
    """Seconds per step over ``steps`` steps after ``UNTIMED`` others."""
    started, turns = 0.0, side.steps()
    for done, _ in enumerate(turns, start=1):
        if done == UNTIMED:
            started = time.perf_counter()
        if done == UNTIMED + steps:
            return (time.perf_counter() - started) / steps
    raise ValueError(f"peers: --data holds too few images for {UNTIMED + steps} steps of a block")


def build(name: str, asked: Setting, folder: Path) -> Ours | Lightly:
    """One side, in two threads."""
    torch.set_num_threads(2)
    wanted = settings(asked, folder)
    if name == "ours":
        return Ours(job.assemble(wanted))
    images = load_data(wanted, "train")
    assert isinstance(images, ArrayDataset)
    return Lightly(asked, images.images)


def serve(name: str, asked: Setting) -> None:
    """A block for every line that comes in, its seconds per step for a line that goes out."""
    with TemporaryDirectory() as folder:
        side = build(name, asked, Path(folder))
        print("ready", flush=True)
        for _ in sys.stdin:
            print(block(side, asked.case.steps), flush=True)


class Process:
    """One side as a process of its own, which waits until a block is asked of it."""

    def __init__(self, name: str, asked: Setting) -> None:
        self.name = name
        call = f"from tests.benchmarks.peers import Setting, serve; serve({name!r}, {asked!r})"
        self.process = subprocess.Popen(
            [sys.executable, "-c", call], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.answer()

    def answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            raise SystemExit(f"peers: the process of {self.name} ended with exit code {self.process.wait()}")
        return line

    def seconds(self) -> float:
        """Of a step, over one block."""
        assert self.process.stdin is not None
        print("block", file=self.process.stdin, flush=True)
        return float(self.answer())

    def peaks(self) -> dict[str, int]:
        """The largest sums of Rss and Pss during a block that is not timed."""
        return process_memory.peaks(self.process.pid, self.seconds)

    def end(self) -> None:
        self.process.communicate()


def compare(asked: Setting, blocks: int) -> None:
    """Print times, ratio and memory of one encoder."""
    case = asked.case
    sides = {name: Process(name, asked) for name in SIDES}
    times: dict[str, list[float]] = {name: [] for name in SIDES}
    for turn in range(blocks):
        for name in SIDES if turn % 2 == 0 else reversed(SIDES):
            times[name].append(sides[name].seconds())
    peaks = {name: side.peaks() for name, side in sides.items()}
    for side in sides.values():
        side.end()
    ratios = [theirs / mine for mine, theirs in zip(times["ours"], times["lightly"], strict=True)]
    ratio = statistics.median(ratios)
    layout = "channels last" if asked.channels_last else "channels first"
    print(f"{asked.encoder}, width {case.width}, batch {asked.batch}, {layout}, {blocks} blocks of {case.steps} steps")
    for name in SIDES:
        memory = ", ".join(f"{field} {peaks[name][field] / 2**20:.0f} MiB" for field in ("Rss", "Pss"))
        print(f"  {name:8} {statistics.median(times[name]):7.3f} s a step; peak of all its processes: {memory}")
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"  ratio {ratio:.2f}x ({spread}); target >= {case.target}x: {verdict(ratio >= case.target)}")
    smaller = all(peaks["ours"][field] <= peaks["lightly"][field] for field in ("Rss", "Pss"))
    print(f"  memory; target: not larger: {verdict(smaller)}", flush=True)


def verdict(reached: bool) -> str:
    return "reached" if reached else "MISSED"


def require_lightly() -> None:
    """End with one line where lightly 1.6 cannot be used."""
    try:
        import lightly.loss  # noqa: F401
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that does not fit torch
        raise SystemExit(f"peers: lightly cannot be imported ({error}); {INSTALL}") from None
    version = importlib.metadata.version("lightly")
    if not version.startswith("1.6."):
        raise SystemExit(f"peers: expected lightly 1.6, got {version}; {INSTALL}")


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="JPEG pack of CIFAR-10; default: keyed noise")
    parser.add_argument("--encoder", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--channels-last", action="store_true")
    options = parser.parse_args(arguments)
    require_lightly()
    with TemporaryDirectory() as folder:
        most = max(UNTIMED + case.steps for case in CASES.values())
        data = options.data or write_noise(Path(folder) / "noise.npz", options.batch * most)
        for encoder in options.encoder:
            compare(Setting(encoder, str(data.resolve()), options.batch, options.channels_last), options.blocks)


if __name__ == "__main__":
    main()
