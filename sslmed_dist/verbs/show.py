"""``sslmed data show``: images as stored, and what a recipe's views make of them. They are pixels: they stay here."""

from pathlib import Path

from sslmed_dist import outputs, randomness
from sslmed_dist.arguments import require_between
from sslmed_dist.atomic_files import write_atomically
from sslmed_dist.config import Config
from sslmed_dist.training import build
from sslmed_dist.verbs.pictures import SHOWN, Samples, episodes_sheet, views_sheet


def show_views(settings: Config, out: Path, count: int) -> Path:
    """Write a PNG of ``count`` training images: a row each, the image as stored, then its views in the first epoch. Of
    a jigsaw puzzle the patches in their jumbled order and the solution. Returns ``out``.

    ``ValueError``: a count that is not 1 to 6, or a file that is there already.
    """
    require_between("--count", count, 1, SHOWN)
    outputs.require_writable([(out, lambda path: False)], force=False)
    dataset = build.load_data(settings, "train")
    settings = build.resolve(settings, dataset)
    if settings.views["name"] == "episode":
        write_atomically(out, episodes_sheet(settings, dataset))
        return out
    order = randomness.order(dataset.ids, settings.run.seed, "pictures")
    write_atomically(out, views_sheet(settings, Samples(dataset, order[:count])))
    return out
