"""``sslmed analyse RUN gradcam``: where the encoder looks. The picture holds pixels: it stays with the run."""

from collections.abc import Sequence
from typing import Any

from sslmed_dist import randomness
from sslmed_dist.training import build, pretrained
from sslmed_dist.verbs import heat_maps
from sslmed_dist.verbs.analyse.subject import Answer, Subject


def gradcam(asked: Sequence[Subject], *, which: str = "last", layer: str | None = None) -> Answer:
    """Grad-CAM of the method at the checkpoint ``which``, over a few keyed training samples, as a contact sheet.
    ``layer`` is a submodule of the method. ``ValueError`` for several runs or checkpoints: a sheet is of one.
    """
    files = asked[0].files(which)
    if len(asked) > 1 or len(files) > 1:
        raise ValueError("gradcam: draws one run at one checkpoint; allowed: no --beside, and which=last or step_N")
    subject, (file,) = asked[0], files
    method, _ = pretrained.load_method(file)
    order = randomness.order(subject.dataset.ids, subject.settings.run.seed, "analysis")
    chosen = order[: heat_maps.SHOWN]
    device = build.choose_device(subject.settings)
    picture, caption = heat_maps.sheet(subject.settings, method.to(device), subject.dataset, chosen, layer)
    rows: list[dict[str, Any]] = [
        {"run": subject.label, "checkpoint": file.stem, "row": row, "sample": int(subject.dataset.ids[place])}
        for row, place in enumerate(chosen.tolist())
    ]
    return Answer("Grad-CAM", rows, lines=[caption], picture=picture)
