"""SIGKILL at random moments, again and again: does every run still end with the bits of an undisturbed one?

    python -m tests.benchmarks.soak [--kills 100] [--minutes 60] [--seed 0] [--span 20] [--driver local | ray]

A run of 180 short steps saves every second one. It is started, killed, and started again until it ends; then the next
run begins. Half of the kills come after a random part of ``span`` seconds, while it imports, opens its folder, trains
or saves, as it comes; half after its first new checkpoint and a random part of a tenth of that.
``local``: one process. ``ray``: two workers on two nodes of this machine; killed is the driver, which is started again
here, or one of the workers, which Ray starts again. The moments and the victims follow from the seed; where they hit
depends on the machine. After the last kill the run goes on to its end. The exit code is 1 where a parameter differs.
"""

import argparse
import functools
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from sslmed_dist import checkpoint, plain_yaml
from tests import tiny
from tests.drivers.ray_nodes import Nodes, environment, started_nodes

STEPS = 180
LONGEST_S = 600.0  # an attempt that nobody disturbs


def write(folder: Path) -> Path:
    """The recipe."""
    plan = {"epochs": STEPS // 3, "precision": "float64", "checkpoint_every": 2}
    ray = {"num_workers": 2, "placement": "strict_spread", "max_failures": -1}
    path = folder / "tiny.yaml"
    path.write_text(plain_yaml.write(tiny.tree(folder, plan=plan, ray=ray)))
    return path


def command(path: Path, name: str, driver: str, world: int = 1) -> list[str]:
    """``sslmed train`` as the run ``name``, by ``world`` processes of torchrun where that is more than one."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"] if world > 1 else []
    words = ["-m", "sslmed_dist.cli", "train", str(path), f"run.name={name}", f"driver={driver}"]
    return [sys.executable, *torchrun, *words]


def final(folder: Path) -> dict[str, torch.Tensor]:
    """The method's state at the last step."""
    saved = checkpoint.load(checkpoint.Checkpoints(folder / "checkpoints").path(STEPS))
    method: dict[str, torch.Tensor] = saved["method"]
    return method


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> int:
    """How many tensors are not the same, bit for bit."""
    assert one.keys() == other.keys()
    return sum(not torch.equal(one[key], other[key]) for key in one)


class Soak:
    """The kills that are left, and what they hit."""

    def __init__(self, path: Path, driver: str, kills: int, deadline: float, span: float, seed: int) -> None:
        self.path, self.driver, self.left, self.deadline, self.span = path, driver, kills, deadline, span
        self.draw = random.Random(seed)
        self.hit: Counter[str] = Counter()
        self.env = environment()
        self.worker: Callable[[], bool] | None = None  # kills a worker of Ray's, where one is there

    def run(self, name: str) -> Path:
        """One run from its first start to its end; its folder."""
        folder = self.path.parent / "runs" / name
        while True:
            with (self.path.parent / "said.txt").open("w") as said:
                process = subprocess.Popen(
                    command(self.path, name, self.driver), env=self.env, stdout=said, stderr=subprocess.STDOUT
                )
            if self.disturb(process, folder):
                return folder

    def disturb(self, process: "subprocess.Popen[bytes]", folder: Path) -> bool:
        """Kill the process, or workers of it, at random moments; whether it came to its end."""
        checkpoints, begun_at = checkpoint.Checkpoints(folder / "checkpoints"), None
        while True:
            begun_at = max(checkpoints.steps(), default=0) if begun_at is None else begun_at
            more = self.left > 0 and time.monotonic() < self.deadline
            moment, driver = self.draw.random() * self.span, self.draw.random() < 0.5
            if self.draw.random() < 0.5:
                moment /= 10
                while process.poll() is None and max(checkpoints.steps(), default=0) <= begun_at:
                    time.sleep(0.01)
            try:
                if process.wait(moment if more else LONGEST_S):
                    raise RuntimeError((self.path.parent / "said.txt").read_text()[-3000:])
                return True
            except subprocess.TimeoutExpired:
                if not more:
                    process.kill()
                    raise RuntimeError(f"{folder.name}: no end after {LONGEST_S:g} s") from None
            stage = "training" if max(checkpoints.steps(), default=0) > begun_at else "starting"
            if self.worker is not None and not driver:
                if self.worker():
                    self.left, begun_at = self.left - 1, None
                    self.hit[f"worker, {stage}"] += 1
                continue
            process.kill()
            process.wait()
            self.left -= 1
            self.hit[f"{'driver' if self.worker else 'process'}, {stage}"] += 1
            return False


def soak(folder: Path, asked: argparse.Namespace, nodes: Nodes | None) -> bool:
    """All kills; whether no run differed."""
    path, world = write(folder), 2 if nodes else 1
    subprocess.run(command(path, "whole", "local", world), env=environment(), check=True, capture_output=True)
    undisturbed = final(folder / "runs" / "whole")
    deadline = time.monotonic() + 60 * asked.minutes
    work = Soak(path, asked.driver, asked.kills, deadline, asked.span, asked.seed)
    if nodes is not None:
        work.env = environment(**nodes.env)
        work.worker = functools.partial(nodes.signal_worker, signal.SIGKILL)
    runs = differences = 0
    while work.left > 0 and time.monotonic() < deadline:
        differences += differing(final(work.run(f"run-{runs}")), undisturbed)
        runs += 1
        hits = ", ".join(f"{count} {what}" for what, count in sorted(work.hit.items()))
        kills = sum(work.hit.values())
        print(f"{kills} SIGKILLs ({hits or 'none'}) in {runs} runs: {differences} tensors differ", flush=True)
    return differences == 0


def main() -> int:
    """Read the options and soak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--span", type=float, default=20.0)
    parser.add_argument("--driver", choices=["local", "ray"], default="local")
    asked = parser.parse_args()
    with TemporaryDirectory() as folder:
        if asked.driver == "local":
            return 0 if soak(Path(folder), asked, None) else 1
        with started_nodes(Path(folder)) as nodes:
            return 0 if soak(Path(folder), asked, nodes) else 1


if __name__ == "__main__":
    raise SystemExit(main())
