"""Peak memory and time of ``sslmed segment`` on a CT phantom of 512 x 512 x 600 voxels with 41 labels.

    python -m tests.benchmarks.many_labels [--side 512] [--slices 600] [--labels 41] [--size 256] [--probabilities]

Support and query are noise with ellipsoids of different brightness, one for each label; the encoder has the shape of
configs/segmentation/chaos_cowpro_cpu.yaml and random weights, for neither memory nor time depends on what it learnt.
The command runs in a process of its own, and the peak is what the kernel says of it (``ru_maxrss``).
"""

import argparse
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel
import numpy as np

from tests.verbs.segment.test_tool import write_run

LARGEST = 6 * 2**30  # bytes


def write_phantom(folder: Path, name: str, shape: tuple[int, int, int], labels: int, seed: int) -> tuple[Path, Path]:
    """(image, mask) of a CT phantom, uncompressed NIfTI, 0.75 mm in the plane and 1 mm between slices."""
    rng = np.random.default_rng(seed)
    affine = np.diag([-0.75, -0.75, 1.0, 1.0])
    image, mask = np.empty(shape, np.int16, order="F"), np.zeros(shape, np.uint8, order="F")
    for k in range(shape[2]):
        image[:, :, k] = rng.normal(0, 20, shape[:2])
    for label in range(1, labels + 1):
        radii = rng.uniform(0.04, 0.12, 3) * shape
        centre = rng.uniform(0.25, 0.75, 3) * shape
        box = tuple(slice(int(c - r), int(c + r) + 1) for c, r in zip(centre, radii, strict=True))
        grid = np.ogrid[box]
        inside = sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radii, strict=True)) < 1
        mask[box][inside] = label
        image[box][inside] += 30 + 8 * label
    paths = folder / f"{name}.nii", folder / f"{name}_mask.nii"
    for voxels, path in zip((image, mask), paths, strict=True):
        nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return paths


def measured(command: list[str]) -> tuple[int, int, float]:
    """(exit code, peak resident bytes, seconds) of a command."""
    started = time.perf_counter()
    _, status, usage = os.wait4(os.posix_spawn(command[0], command, dict(os.environ)), 0)
    return os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024, time.perf_counter() - started


def main() -> int:
    """Print the peak and the time; 1 where the command fails or needs more than 6 GiB."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--side", type=int, default=512)
    arguments.add_argument("--slices", type=int, default=600)
    arguments.add_argument("--labels", type=int, default=41)
    arguments.add_argument("--size", type=int, default=256, help="pixels of the model's slices")
    arguments.add_argument("--probabilities", action="store_true")
    options = arguments.parse_args()
    with TemporaryDirectory() as name:
        folder, shape = Path(name), (options.side, options.side, options.slices)
        run = write_run(folder / "run", size=options.size, depth=18, width=16, out=64, stride=4)
        support, mask = write_phantom(folder, "support", shape, options.labels, 0)
        query, _ = write_phantom(folder, "query", shape, options.labels, 1)
        command = [sys.executable, "-m", "sslmed_dist.cli", "segment", "--model", run, "--support", support]
        command += ["--support-mask", mask, "--query", query, "--out", folder / "out"]
        command += ["--pixel-mm", options.side * 0.75 / options.size, "--window", "-160", "500"]
        code, peak, seconds = measured(list(map(str, command + ["--no-probabilities"] * (not options.probabilities))))
        written = sum(path.stat().st_size for path in (folder / "out").iterdir()) if code == 0 else 0
    print(
        f"{' x '.join(map(str, shape))}, {options.labels} labels, slices of {options.size} px, "
        f"{'with' if options.probabilities else 'without'} probabilities: exit {code}, peak {peak / 2**30:.2f} GiB, "
        f"{seconds:.0f} s, {written / 1e6:.1f} MB written"
    )
    return int(code != 0 or peak > LARGEST)


if __name__ == "__main__":
    sys.exit(main())
