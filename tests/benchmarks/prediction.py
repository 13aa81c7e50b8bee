"""What ``sslmed train --check`` says a run will need, against what it then needs: wall time and peak resident memory.

    python -m tests.benchmarks.prediction [RECIPE ...]

One line per recipe: seconds that the check took; then time and memory predicted and measured, their ratio, and whether
it is within the goal (20 % of the time, 10 % of the memory). Check and run follow one another at once, each in a
process of its own, so leave the machine alone meanwhile. Recipes that would take long are shortened, check and run
alike, as ``RECIPES`` says. Memory of one process is what the system says at its end (``ru_maxrss``). Of a run with Ray
it is the largest sum over all its processes (``VmRSS``, every 0.2 s; what they share counts in each). Real images are
looked for in ``$SSLMED_TEST_DATA``; recipes whose images are not there are skipped and named.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

from tests.benchmarks import process_memory

# This process imports little and so stays small: the system counts to a new process what its parent had in use.
ROOT = Path(__file__).resolve().parents[2]
CLI = [sys.executable, "-m", "sslmed_dist.cli"]
SITE = """
import sys
from pathlib import Path
from sslmed_dist import config
from sslmed_dist.training import check, job
from sslmed_dist.verbs import federate
settings, sites = federate.prepare(config.load(sys.argv[1], sys.argv[2:-1]))
if sys.argv[-1] == "--check":
    print("\\n".join(check.check_lines(settings, sites[0].pretrain)))
else:
    job.train(settings, dataset=sites[0].pretrain, folder=Path("runs/site"))
"""
# Recipe: (configuration, images in the data folder or the phantom, overrides).
RECIPES: dict[str, tuple[str, str | None, list[str]]] = {
    "moco_v2": ("smoke/moco_v2.yaml", None, []),
    "dino": ("smoke/dino.yaml", None, []),
    "demo_ray": ("smoke/demo_ray.yaml", None, []),
    "pneumonia-site": ("federated/pneumonia_mio_v3.yaml", "pneumoniamnist.npz", []),
    "cowpro": ("segmentation/chaos_cowpro_cpu.yaml", "chaos-t2spir", ["plan.epochs=1"]),  # of 30: 50 steps
    "cifar10_mio_v3": ("contrastive/cifar10_mio_v3_cpu.yaml", "cifar10-jpeg-5k1k.npz", ["plan.epochs=6"]),  # of 60
}
GOALS = {"time": 0.2, "memory": 0.1}
UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}
PAUSE_S = 0.2
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def command(recipe: str, data: Path, name: str) -> list[str]:
    """The command of a recipe's run; with ``--check`` behind it, that of its check."""
    file, images, overrides = RECIPES[recipe]
    root = Path("runs/phantom/shapes.npz") if images is None else data / images
    words = [str(ROOT / "configs" / file), f"data.root={root}", f"run.name={name}", *overrides]
    return [sys.executable, "-c", SITE, *words] if recipe == "pneumonia-site" else [*CLI, "train", *words]


def predicted(said: str) -> dict[str, float]:
    """Seconds and MiB that the lines of a check foretell."""
    memory = re.search(r"^memory +about ([\d,]+) MiB", said, re.MULTILINE)
    spent = re.search(r"^time +about ([\d.]+) (s|min|h):", said, re.MULTILINE)
    assert memory and spent, said
    return {"time": float(spent[1]) * UNITS[spent[2]], "memory": float(memory[1].replace(",", ""))}


def resident(pid: int) -> float:
    """MiB of resident memory of a process now; none of one that has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024


def measured(words: list[str], group: bool) -> dict[str, float]:
    """Seconds of wall time and MiB at the peak that a command needs: of its process, or of all that it starts."""
    begun, peak = time.monotonic(), 0.0
    with TemporaryFile() as errors:
        child = subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=errors)
        while True:
            ended, status, used = os.wait4(child.pid, os.WNOHANG if group else 0)
            if ended:
                break
            peak = max(peak, sum(resident(pid) for pid in process_memory.family(child.pid)))
            time.sleep(PAUSE_S)
        spent, child.returncode = time.monotonic() - begun, os.waitstatus_to_exitcode(status)
        errors.seek(0)
        assert child.returncode == 0, errors.read().decode()
    return {"time": spent, "memory": peak if group else used.ru_maxrss / 1024}


def line(recipe: str, data: Path) -> str:
    """Check and run of a recipe, in words."""
    words = command(recipe, data, "run")
    if recipe == "cowpro":  # superpixels are computed once and kept: not in the time of a run that finds them
        subprocess.run([*words, "--check"], check=True, env=ENVIRONMENT, capture_output=True)
    begun = time.monotonic()
    done = subprocess.run([*words, "--check"], check=True, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    took, foretold = time.monotonic() - begun, predicted(done.stdout)
    needed = measured(words, group="Ray's own" in done.stdout)
    parts = []
    for what, unit in (("time", "s"), ("memory", "MiB")):
        ratio = foretold[what] / needed[what]
        within = "within" if abs(ratio - 1) <= GOALS[what] else "MISSES"
        goal = f"{within} {100 * GOALS[what]:.0f} %"
        parts.append(f"{what} {foretold[what]:,.0f} of {needed[what]:,.0f} {unit}, {ratio:.2f}x, {goal}")
    return f"{recipe:15} check {took:.0f} s; {'; '.join(parts)}"


def main() -> None:
    """Check and run the recipes."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("recipes", nargs="*", metavar="RECIPE", help=", ".join(RECIPES))
    options = arguments.parse_args()
    unknown = set(options.recipes) - set(RECIPES)
    if unknown:
        arguments.error(f"{', '.join(sorted(unknown))}: no such recipe; allowed: {', '.join(RECIPES)}")
    data = Path(os.environ.get("SSLMED_TEST_DATA") or ROOT.parent / "shared" / "data").resolve()
    for recipe in options.recipes or RECIPES:
        images = RECIPES[recipe][1]
        if images is not None and not (data / images).exists():
            print(f"{recipe:15} skipped: {images} is not in {data}", flush=True)
            continue
        with TemporaryDirectory() as name:
            os.chdir(name)
            phantom = [*CLI, "data", "phantom", "shapes", "runs/phantom", "channels=1"]
            if images is None:
                subprocess.run(phantom, check=True, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
            print(line(recipe, data), flush=True)
            os.chdir(ROOT)


if __name__ == "__main__":
    main()
