"""``sslmed report --pictures``: all that a run's own pictures show. They hold pixels."""

from collections.abc import Sequence
from pathlib import Path

from sslmed_dist import randomness
from sslmed_dist.atomic_files import write_atomically
from sslmed_dist.printable import say
from sslmed_dist.training import build, pretrained
from sslmed_dist.verbs import heat_maps, pictures


def make_for_report(runs: Sequence[Path], layer: str | None = None) -> None:
    """``pictures.make`` and ``draw_heat`` for every run of a report. A run whose checkpoint or data is not at hand
    keeps the pictures it has, and a line on stderr says why there are no new ones. ``ValueError`` where a ``layer``
    that is named cannot be asked."""
    for folder in runs:
        try:
            pictures.make(folder)
        except ValueError as error:
            say(f"{folder.name}: no new pictures: {error}")
        try:
            draw_heat(folder, layer)
        except ValueError as error:
            if layer is not None:
                raise ValueError(f"{folder.name}: {error}") from error
            say(f"{folder.name}: no Grad-CAM: {error}")


def draw_heat(folder: Path, layer: str | None) -> None:
    """Write ``pictures/gradcam.png`` and its caption: where the method of the run's last checkpoint looks, in the
    samples of ``views.png`` and as it sees them there. ``ValueError`` as ``gradcam.of_method``."""
    method, settings = pretrained.load_method(folder)
    settings = pictures.with_data_of(folder, settings)
    dataset = build.load_data(settings, "train" if settings.federated is None else settings.federated.pool)
    order = randomness.order(dataset.ids, settings.run.seed, "pictures")
    picture, caption = heat_maps.sheet(settings, method, dataset, order[: heat_maps.SHOWN], layer)
    write_atomically(folder / "pictures" / "gradcam.png", picture)
    pictures.describe(folder, {"gradcam.png": caption})
