"""Images per second from a folder of JPEG files, from packed JPEG and from packed raw, in one thread each.

    python -m tests.benchmarks.packing [--images 240] [--rounds 5]

The files are 500 x 375 noise with the spectrum of photographs (amplitude 1/f) at quality 90, ImageNet's usual size;
all three end as uint8 (3, 256, 256) in memory and come from the page cache. The three take turns in one run; a rate is
the median over the rounds. What is compared is the whole of ``fetch``, so a folder's images are decoded and resized,
packed JPEG decoded and cut, raw copied.
"""

import argparse
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image

from sslmed_dist import randomness
from sslmed_dist.data import DATASETS, Dataset
from sslmed_dist.data.pack import pack

SIDE = 256


def write_photographs(folder: Path, count: int) -> int:
    """``count`` files in ``folder``/train/a; returns their mean size in bytes."""
    place = folder / "train" / "a"
    place.mkdir(parents=True)
    frequency = torch.hypot(torch.fft.fftfreq(375)[:, None], torch.fft.rfftfreq(500)[None])
    frequency[0, 0] = 1.0
    for number in range(count):
        noise = torch.randn(3, 375, 500, generator=torch.Generator().manual_seed(number))
        grey = noise.mean(0, keepdim=True) * 1.5 + 0.5 * noise  # the channels of a photograph go together
        shaped = torch.fft.irfft2(torch.fft.rfft2(grey) / frequency, s=(375, 500))
        pixels = (shaped / shaped.std() * 50 + 128).clamp(0, 255).to(torch.uint8)
        Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(place / f"{number:04d}.jpg", quality=90)
    return sum(path.stat().st_size for path in place.iterdir()) // count


def seconds(data: Dataset, batch: int = 32) -> float:
    """Time to fetch every image once, in the keyed order of an epoch."""
    order = randomness.order(data.ids, 0, "data", 0, 0)
    started = time.perf_counter()
    for rows in torch.split(order, batch):
        data.fetch(rows, seed=0, epoch=0, draw=torch.zeros_like(rows))
    return time.perf_counter() - started


def folder_and_packs(folder: Path, images: int, label: str) -> tuple[int, dict[str, Dataset]]:
    """(bytes of a file, the sets): ``images`` photographs below ``folder`` as JPEG files, which go by ``label``, and
    packed in both forms."""
    size = write_photographs(folder / "files", images)
    leaf = {"name": "image_folder", "root": str(folder / "files")}
    sets: dict[str, Dataset] = {label: DATASETS["image_folder"](root=folder / "files", size=SIDE, workers=0)}
    for form in ("jpeg", "raw"):
        pack(leaf, folder / form, form=form, short=SIDE)  # type: ignore[arg-type]
        sets[f"packed {form}"] = DATASETS["packed"](root=folder / form, workers=0)
    return size, sets


def main() -> None:
    """Print the three rates and their ratios."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--images", type=int, default=240)
    arguments.add_argument("--rounds", type=int, default=5)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as name:
        folder = Path(name)
        size, sets = folder_and_packs(folder, options.images, "folder")
        times: dict[str, list[float]] = {label: [] for label in sets}
        for _ in range(options.rounds):
            for label, data in sets.items():
                times[label].append(seconds(data))
        rates = {label: options.images / statistics.median(values) for label, values in times.items()}
        jpeg, raw = ((folder / form / "shard-00000.bin").stat().st_size // options.images for form in ("jpeg", "raw"))
    print(f"{options.images} images of {size:,} bytes; packed {jpeg:,} (jpeg) and {raw:,} (raw)")
    for label, rate in rates.items():
        print(f"{label:12} {rate:9.1f} images/s {rate / rates['folder']:7.2f}x the folder")


if __name__ == "__main__":
    main()
